"""The contract of a defense.

A :class:`Defense` is a frozen, printable description. ``bind(split, generator=...)`` gives a :class:`BoundDefense`,
a module that holds what the defense learns or tracks, with hooks that default to doing nothing. What a hook puts into
the split (a bottleneck's convolutions, a channel's noise) belongs to the split from then on: it is trained, saved
and deployed with it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information.grouping import Total, alone
from sfumato.models import SplitModel


@dataclass(frozen=True)
class Context:
    """What a training step knows.

    Attributes:
        x: Images (N, C, H, W) in [0, 1], after augmentation.
        y: Labels (N,).
        z_clean: edge(x).
        z_sent: channel(z_clean), what leaves the device.
        logits: (N, K).
        epoch: From 0.
        step: From 0, over all epochs.
        lr: Learning rate of the model's optimizer at this step.
        generator: For whatever a loss draws.
        total: Sums a tensor over the processes that share the batch, all of which must call it alike. Gradients are
            averaged over them.
    """

    x: Tensor
    y: Tensor
    z_clean: Tensor
    z_sent: Tensor
    logits: Tensor
    epoch: int
    step: int
    lr: float
    generator: torch.Generator
    total: Total = alone

    def detached(self) -> Context:
        """The same, cut off from the model's graph: what a player trains on."""
        return replace(self, z_clean=self.z_clean.detach(), z_sent=self.z_sent.detach(), logits=self.logits.detach())


@dataclass(frozen=True)
class Epoch:
    """What ``epoch_start`` and ``epoch_end`` know.

    Attributes:
        index: From 0.
        total: Number of epochs of this training.
        features: Starts a pass over (clean feature, label) batches of the training images, in evaluation mode,
            without augmentation and without gradient. Of all of them in each process.
        generator: For whatever the hook draws; the same stream in each process.
        batches: Starts a pass over (image, label) batches of all training images, in their own order, without
            augmentation, in the precision of the weights. The same in each process.
        split: The model as it is now, in training mode; ``None`` only where no model is being trained.
        agree: From what this process decided to what the first one did, for what all have to decide alike.
    """

    index: int
    total: int
    features: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    generator: torch.Generator
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]] = tuple
    split: SplitModel | None = None
    agree: Callable[[Any], Any] = lambda decision: decision

    def after(self, change: Change) -> Epoch:
        """What is known once a part has changed the architecture: features are those of the new halves."""
        features = partial(clean_features, change.split, self.batches)
        return replace(self, split=change.split, features=features)


