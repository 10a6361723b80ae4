"""Small targets, attackers' images and attacks that the tests of attacks share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from sfumato.attacks import (
    THREAT_MODELS,
    Attack,
    BlackBox,
    DecoderAttack,
    DeepPriorAttack,
    EnsembleAttack,
    GANAttack,
    GeneratorAttack,
    Knowledge,
    LatentPriorAttack,
    Learned,
    RMLEAttack,
    ThreatModel,
    make_target,
)
from sfumato.data import ImageSet
from sfumato.defenses import Bottleneck, Dropout, Noise, chain
from sfumato.models import Dropout as ClassifierDropout
from sfumato.models import SplitModel, initialize, set_generator, split
from sfumato.training import Runtime, make_fabric

FABRIC = make_fabric("cpu")
SHAPE = (1, 16, 16)
# The contract table: every registered attack, with arguments that make it quick.
CONTRACT: dict[str, Attack] = {
    "decoder": DecoderAttack(depth=0, width=4, epochs=2, batch_size=8),
    "ensemble": EnsembleAttack(architectures=("unet", "residual"), depth=1, width=4, epochs=2, batch_size=8),
    "gan": GANAttack(depth=0, width=4, critic_width=2, epochs=2, critic_steps=2, batch_size=8, pretrain_epochs=1),
    "generator": GeneratorAttack(width=4, epochs=2, batch_size=8),
    "latent_prior": LatentPriorAttack(width=4, epochs=1, batch_size=8, steps=3, refine_steps=3),
    "deep_prior": DeepPriorAttack(steps=4, width=4, depth=2, inputs=2),
    "rmle": RMLEAttack(steps=6, tv=0.1, start="noise", restarts=2, stages=2),
}
QUERY_FREE = frozenset({"rmle", "deep_prior"})
"""They use their own copy of the device."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(n: int = 20, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> ImageSet:
    pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator(seed))
    return ImageSet(pixels, torch.arange(n) % 3, tuple("abc"))


def make_split(defended: bool = True) -> SplitModel:
    edge = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), ClassifierDropout(0.5), nn.AvgPool2d(4)
    )
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = nn.Sequential(OrderedDict(first=edge, second=cloud))
    initialize(model, generator(0))
    made = split(model, "first", image_shape=SHAPE)
    # Statistics that are not the initial ones, as of a trained model.
    made.train()
    set_generator(made, generator(1))
    made(make_images(30, seed=9).images / 255)
    if defended:
        made = chain(Bottleneck(2), Noise(0.1), Dropout(0.1)).bind(made, generator=generator(2)).defend(made)
    set_generator(made, generator(1))
    return made


def identity_split(channel: nn.Module | None = None) -> SplitModel:
    """The edge sends the image as it is."""
    model = nn.Sequential(OrderedDict(first=nn.Identity(), second=nn.Flatten()))
    made = split(model, "first", image_shape=SHAPE)
    return made if channel is None else made.with_parts(channel=channel)


class Detached(nn.Module):
    """Sends the feature, and keeps no graph at all."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.detach()


class Compared(nn.Module):
    """Sends one bit an element; comparing keeps no graph either."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z > 0.5).to(z.dtype)


def make_knowledge() -> Knowledge:
    return Knowledge(make_images(24, seed=3), make_images(9, seed=4), "auxiliary")


def target_of(model: SplitModel, threat_model: ThreatModel = "black-box", seed: int = 7) -> BlackBox:
    return make_target(model, threat_model, generator=generator(seed))


def runtime(**options: Any) -> Runtime:
    return Runtime(fabric=FABRIC, **options)


@dataclass(frozen=True)
class Spy(Attack):
    """Remembers what it is given, and returns the feature as the image, plus ``shift``."""

    name: ClassVar[str] = "spy"
    source: ClassVar[str] = "test"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "nothing"
    shift: float = 0.0
    asks: int = 0
    diverged: bool = False
    seen: list[Any] = field(default_factory=list, compare=False)

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        self.seen.append((target, knowledge, generator, runtime))
        for _ in range(self.asks):
            target.query(knowledge.train.images[:3] / 255)

        def invert(z: torch.Tensor) -> torch.Tensor:
            self.seen.append(z)
            return z + self.shift

        return Learned(invert, {"figure": 1.5}, self.diverged)


@dataclass(frozen=True)
class GrayOnly(Spy):
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset({"gray-box", "white-box"})
