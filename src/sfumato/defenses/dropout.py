"""Send only some of the feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.defenses.base import BoundDefense, Defense
from sfumato.models import SplitModel, Stochastic


@dataclass(frozen=True)
class Dropout(Defense):
    """Zero a random fraction of the feature's elements, in training and inference, without rescaling.

    He et al. 2020. Not the regularizer of the same name: it stays on.

    Args:
        p: Fraction zeroed, 0 ≤ p < 1 (CEM's tables: 0.2; "drop features" in SiftFunnel's: 0.8).
    """

    name: ClassVar[str] = "dropout"
    source: ClassVar[str] = "He et al. 2020"
    p: float = 0.2

    def __post_init__(self) -> None:
        self._require(0 <= self.p < 1, "p", "a fraction from 0 to below 1")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return _BoundDropout(self.p)


class FeatureDropout(Stochastic):
    """Zeroes elements whatever the mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, z: Tensor) -> Tensor:
        """Z with a fraction p of its elements zeroed."""
        return z * (self.uniform(z) >= self.p).to(z.dtype) if self.p else z

    def expected(self, z: Tensor) -> Tensor:
        """(1 − p)·z: what is kept is not rescaled."""
        return (1 - self.p) * z

    def extra_repr(self) -> str:
        """Show p."""
        return f"p={self.p}"


class _BoundDropout(BoundDefense):
    def __init__(self, p: float) -> None:
        super().__init__()
        self._layer = (FeatureDropout(p),)

    def channel(self) -> nn.Module:
        return self._layer[0]
