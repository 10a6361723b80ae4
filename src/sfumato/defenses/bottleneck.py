"""Few channels, and a bound: the layer that makes noise mean something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from sfumato.defenses.base import BoundDefense, Defense
from sfumato.errors import InputError
from sfumato.models import SplitModel, initialize, spare_global_generator

_ACTIVATIONS: dict[str, tuple[type[nn.Module], tuple[float, float]]] = {
    "sigmoid": (nn.Sigmoid, (0.0, 1.0)),
    "tanh": (nn.Tanh, (-1.0, 1.0)),
}


@dataclass(frozen=True)
class Bottleneck(Defense):
    """A 3×3 convolution to few channels and a bounded activation on the edge, a 3×3 convolution back in the cloud.

    After ResSFL (Li et al. 2022); 8 channels and a sigmoid in the CEM paper (Xia et al. 2025, section 5.1). On
    VGG-11 cut at ``conv2`` the edge then has 85,256 parameters and sends 8×8×8 numbers in [0, 1].

    Args:
        channels: Channels sent, 1 or more.
        activation: ``sigmoid`` (values in [0, 1]) or ``tanh`` (in [−1, 1]).
    """

    name: ClassVar[str] = "bottleneck"
    source: ClassVar[str] = "Li et al. 2022 (ResSFL); Xia et al. 2025 (CEM), section 5.1"
    channels: int = 8
    activation: Literal["sigmoid", "tanh"] = "sigmoid"

    def __post_init__(self) -> None:
        self._require(self.channels >= 1, "channels", "1 or more")
        self._require(self.activation in _ACTIVATIONS, "activation", "one of sigmoid, tanh")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        if len(split.feature.shape) != 3:
            raise InputError("bottleneck (feature shape)", split.feature.shape, "a map (c, h, w): cut earlier")
        return _BoundBottleneck(self, split.feature.shape[0], generator)


class _BoundBottleneck(BoundDefense):
    def __init__(self, spec: Bottleneck, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        activation, self._bounds = _ACTIVATIONS[spec.activation]
        with spare_global_generator():
            down = nn.Conv2d(channels, spec.channels, 3, padding=1)
            up = nn.Conv2d(spec.channels, channels, 3, padding=1)
        # In a tuple, so that they are registered where they work, in the split, and not here as well.
        self._layers = (
            nn.Sequential(initialize(down, generator), activation()),
            initialize(up, generator),
        )

    def wrap_edge(self, edge: nn.Module) -> nn.Module:
        return nn.Sequential(edge, self._layers[0])

    def bounds(self, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        return self._bounds

    def wrap_cloud(self, cloud: nn.Module) -> nn.Module:
        return nn.Sequential(self._layers[1], cloud)
