"""Train a decoder from features to images: the CEM paper's main attack."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.attacks.base import Attack, Knowledge, Learned
from sfumato.attacks.observations import Observations, observe
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, ThreatModel
from sfumato.data import Batches
from sfumato.models import Decoder
from sfumato.models.decoder import doublings
from sfumato.training import Plan, Runtime, fit, load_optimizer

_BATCH = 512


@dataclass(frozen=True)
class DecoderAttack(Attack):
    """Learn x from z by mean squared error with a residual decoder (CEM, supplement S.3; after ResSFL).

    It needs queries alone, so it works under every threat model; every batch is sent anew as far as queries are free,
    so that it learns the channel's randomness. An image of any size is reached by doubling the feature's and, where
    that does not lead there, one bilinear resize. The epoch with the best MSE on the attacker's own validation images
    is kept. The paper trains with Adam at 0.005; the authors' program at 0.001 with cosine decay to 1e-5 and weight
    decay 1e-4.
    The default is the program's.

    Args:
        depth: Residual blocks (8 in the paper).
        width: Channels (64 in the paper).
        epochs: 50 in the paper.
        lr: Initial learning rate of Adam.
        batch_size: 256 in the paper.
        weight_decay: L2 penalty.
    """

    name: ClassVar[str] = "decoder"
    source: ClassVar[str] = "Xia et al. 2025 (CEM), supplement S.3; Li et al. 2022 (ResSFL)"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "epochs × images queries, then one forward pass an image"
    depth: int = 8
    width: int = 64
    epochs: int = 50
    lr: float = 1e-3
    batch_size: int = 256
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.depth >= 0, "depth", "0 or more")
        self._require(self.width >= 1, "width", "1 or more")
        self._require(self.epochs >= 1, "epochs", "1 or more")
        self._require(0 < self.lr < float("inf"), "lr", "a learning rate above 0")
        self._require(self.batch_size >= 2, "batch_size", "2 or more")
        self._require(0 <= self.weight_decay < float("inf"), "weight_decay", "0 or more")

    def check(self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...]) -> None:
        """The decoder enlarges maps: the feature has to be one, and no larger than the image."""
        doublings(feature_shape, image_shape)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Train the decoder on queries; resumes from the runtime's folder."""
        own, validation = observe(target, knowledge)
        job = DecoderJob(self, target, own, validation, generator, runtime)
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        plan = Plan(self.epochs, self.batch_size, seed)
        before = job.error()
        result = fit(job, own.images, plan, runtime)
        figures = {"mse_before": before, "mse_after": job.error(), "epoch_kept": float(result.epoch_kept)}
        return Learned(job.invert, figures, result.diverged)


class DecoderJob:
    """One decoder learning to invert one target."""

    def __init__(
        self,
        attack: DecoderAttack,
        target: BlackBox,
        own: Observations,
        validation: Observations,
        generator: torch.Generator,
        runtime: Runtime,
    ) -> None:
        self.title = f"attack: {attack.name}"
        self._target, self._own, self._validation, self._generator = target, own, validation, generator
        decoder = Decoder(
            target.feature_shape,
            target.image_shape,
            depth=attack.depth,
            width=attack.width,
            generator=_cpu(generator),
        )
        decoder = decoder.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(decoder.parameters(), lr=attack.lr, weight_decay=attack.weight_decay)
        self._decoder = decoder
        self._module, self._optimizer = runtime.fabric.setup(decoder, optimizer)
        self._fabric = runtime.fabric
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, attack.epochs, eta_min=attack.lr / 100)

    def epoch_start(self, epoch: int) -> None:
        """Training mode."""
        self._decoder.train()

    def step(self, x: Tensor, y: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        """One step of MSE on a batch sent anew."""
        loss = F.mse_loss(self._module(self._own(x, y)), x)
        self._optimizer.zero_grad()
        self._fabric.backward(loss)
        self._optimizer.step()
        return {"mse": loss.detach()}

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """MSE on the attacker's own validation images; less is better."""
        self._schedule.step()
        error = self.error()
        return {"validation_mse": error, "score": -error}

    @torch.no_grad()
    def error(self) -> float:
        """MSE on the attacker's validation images, by :meth:`invert`."""
        images = self._validation.images
        total = torch.zeros((), device=images.images.device)
        for x, index in Batches(images, _BATCH, shuffle=False):
            total += (self.invert(self._validation(x, index)) - x).square().mean() * len(x)
        return float(total) / len(images)

    @torch.no_grad()
    def invert(self, z: Tensor) -> Tensor:
        """Reconstructions, in evaluation mode."""
        self._decoder.eval()
        images: Tensor = self._decoder(z.to(next(self._decoder.parameters()).dtype))
        return images.float()

    def weights(self) -> dict[str, Any]:
        """The decoder, copied."""
        return copy.deepcopy(self._decoder.state_dict())

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Take the decoder back."""
        self._decoder.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "decoder": self._decoder.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "target": self._target.state_dict(),
            "observations": [self._own.state_dict(), self._validation.state_dict()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, bit for bit."""
        self._decoder.load_state_dict(state["decoder"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"].clone())
        self._decoder.train()  # a checkpoint from inside an epoch is resumed without another epoch_start
        self._target.load_state_dict(state["target"])
        for observations, saved in zip((self._own, self._validation), state["observations"], strict=True):
            observations.load_state_dict(saved)


def _cpu(generator: torch.Generator) -> torch.Generator:
    """A stream for initial weights, which are drawn on the CPU whatever the device."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
