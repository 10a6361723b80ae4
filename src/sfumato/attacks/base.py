"""The contract of an attack."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from sfumato.attacks.keeping import Pieces
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, ThreatModel, wire
from sfumato.data import ImageSet
from sfumato.errors import BudgetError, InputError, Interrupted
from sfumato.metrics import Quality, quality
from sfumato.storage import hash_of
from sfumato.training import Runtime

_BATCH = 256
_LEAST = 2
"""Images that an attack which learns from pairs cannot do without: one to learn from, one to select on."""

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

    def __len__(self) -> int:
        return len(self.train) + len(self.validation)

    def to(self, device: torch.device | str) -> Knowledge:
        """All images on ``device``."""
        return replace(self, train=self.train.to(device), validation=self.validation.to(device))

    def limited(self, images: int, generator: torch.Generator) -> Knowledge:
        """So many images of these, drawn from ``generator``; at most a tenth of them select.

        Fewer of them drawn from the same generator are among more.

        Raises:
            InputError: Less than two images, or more than there are.
        """
        if not 2 <= images <= len(self):
            raise InputError("images", images, f"2 to {len(self)}, the attacker's images")
        held = min(len(self.validation), max(1, images // 10, images - len(self.train)))
        return replace(
            self,
            train=_drawn(self.train, images - held, generator),
            validation=_drawn(self.validation, held, generator),
        )


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
        queries: Images that the attacker sent through the edge, repetitions included.
        owned: Images of its own that it had.
        observations: Interceptions of each victim's feature, of which it got the mean.
        seconds: Wall clock, training included.
        figures: Of the attack's own training.
        diverged: Whether a loss of the attack, or a pixel of what it made, was not finite.
    """

    images: Mapping[str, Tensor]
    quality: Mapping[str, Quality]
    threat_model: ThreatModel
    queries: int
    owned: int
    observations: int
    seconds: float
    figures: Mapping[str, float]
    diverged: bool


