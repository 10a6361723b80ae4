"""Train a split model under a defense: what one step of the loop does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sfumato.data import Batches, ImageSet
from sfumato.defenses import BoundDefense, Change, Context, Epoch, Player, clean_features
from sfumato.errors import Interrupted
from sfumato.information import ClassMixture
from sfumato.information.grouping import Total, alone
from sfumato.models import SplitModel, set_generator
from sfumato.training.loop import steps_per_epoch, training_batches
from sfumato.training.runtime import Runtime
from sfumato.training.settings import Training, load_optimizer, make_optimizer, make_schedule

_EVALUATION_BATCH = 512


class Objective(nn.Module):
    """All losses of a batch in one forward pass, which is what data parallelism needs to see."""

    def __init__(
        self, split: SplitModel, defense: BoundDefense, generator: torch.Generator, total: Total = alone
    ) -> None:
        super().__init__()
        self.split, self.defense, self._generator = split, defense, generator
        self._total = total

    def forward(
        self, x: Tensor, y: Tensor, epoch: int, step: int, lr: float
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Named losses, and what players train on: clean feature, sent feature, logits."""
        z_clean = self.split.edge(x)
        z_sent = self.split.channel(z_clean)
        logits = self.split.cloud(z_sent)
        ctx = Context(x, y, z_clean, z_sent, logits, epoch, step, lr, self._generator, self._total)
        losses = {"cross_entropy": F.cross_entropy(logits, y), **self.defense.losses(ctx)}
        return losses, (z_clean.detach(), z_sent.detach(), logits.detach())