def clean_features(
    split: SplitModel, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over (clean feature, label): in evaluation mode, without gradient; the mode is put back at its end."""
    was_training = split.training
    split.eval()
    try:
        for x, y in batches():
            with torch.no_grad():  # around the edge alone: whoever reads the features may want gradients
                z = split.edge(x)
            yield z, y
    finally:
        split.train(was_training)


@dataclass(frozen=True)
class Change:
    """Returned by ``epoch_start`` when the architecture changed (pruning): the loop then rebuilds its optimizer.

    Attributes:
        reason: For the log.
        split: The new halves, sharing what did not change.
    """

    reason: str
    split: SplitModel


@dataclass(frozen=True, eq=False)
class Player:
    """A network beside the model with a loss, an optimizer and a cadence of its own.

    Attributes:
        name: Its loss's name in the log.
        module: What it trains.
        optimizer: From its parameters to an optimizer.
        loss: From a detached context to a scalar.
        every: A turn after every so many model steps.
        steps: Steps in a turn.
        pretrain_epochs: Passes over the training images, a step a batch, before the model's first step.
    """

    name: str
    module: nn.Module
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    loss: Callable[[Context], Tensor]
    every: int = 1
    steps: int = 1
    pretrain_epochs: int = 0


class BoundDefense(nn.Module):
    """A defense at work on one split model. Every hook defaults to doing nothing."""

    def wrap_edge(self, edge: nn.Module) -> nn.Module:
        """The edge, with what the defense adds to it."""
        return edge

    def bounds(self, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        """Smallest and largest value of the wrapped edge's feature."""
        return bounds

    def channel(self) -> nn.Module | None:
        """What is done to the feature before it is sent, after what earlier parts do; ``None`` for nothing."""
        return None

    def noise_variance(self) -> float:
        """Variance per element of the Gaussian noise that :meth:`channel` adds."""
        return 0.0

    def wrap_cloud(self, cloud: nn.Module) -> nn.Module:
        """The cloud, with what the defense adds to it."""
        return cloud

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        """Named scalars, added to the model's loss; their weights are already in them."""
        return {}

    def players(self) -> tuple[Player, ...]:
        """Networks trained against or beside the model."""
        return ()

    def epoch_start(self, epoch: Epoch) -> Change | None:
        """Called before each epoch."""
        return None

    def epoch_end(self, epoch: Epoch) -> None:
        """Called after each epoch."""

    def restore(self, split: SplitModel, weights: Mapping[str, Tensor]) -> SplitModel:
        """The split in the architecture that saved ``weights`` have; for defenses that return a :class:`Change`."""
        return split

    def shield(self, probabilities: Tensor) -> Tensor:
        """Answers (N, K) as they are given out."""
        return probabilities

    def theory(self) -> dict[str, float]:
        """Figures that the defense tracks and a card reports."""
        return {}

    def defend(self, split: SplitModel) -> SplitModel:
        """The split with everything this defense puts into it. Calling it again gives the same modules again."""
        edge = self.wrap_edge(split.edge)
        added = self.channel()
        noise = self.noise_variance()
        return split.with_parts(
            edge=edge if edge is not split.edge else None,
            bounds=self.bounds(split.feature.bounds),
            channel=added if isinstance(split.channel, nn.Identity) else _after(split.channel, added),
            cloud=self.wrap_cloud(split.cloud),
            noise_variance=split.feature.noise_variance + noise if noise else None,
        )


def _after(first: nn.Module, second: nn.Module | None) -> nn.Module:
    return first if second is None else nn.Sequential(first, second)


@dataclass(frozen=True)
class Defense(ABC):
    """A frozen description; its fields are its arguments. Subclasses validate them in ``__post_init__``.

    Attributes:
        name: How it is registered.
        source: The paper it is from.
        needs_bounded_feature: Whether it is meaningless on a feature that the edge can scale up.
        watches: Whether it puts nothing into the split and only watches it: a chain binds it to the finished split.
        least_epochs: Length of the shortest training in which it is at work; shorter ones are refused.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    needs_bounded_feature: ClassVar[bool] = False
    watches: ClassVar[bool] = False
    least_epochs: ClassVar[int] = 1

    def bind(self, split: SplitModel, *, generator: torch.Generator) -> BoundDefense:
        """Set the defense up for one split model.

        Args:
            split: As earlier parts of a chain left it.
            generator: Source of initial weights.

        Raises:
            InputError: The defense cannot work on this split.
        """
        if self.needs_bounded_feature and split.feature.bounds is None:
            raise InputError(
                f"defense {self.name}",
                "a feature without bounds",
                "a bounded feature, which the edge cannot scale up against the noise: put bottleneck before it",
            )
        return self._bind(split, generator)

    @abstractmethod
    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        """What :meth:`bind` gives once the split is known to fit."""

    def parts(self) -> tuple[Defense, ...]:
        """The defense as a chain of parts; one part is a chain of itself."""
        return (self,)

    def describe(self) -> list[dict[str, Any]]:
        """Names and arguments of its parts, ready for JSON; :func:`sfumato.defenses.build` reads it back."""
        return [{"part": part.name, **dataclasses.asdict(part)} for part in self.parts()]

    def _require(self, valid: bool, field: str, accepted: str) -> None:
        if not valid:
            raise InputError(f"{self.name}.{field}", getattr(self, field), accepted)
