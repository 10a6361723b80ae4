"""More layers on the device: the more an edge has done, the less of the picture is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sfumato.defenses.base import BoundDefense, Defense
from sfumato.errors import InputError
from sfumato.models import SplitModel, initialize, spare_global_generator


@dataclass(frozen=True)
class DeeperEdge(Defense):
    """Extra layers at the end of the edge, each a 3×3 convolution of as many channels, batch norm and ReLU.

    PATROL (Ding et al. 2024) moves more of the network to the device and prunes it back to a size that fits there:
    put ``prune`` after it. Goes before a bottleneck.

    Args:
        layers: Number of layers, 1 or more.
    """

    name: ClassVar[str] = "deeper_edge"
    source: ClassVar[str] = "Ding et al. 2024 (PATROL); Xia et al. 2025 (CEM), section 5.1"
    layers: int = 2

    def __post_init__(self) -> None:
        self._require(self.layers >= 1, "layers", "1 or more")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        if len(split.feature.shape) != 3:
            raise InputError("defense deeper_edge", split.feature.shape, "a feature map (c, h, w): cut earlier")
        if split.feature.bounds is not None:
            accepted = "a feature without bounds, which more layers do not undo: put deeper_edge before bottleneck"
            raise InputError("defense deeper_edge", "a bounded feature", accepted)
        return _BoundDeeperEdge(self.layers, split.feature.shape[0], generator)


class ExtraLayers(nn.Sequential):
    """What :class:`DeeperEdge` adds; ``prune`` knows the size to return to by it."""

    def __init__(self, layers: int, channels: int) -> None:
        blocks = [
            layer
            for _ in range(layers)
            for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        ]
        super().__init__(*blocks)


class _BoundDeeperEdge(BoundDefense):
    def __init__(self, layers: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        with spare_global_generator():
            extra = ExtraLayers(layers, channels)
        # In a tuple: the layers belong to the split that they are put into.
        self._layers = (initialize(extra, generator),)

    def wrap_edge(self, edge: nn.Module) -> nn.Module:
        return nn.Sequential(edge, self._layers[0])
