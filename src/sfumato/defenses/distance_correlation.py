"""Punish what the sent feature says of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.defenses.base import BoundDefense, Context, Defense
from sfumato.information import distance_correlation
from sfumato.models import SplitModel


@dataclass(frozen=True)
class DistanceCorrelation(Defense):
    """Loss α·dCor(x, z) between the batch's images and what is sent (NoPeek, Vepakomma et al. 2020).

    Args:
        alpha: Weight α ≥ 0. The CEM paper does not give its value; tune it to the accuracy you can afford.
    """

    name: ClassVar[str] = "distance_correlation"
    source: ClassVar[str] = "Vepakomma et al. 2020 (NoPeek); Székely et al. 2007"
    watches: ClassVar[bool] = True
    alpha: float = 1.0

    def __post_init__(self) -> None:
        self._require(0 <= self.alpha < float("inf"), "alpha", "a weight of 0 or more")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return _BoundDistanceCorrelation(self.alpha)


class _BoundDistanceCorrelation(BoundDefense):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self._alpha = alpha

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        return {"distance_correlation": self._alpha * distance_correlation(ctx.x, ctx.z_sent)}
