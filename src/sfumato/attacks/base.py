"""The contract of an attack."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from sfumato.attacks.threat import BlackBox, ThreatModel
from sfumato.data import ImageSet
from sfumato.errors import InputError
from sfumato.metrics import Quality, quality
from sfumato.training import Runtime

_BATCH = 256

Inverter = Callable[[Tensor], Tensor]
"""Intercepted features (N, ...) to reconstructions (N, C, H, W) in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """The images an attacker owns.

    Attributes:
        train: It learns from these.
        validation: It selects on these; none of them is judged.
        origin: ``train`` where they are the model's own training images (the papers' worst case), ``auxiliary``
            where the model never saw them.
    """

    train: ImageSet
    validation: ImageSet
    origin: Literal["train", "auxiliary"]

    def to(self, device: torch.device | str) -> Knowledge:
        """All images on ``device``."""
        return replace(self, train=self.train.to(device), validation=self.validation.to(device))


@dataclass(frozen=True, eq=False)
class Learned:
    """What ``run`` gives back.

    Attributes:
        invert: From intercepted features to images.
        figures: Of its own training, for suspicions: e.g. the loss before and after.
        diverged: Whether a loss was not finite.
    """

    invert: Inverter
    figures: Mapping[str, float] = field(default_factory=dict)
    diverged: bool = False


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack made of intercepted features.

    Attributes:
        images: Reconstructions of each group of victims, (N, C, H, W) in [0, 1], on the CPU.
        quality: Per-image figures of each group.
        threat_model: What was exposed.
        queries: Images that the attacker sent through the edge.
        seconds: Wall clock, training included.
        figures: Of the attack's own training.
        diverged: Whether a loss of the attack was not finite.
    """

    images: Mapping[str, Tensor]
    quality: Mapping[str, Quality]
    threat_model: ThreatModel
    queries: int
    seconds: float
    figures: Mapping[str, float]
    diverged: bool


@dataclass(frozen=True)
class Attack(ABC):
    """A frozen description; its fields are its arguments. Authors write :meth:`run`, and never see a victim's image.

    Attributes:
        name: How it is registered.
        source: The paper it is from.
        threat_models: Which targets it can work on.
        cost: In words: what it costs the attacker.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    threat_models: ClassVar[frozenset[ThreatModel]]
    cost: ClassVar[str]

    @abstractmethod
    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Learn to invert the target's features."""

    def check(self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...]) -> None:  # noqa: B027 (a hook)
        """Say before anything is trained that such images or features cannot be attacked.

        Raises:
            InputError: The attack cannot work on them.
        """

    @final
    def __call__(
        self,
        target: BlackBox,
        knowledge: Knowledge,
        victims: Mapping[str, ImageSet],
        *,
        generator: torch.Generator,
        runtime: Runtime | None = None,
    ) -> Reconstruction:
        """Learn from the target, intercept the victims' features, reconstruct, and judge.

        The victims' images pass through the deployed channel; only their features reach the attack.

        Args:
            target: What the threat model exposes.
            knowledge: The attacker's own images.
            victims: Groups of images to reconstruct, by name (``train``, ``test``).
            generator: All that the attack draws.
            runtime: Device, folder for resuming, progress.

        Raises:
            InputError: The attack cannot work on such a target, or some images have another shape than its.
        """
        runtime = runtime or Runtime()
        self._validate(target, knowledge, victims)
        started, asked_before = time.perf_counter(), target.queries
        knowledge = knowledge.to(runtime.device)
        learned = self.run(target, knowledge, generator=generator, runtime=runtime)
        queries = target.queries - asked_before  # interception is the victims' doing, not the attacker's
        images = {name: self._reconstruct(target, group.to(runtime.device), learned) for name, group in victims.items()}
        seconds = time.perf_counter() - started
        judged = {name: quality(images[name], group.images / 255) for name, group in victims.items()}
        return Reconstruction(images, judged, target.threat_model, queries, seconds, learned.figures, learned.diverged)

    def describe(self) -> dict[str, Any]:
        """Its name and arguments, ready for JSON."""
        return {"attack": self.name, **dataclasses.asdict(self)}

    def _validate(self, target: BlackBox, knowledge: Knowledge, victims: Mapping[str, ImageSet]) -> None:
        if target.threat_model not in self.threat_models:
            accepted = f"one of {', '.join(sorted(self.threat_models))}"
            raise InputError(f"attack {self.name}: threat model", target.threat_model, accepted)
        groups = {"knowledge.train": knowledge.train, "knowledge.validation": knowledge.validation}
        groups |= {f"victims.{name}": group for name, group in victims.items()}
        for name, group in groups.items():
            if group.image_shape != target.image_shape:
                raise InputError(f"{name} (image shape)", group.image_shape, str(target.image_shape))

    @staticmethod
    def _reconstruct(target: BlackBox, group: ImageSet, learned: Learned) -> Tensor:
        made = []
        for part in torch.split(group.images, _BATCH):
            image = learned.invert(target.query(part / 255)).detach().cpu()
            # An attack that diverged is judged by a black picture, and flagged; NaN would poison every mean.
            made.append(image.nan_to_num(0.0).clamp(0, 1))
        return torch.cat(made)

    def _require(self, valid: bool, field: str, accepted: str) -> None:
        if not valid:
            raise InputError(f"{self.name}.{field}", getattr(self, field), accepted)
