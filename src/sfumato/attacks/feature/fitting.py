"""A network that an attacker trains on its own images, or on pairs of image and feature: one job for all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Learned
from sfumato.attacks.threat import BlackBox
from sfumato.data import Batches, ImageSet
from sfumato.training import Fit, Plan, Runtime, fit, load_optimizer

_BATCH = 512

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a network, images x (N, C, H, W) in [0, 1] and their features z (N, ...) to what training makes small."""


class Pairs(Protocol):
    """Images whose labels are their indices, and their features; see :class:`~sfumato.attacks.Observations`."""

    images: ImageSet

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Features of a batch."""

    def state_dict(self) -> dict[str, Any]:
        """What was kept."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""


class Unsent:
    """Images that are never sent: each is its own feature."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """The images themselves."""
        return x

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, and the rate as it goes.

    Args:
        epochs: Passes over the images.
        batch_size: Images a step.
        lr: Initial learning rate.
        beta1: Momentum of Adam.
        beta2: Memory of Adam for squared gradients.
        patience: Epochs without a better validation error after which the rate is multiplied by ``factor``; ``None``
            for cosine decay to a hundredth.
        factor: See ``patience``.
        weight_decay: L2 penalty.
        stop_after: End after so many epochs without a better one; ``None`` goes on to the last.
    """

    epochs: int
    batch_size: int
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    patience: int | None = None
    factor: float = 0.5
    weight_decay: float = 0.0
    stop_after: int | None = None


@dataclass(frozen=True)
class Fitted:
    """A network with the epoch of the best validation error, and how its training went."""

    before: float
    after: float
    result: Fit

    def learned(self, network: nn.Module) -> Learned:
        """The attack of a network that was trained by :func:`squared_error`."""
        figures = {"mse_before": self.before, "mse_after": self.after, "epoch_kept": float(self.result.epoch_kept)}
        return Learned(torch.no_grad()(partial(answer, network)), figures, self.result.diverged)


def train_network(
    network: nn.Module,
    loss: Loss,
    pairs: tuple[Pairs, Pairs],
    recipe: Recipe,
    *,
    title: str,
    target: BlackBox,
    generator: torch.Generator,
    runtime: Runtime,
) -> Fitted:
    """Train in place; resumes from the runtime's folder. The network is left in evaluation mode, on the device.

    Args:
        network: Its parameters that require gradients are trained.
        loss: Also measured on the validation images, to choose the epoch.
        pairs: To learn from and to select on.
        recipe: How.
        title: For the progress bar.
        target: Whose queries and channel are part of the state.
        generator: All that is drawn.
        runtime: Device, folder, progress.

    Raises:
        Interrupted: The runtime was asked to stop.
    """
    job = NetworkJob(network, loss, pairs, recipe, title=title, target=target, generator=generator, runtime=runtime)
    plan = Plan(recipe.epochs, recipe.batch_size, seed_from(generator), patience=recipe.stop_after)
    before = job.error()
    result = fit(job, pairs[0].images, plan, runtime)
    return Fitted(before, job.error(), result)


def squared_error(network: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """Mean squared error of what the network makes of the features."""
    return F.mse_loss(network(z), x)


class NetworkJob:
    """One network at its training; see :func:`train_network`.

    Attributes:
        network: As a plain module.
        module: The same as it is to be called in training.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        pairs: tuple[Pairs, Pairs],
        recipe: Recipe,
        *,
        title: str,
        target: BlackBox,
        generator: torch.Generator,
        runtime: Runtime,
    ) -> None:
        self.title = title
        self._loss, self._target, self._generator = loss, target, generator
        self._own, self._validation = pairs
        network = network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        learning = [p for p in network.parameters() if p.requires_grad]
        betas = (recipe.beta1, recipe.beta2)
        optimizer = torch.optim.Adam(learning, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)
        self.network, self.module = network, runtime.fabric.setup_module(network)
        self._optimizer: Any = runtime.fabric.setup_optimizers(optimizer)
        self._fabric = runtime.fabric
        self._schedule = _schedule(recipe, optimizer)

    def epoch_start(self, epoch: int) -> None:
        """Training mode."""
        self.network.train()

    def step(self, x: Tensor, y: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        """One step on a batch."""
        loss = self._loss(self.module, *self.pairs(x, y))
        self._optimizer.zero_grad()
        self._fabric.backward(loss)
        self._optimizer.step()
        return {"loss": loss.detach()}

    def pairs(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of the images to learn from, and their features.

        An only image comes twice where its feature is a map of one place: from a single number a channel batch norm
        refuses to learn. Such an attacker learns nothing of features either way; the loss is the same.
        """
        z = self._own(x, index)
        single = len(x) == 1 and z.ndim == 4 and z[0, 0].numel() == 1
        return (torch.cat([x, x]), torch.cat([z, z])) if single else (x, z)

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Loss on the attacker's own validation images; less is better."""
        error = self.error()
        if isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._schedule.step(error)
        else:
            self._schedule.step()
        return {"validation_loss": error, "score": -error}

    @torch.no_grad()
    def error(self) -> float:
        """Mean loss on the attacker's validation images, in evaluation mode."""
        self.network.eval()
        images = self._validation.images
        total = torch.zeros((), device=images.images.device)
        for x, index in Batches(images, _BATCH, shuffle=False):
            total += self._loss(self.module, x, self._validation(x, index)) * len(x)
        return float(total) / len(images)

    def weights(self) -> dict[str, Any]:
        """The network's, copied."""
        return copy.deepcopy(self.network.state_dict())

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Take them back."""
        self.network.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "target": self._target.state_dict(),
            "pairs": [self._own.state_dict(), self._validation.state_dict()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, bit for bit."""
        self.network.load_state_dict(state["network"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"].clone())
        self.network.train()  # a checkpoint from inside an epoch is resumed without another epoch_start
        self._target.load_state_dict(state["target"])
        for pairs, saved in zip((self._own, self._validation), state["pairs"], strict=True):
            pairs.load_state_dict(saved)


def seed_from(generator: torch.Generator) -> int:
    """A seed for a stream of its own."""
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def on_cpu(generator: torch.Generator) -> torch.Generator:
    """A stream for initial weights, which are drawn on the CPU whatever the device."""
    return torch.Generator().manual_seed(seed_from(generator))


def answer(network: nn.Module, given: Tensor) -> Tensor:
    """What a network in evaluation mode makes of ``given``, in its precision, as float32; differentiable."""
    dtype = next((p.dtype for p in network.parameters()), given.dtype)
    made: Tensor = network.eval()(given.to(dtype))
    return made.float()


def _schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.CosineAnnealingLR | torch.optim.lr_scheduler.ReduceLROnPlateau:
    if recipe.patience is None:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs, eta_min=recipe.lr / 100)
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=recipe.factor, patience=recipe.patience)