class SplitJob:
    """A split model, its defense and the defense's players, learning together.

    Args:
        split: As the defense left it (``bound.defend(split)``).
        defense: Bound to it.
        training: The recipe.
        images: Training images, for the defense's own passes.
        validation: Selects the epoch; never the test images.
        seed: Of channel noise, dropout and whatever losses draw.
        runtime: Where it runs.
        title: For the progress bar.
    """

    def __init__(
        self,
        split: SplitModel,
        defense: BoundDefense,
        training: Training,
        images: ImageSet,
        validation: ImageSet,
        *,
        seed: int,
        runtime: Runtime,
        title: str = "train",
    ) -> None:
        self.title = title
        self.defense, self._training = defense, training
        self._images, self._validation = images, validation
        self._seed, self._runtime = seed, runtime
        self._generator = runtime.generator(seed)
        self._steps = steps_per_epoch(len(images), training.batch_size, runtime.fabric.world_size)
        self._set_up(split.to(runtime.device))
        self._players = [_Turn(player, runtime.fabric) for player in defense.players()]

    @property
    def split(self) -> SplitModel:
        """The model being trained."""
        return self._objective.split

    def epoch_start(self, epoch: int) -> bool:
        """Let the defense start its epoch, and train players ahead of the first.

        Returns:
            Whether the defense changed the architecture; the optimizer is then a new one, and weights kept of earlier
            epochs are of a model that is no longer wanted.
        """
        change = self.defense.epoch_start(self._epoch(epoch))
        if change is not None:
            self._rebuild(change)
        self._objective.train()
        set_generator(self._objective, self._generator)
        if epoch == 0:
            self._pretrain()
        return change is not None

    def step(self, x: Tensor, y: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        """One step of the model on all losses, then the players whose turn it is."""
        lr = float(self._optimizer.param_groups[0]["lr"])
        losses, seen = self._module(x, y, epoch, step, lr)
        self._optimizer.zero_grad()
        self._runtime.fabric.backward(_total(losses))
        self._optimizer.step()
        self._schedule.step()
        reported = {name: value.detach() for name, value in losses.items()}
        if self._players:
            x, z_clean, z_sent, logits = map(self._converted, (x, *seen))
            ctx = Context(x, y, z_clean, z_sent, logits, epoch, step, lr, self._generator)
            for turn in self._players:
                reported |= turn(ctx)
        return reported

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Validation loss and accuracy through the channel; the accuracy is the score."""
        self.defense.epoch_end(self._epoch(epoch))
        loss, right = self._runtime.fabric.broadcast(self._validate())
        self._schedule.epoch_end(loss)
        return {"validation_loss": loss, "validation_accuracy": right, "score": right}

    def weights(self) -> dict[str, Any]:
        """Split and defense, copied."""
        return {
            "split": _copy(self.split.state_dict()),
            "defense": _copy(self.defense.state_dict()),
        }

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Take weights back, in the architecture they were saved in."""
        reshaped = self.defense.restore(self.split, weights["split"])
        if reshaped is not self.split:
            self._rebuild(Change("restored", reshaped))
        self.split.load_state_dict(weights["split"])
        self.defense.load_state_dict(weights["defense"])

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "weights": {"split": self.split.state_dict(), "defense": self.defense.state_dict()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "players": [turn.optimizer.state_dict() for turn in self._players],
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, bit for bit."""
        self.load_weights(state["weights"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        for turn, saved in zip(self._players, state["players"], strict=True):
            load_optimizer(turn.optimizer, saved)
        self._generator.set_state(state["generator"].clone())
        # A checkpoint from inside an epoch is resumed without another epoch_start.
        self._objective.train()
        set_generator(self._objective, self._generator)

    def _set_up(self, split: SplitModel) -> None:
        objective = Objective(split, self.defense.to(self._runtime.device), self._generator, self._runtime.total)
        self._objective: Objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        players = {p for player in self.defense.players() for p in player.module.parameters() if p.requires_grad}
        trained = [p for p in objective.parameters() if p.requires_grad and p not in players]
        optimizer = make_optimizer(trained, self._training)
        self._schedule = make_schedule(optimizer, self._training, self._steps)
        # Data parallelism must not wait for the players' gradients: those are averaged in their own turn.
        for parameter in players:
            parameter.requires_grad_(False)
        # Mixtures are large, and alike in all processes without being sent around before each step.
        own = [
            f"{path}.{name}"
            for path, module in objective.named_modules()
            if isinstance(module, ClassMixture)
            for name, _ in module.named_buffers()
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, own)  # type: ignore[no-untyped-call]
        self._module, self._optimizer = self._runtime.fabric.setup(objective, optimizer)
        for parameter in players:
            parameter.requires_grad_(True)

    def _rebuild(self, change: Change) -> None:
        """A new optimizer for a new architecture, at the learning rate the schedule had reached."""
        schedule = self._schedule.state_dict()
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._set_up(change.split.to(self._runtime.device))
        self._schedule.load_state_dict(schedule)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _epoch(self, index: int) -> Epoch:
        features = partial(clean_features, self.split, self._batches)
        # A stream of its own each epoch, the same in every process: what a hook draws must not set them apart.
        generator = self._runtime.generator(self._seed + 1_000_003 * (index + 1), shared=True)
        agree = self._runtime.fabric.broadcast
        return Epoch(index, self._training.epochs, features, generator, self._batches, self.split, agree)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in Batches(self._images, _EVALUATION_BATCH, shuffle=False):
            yield self._converted(x.contiguous(memory_format=torch.channels_last)), y

    def _pretrain(self) -> None:
        """Train the players that ask for it, while the model stands still."""
        order = self._runtime.generator(self._seed + 2, shared=True)
        # In training mode, as the model's own steps: a fresh edge's running statistics say nothing of its features.
        kept = {name: buffer.clone() for name, buffer in self.split.named_buffers()}
        for done in range(max((turn.pretrain_epochs for turn in self._players), default=0)):
            for x, y in training_batches(self._images, self._training.batch_size, order, self._runtime):
                ctx = self._seen(x, y)
                for turn in self._players:
                    if done < turn.pretrain_epochs:
                        turn.step(ctx)
                if self._runtime.fabric.strategy.reduce_boolean_decision(self._runtime.should_stop(), all=False):
                    raise Interrupted("stopped before the model's first step; the players begin again")
        for name, buffer in self.split.named_buffers():
            buffer.copy_(kept[name])

    @torch.no_grad()
    def _seen(self, x: Tensor, y: Tensor) -> Context:
        """What a player sees of a batch before the model's first step."""
        x = self._converted(x.contiguous(memory_format=torch.channels_last))
        z_clean = self.split.edge(x)
        z_sent = self.split.channel(z_clean)
        lr = float(self._optimizer.param_groups[0]["lr"])
        return Context(x, y, z_clean, z_sent, self.split.cloud(z_sent), 0, 0, lr, self._generator)

    def _converted(self, tensor: Tensor) -> Tensor:
        """In the precision that Fabric gave the weights, for calls that do not go through it."""
        return tensor.to(next(self.split.parameters()).dtype)

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        self.split.eval()
        # A stream of its own, the same each epoch: epochs are compared under one noise, and training's goes on.
        # In every process too: the learning rate and the selection may depend on it.
        set_generator(self.split, self._runtime.generator(self._seed + 1, shared=True))
        loss = torch.zeros((), device=self._runtime.device)
        right = torch.zeros((), device=self._runtime.device, dtype=torch.int64)
        for x, y in Batches(self._validation, _EVALUATION_BATCH, shuffle=False):
            logits = self.split(self._converted(x.contiguous(memory_format=torch.channels_last)))
            loss += F.cross_entropy(logits, y, reduction="sum")
            right += (logits.argmax(1) == y).sum()
        set_generator(self.split, self._generator)
        self.split.train()
        return float(loss) / len(self._validation), int(right) / len(self._validation)


class _Turn:
    """A player with its optimizer, stepped at its cadence."""

    def __init__(self, player: Player, fabric: Fabric) -> None:
        self._player, self._fabric = player, fabric
        self.pretrain_epochs = player.pretrain_epochs
        self.optimizer: Any = fabric.setup_optimizers(player.optimizer(player.module.parameters()))

    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        if (ctx.step + 1) % self._player.every:
            return {}
        for _ in range(self._player.steps):
            loss = self.step(ctx)
        return {f"player_{self._player.name}": loss}

    def step(self, ctx: Context) -> Tensor:
        """One step of the player; its loss before it."""
        loss = self._player.loss(ctx)
        self.optimizer.zero_grad()
        self._fabric.backward(loss)
        self._average_gradients()
        self.optimizer.step()
        return loss.detach()

    def _average_gradients(self) -> None:
        if self._fabric.world_size > 1:
            for parameter in self._player.module.parameters():
                if parameter.grad is not None:
                    parameter.grad = self._fabric.all_reduce(parameter.grad, reduce_op="mean")  # type: ignore[assignment]


def _total(losses: dict[str, Tensor]) -> Tensor:
    total = losses["cross_entropy"]
    for name, value in losses.items():
        if name != "cross_entropy":
            total = total + value
    return total


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