@dataclass(frozen=True)
class Attack(ABC):
    """A frozen description; its fields are its arguments. Authors write :meth:`run`, and never see a victim's image.

    What the attacker may spend and touch is the same four arguments for all; the library sees to them.

    Args:
        observations: How often each victim's feature is intercepted, from fresh sendings of the same image. The attack
            gets their mean, and learns from such means.
        images: How many of its own images the attacker has; ``None`` for all that there are.
        queries: How many images it may send through the edge, repetitions included; ``None`` for any number.
        threat_model: What it may touch, one of ``threat_models``; ``None`` for what the evaluation says.

    Attributes:
        name: How it is registered.
        source: The paper it is from.
        threat_models: Which targets it can work on.
        cost: In words: what it costs the attacker.
        query_free: Whether it sends nothing through the edge. Others need two images at least.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    threat_models: ClassVar[frozenset[ThreatModel]]
    cost: ClassVar[str]
    query_free: ClassVar[bool] = False

    _: KW_ONLY
    observations: int = 1
    images: int | None = None
    queries: int | None = None
    threat_model: ThreatModel | None = None

    def __post_init__(self) -> None:
        self._require(self.observations >= 1, "observations", "1 or more")
        self._require(self.images is None or self.images >= 2, "images", "2 or more, or none for all")
        self._require(self.queries is None or self.queries >= 0, "queries", "0 or more, or none for any number")
        able = [model for model in THREAT_MODELS if model in self.threat_models]
        valid = self.threat_model is None or self.threat_model in able
        self._require(valid, "threat_model", f"{', '.join(able)}, or none for the evaluation's")

    @abstractmethod
    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        """Learn to invert the target's features."""

    def check(
        self, image_shape: tuple[int, int, int], feature_shape: tuple[int, ...], threat_model: ThreatModel
    ) -> None:
        """Say before anything is trained that such images or features cannot be attacked, or not by such an attacker.

        Authors who know more call this first, and then look at what their attack needs.

        Raises:
            InputError: The attack cannot work on them.
        """
        self.allowed(threat_model)

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

        The victims' images pass through the deployed channel; only their features reach the attack. Reconstructions are
        kept in the runtime's folder after each batch of victims: the same call, stopped at any moment, goes on there.

        Args:
            target: What the threat model exposes.
            knowledge: The attacker's own images.
            victims: Groups of images to reconstruct, by name (``train``, ``test``).
            generator: All that the attack draws.
            runtime: Device, folder for resuming, progress.

        Raises:
            InputError: The attack cannot work on such a target, some images have another shape than its, or the
                attacker has not as many.
            BudgetError: The attack cannot do with so few queries.
            Interrupted: The runtime was asked to stop; what is finished is kept.
        """
        runtime = runtime or Runtime()
        self._validate(target, knowledge, victims)
        started, asked_before = time.perf_counter(), target.queries
        if self.images is not None:
            knowledge = knowledge.limited(self.images, generator)
        own = target.under(observations=self.observations, queries=self.queries)
        learned = self.run(own, knowledge.to(runtime.device), generator=generator, runtime=runtime)
        pieces = self.pieces(target, knowledge, generator=generator, runtime=runtime)
        intercepted = wire(target, self.observations)
        images, finite = _reconstruct(intercepted, victims, learned, pieces, runtime.device)
        seconds = time.perf_counter() - started
        judged = {name: quality(images[name], group.images / 255) for name, group in victims.items()}
        return Reconstruction(
            images,
            judged,
            target.threat_model,
            target.queries - asked_before,
            len(knowledge),
            self.observations,
            seconds,
            learned.figures,
            learned.diverged or not finite,
        )

    def pieces(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Pieces:
        """Keeps what this attack has finished; for a :meth:`run` that does long work other than training."""

        def origin() -> dict[str, Any]:
            own = [knowledge.train.checksum(), knowledge.validation.checksum()]
            return {"attack": hash_of(self.describe()), "threat_model": target.threat_model, "knowledge": own}

        return Pieces(origin, target, generator, runtime)

    @property
    def least_queries(self) -> int:
        """Images that it cannot do without sending, repetitions included."""
        return 0 if self.query_free else _LEAST * self.observations

    def allowed(self, threat_model: ThreatModel) -> None:
        """Say before anything is trained that such an attacker may not touch what the attack needs.

        Raises:
            InputError: So it is.
        """
        able = self.threat_models if self.threat_model is None else {self.threat_model}
        if threat_model not in able:
            accepted = f"one of {', '.join(sorted(able))}"
            raise InputError(f"{self.name}.threat_model", threat_model, accepted)

    def affordable(self, knowledge: Knowledge) -> None:
        """Say before anything is trained that the attacker has not as many images, or may not send as many.

        Raises:
            InputError: It is to use more images than there are.
            BudgetError: Its queries are too few for any attack that learns from pairs.
        """
        if self.images is not None and self.images > len(knowledge):
            raise InputError(f"{self.name}.images", self.images, f"up to {len(knowledge)}, the attacker's images")
        if self.queries is not None and self.queries < self.least_queries:
            accepted = f"at least {self.least_queries}: one image to learn from, one to select on"
            raise BudgetError(f"{self.name}.queries", self.queries, accepted)

    def describe(self) -> dict[str, Any]:
        """Its name and arguments, ready for JSON."""
        return {"attack": self.name, **dataclasses.asdict(self)}

    def _validate(self, target: BlackBox, knowledge: Knowledge, victims: Mapping[str, ImageSet]) -> None:
        self.check(target.image_shape, target.feature_shape, target.threat_model)
        self.affordable(knowledge)
        groups = {"knowledge.train": knowledge.train, "knowledge.validation": knowledge.validation}
        groups |= {f"victims.{name}": group for name, group in victims.items()}
        for name, group in groups.items():
            if group.image_shape != target.image_shape:
                raise InputError(f"{name} (image shape)", group.image_shape, str(target.image_shape))

    def _require(self, valid: bool, field: str, accepted: str) -> None:
        if not valid:
            raise InputError(f"{self.name}.{field}", getattr(self, field), accepted)


def _reconstruct(
    target: BlackBox, victims: Mapping[str, ImageSet], learned: Learned, pieces: Pieces, device: torch.device
) -> tuple[dict[str, Tensor], bool]:
    """The pictures of each group, and whether all that the attack answered was finite."""
    batches = [(name, part) for name, group in victims.items() for part in torch.split(group.images, _BATCH)]
    made: dict[str, list[Tensor]] = {name: [] for name in victims}
    figures = {name: float(value) for name, value in learned.figures.items()}
    finite = True

    def pictures(z: Tensor) -> Tensor:
        return learned.invert(z).detach().cpu()

    for i, (name, part) in enumerate(batches, 1):
        # Sent again by a call that goes on: the features tell whether it is the same model and the same victims.
        z = target.query(part.to(device) / 255)
        answer = pieces(f"victims{i}", partial(pictures, z), z, figures).cpu()
        finite = finite and bool(answer.isfinite().all())
        # NaN is judged as black, for it would poison every mean. Kept as it is, a call that goes on sees it too.
        made[name].append(answer.nan_to_num(0.0).clamp(0, 1))
        if i < len(batches) and pieces.stop_is_due():
            raise Interrupted(f"stopped after batch {i} of {len(batches)} of the victims; they are kept")
    return {name: torch.cat(parts) for name, parts in made.items()}, finite


def _drawn(images: ImageSet, count: int, generator: torch.Generator) -> ImageSet:
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    return images.select(order[:count].to(images.labels.device))
