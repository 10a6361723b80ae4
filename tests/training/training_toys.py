"""Small models, images and defenses that the tests of training share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.data import ImageSet
from sfumato.defenses import BoundDefense, Change, Context, Defense, Epoch, Player
from sfumato.models import Dropout, SplitModel, initialize, split
from sfumato.progress import Silent
from sfumato.training import Fit, Plan, Runtime, SplitJob, Training, fit, make_fabric

FABRIC = make_fabric("cpu")
CLASSES = 3
SHAPE = (1, 16, 16)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(n: int = 20, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> ImageSet:
    pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator(seed))
    return ImageSet(pixels, torch.arange(n) % CLASSES, tuple("abc"))


def make_split(
    seed: int = 0, *, width: int = 6, dropout: float = 0.2, norm: bool = True, classes: int = CLASSES
) -> SplitModel:
    """Edge: convolution, pooling to a map of 4x4x4; cloud: dropout and a linear layer."""
    edge = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Conv2d(width, 4, 3, padding=1),
    )
    cloud = nn.Sequential(nn.Flatten(), Dropout(dropout), nn.Linear(64, classes))
    model = nn.Sequential(OrderedDict(first=edge, second=cloud))
    initialize(model, generator(seed))
    return split(model, "first", image_shape=SHAPE)


@dataclass(frozen=True)
class ToyAdversary(Defense):
    """A linear decoder learns x from z; the edge gets -alpha times its error."""

    name: ClassVar[str] = "toy_adversary"
    source: ClassVar[str] = "test"
    alpha: float = 0.5
    every: int = 1
    steps: int = 1
    punish: bool = True

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return BoundToyAdversary(self, split, generator)


class BoundToyAdversary(BoundDefense):
    def __init__(self, spec: ToyAdversary, split: SplitModel, generator: torch.Generator) -> None:
        super().__init__()
        self.spec, self.image_shape = spec, split.image_shape
        sizes = torch.Size(split.feature.shape).numel(), torch.Size(split.image_shape).numel()
        self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(*sizes), nn.Sigmoid())
        initialize(self.decoder, generator)
        self.turns: list[int] = []

    def error(self, ctx: Context) -> Tensor:
        return F.mse_loss(self.decoder(ctx.z_sent), ctx.x.flatten(1))

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        return {} if not self.spec.punish else {"toy": -self.spec.alpha * self.error(ctx)}

    def players(self) -> tuple[Player, ...]:
        def loss(ctx: Context) -> Tensor:
            assert not ctx.z_sent.requires_grad
            assert not ctx.z_clean.requires_grad
            assert not ctx.logits.requires_grad
            self.turns.append(ctx.step)
            return self.error(ctx)

        def adam(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr=0.01)

        return (Player("toy", self.decoder, adam, loss, self.spec.every, self.spec.steps),)


@dataclass(frozen=True)
class ToyPrune(Defense):
    """Keeps the first ``keep`` channels of the edge's first convolution from epoch ``at`` on."""

    name: ClassVar[str] = "toy_prune"
    source: ClassVar[str] = "test"
    at: int = 1
    keep: int = 2

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return BoundToyPrune(self, split)


class BoundToyPrune(BoundDefense):
    def __init__(self, spec: ToyPrune, split: SplitModel) -> None:
        super().__init__()
        self.spec = spec
        self._split = (split,)  # in a tuple: the split's modules are not the defense's

    def defend(self, split: SplitModel) -> SplitModel:
        self._split = (split,)
        return split

    def epoch_start(self, epoch: Epoch) -> Change | None:
        if epoch.index != self.spec.at or self._split[0].edge.first[0].out_channels == self.spec.keep:
            return None
        return Change("pruned", self._resized(self.spec.keep))

    def restore(self, split: SplitModel, weights: Mapping[str, Tensor]) -> SplitModel:
        self._split = (split,)
        stored = len(weights["edge.first.0.weight"])
        return split if stored == split.edge.first[0].out_channels else self._resized(stored)

    def _resized(self, width: int) -> SplitModel:
        old = self._split[0]
        stage = old.edge.first
        new = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), *stage[2:4], nn.Conv2d(width, 4, 3, padding=1)
        )
        keep = min(width, stage[0].out_channels)
        with torch.no_grad():
            for i, names in ((0, ("weight", "bias")), (1, ("weight", "bias", "running_mean", "running_var"))):
                for name in names:
                    getattr(new[i], name)[:keep] = getattr(stage[i], name)[:keep]
            new[4].weight[:, :keep] = stage[4].weight[:, :keep]
            new[4].bias.copy_(stage[4].bias)
        edge = nn.Sequential(OrderedDict(first=new))
        self._split = (old.with_parts(edge=edge, bounds=old.feature.bounds),)
        return self._split[0]


class Recorder(Silent):
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def start(self, title: str, total: int, done: int = 0) -> None:
        self.told.append(("start", title, total, done))

    def advance(self, steps: int = 1) -> None:
        self.told.append(("advance", steps))

    def note(self, text: str) -> None:
        self.told.append(("note", text))

    def finish(self) -> None:
        self.told.append(("finish",))


def stop_after(calls: int) -> Callable[[], bool]:
    """True at that call only, as a signal is that comes once."""
    count = 0

    def asked() -> bool:
        nonlocal count
        count += 1
        return count == calls

    return asked


@dataclass
class Case:
    """One training, built anew from its seeds at every call."""

    defense: Defense
    training: Training
    images: ImageSet = field(default_factory=make_images)
    validation: ImageSet = field(default_factory=lambda: make_images(11, seed=1))
    augment: Any = None
    seed: int = 3
    select_from: int | None = None  # the last epoch
    split: Callable[[], SplitModel] = make_split

    def job(self, runtime: Runtime) -> SplitJob:
        model = self.split()
        bound = self.defense.bind(model, generator=generator(5))
        model = bound.defend(model)
        return SplitJob(model, bound, self.training, self.images, self.validation, seed=self.seed, runtime=runtime)

    def plan(self) -> Plan:
        t = self.training
        first = t.epochs - 1 if self.select_from is None else self.select_from
        return Plan(t.epochs, t.batch_size, self.seed, self.augment, first)

    def run(self, folder: Path | None = None, **options: Any) -> Outcome:
        runtime = Runtime(fabric=FABRIC, folder=folder, **options)
        job = self.job(runtime)
        result = fit(job, self.images, self.plan(), runtime)
        log = (folder / "metrics.jsonl").read_bytes() if folder else b""
        return Outcome(result, job.state_dict(), log, job)


@dataclass
class Outcome:
    fit: Fit
    state: dict[str, Any]
    log: bytes
    job: SplitJob


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through any nesting."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and same_bits(a.cpu(), b.cpu())
    if isinstance(a, Mapping):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def assert_same_outcome(a: Outcome, b: Outcome) -> None:
    assert a.fit == b.fit
    assert a.log == b.log
    for part in a.state:
        assert same(a.state[part], b.state[part]), part
