"""Noise on the feature, in training, under attack and in deployment alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sfumato.defenses.base import BoundDefense, Defense
from sfumato.models import SplitModel, Stochastic


@dataclass(frozen=True)
class Noise(Defense):
    """Send z = z' + σ·n, with n of mean 0 and variance 1 (He et al. 2019; Titcombe et al. 2021 for Laplace).

    It is meaningless where the edge can scale the feature up, so it asks for a bounded one.

    Args:
        sigma: Standard deviation σ ≥ 0 of either kind, in units of the feature (CEM: 0.025 on features in [0, 1]).
        kind: ``gaussian`` or ``laplace`` (scale σ/√2).
    """

    name: ClassVar[str] = "noise"
    source: ClassVar[str] = "He et al. 2019; Titcombe et al. 2021; Xia et al. 2025 (CEM), section 5.1"
    needs_bounded_feature: ClassVar[bool] = True
    sigma: float = 0.025
    kind: Literal["gaussian", "laplace"] = "gaussian"

    def __post_init__(self) -> None:
        self._require(0 <= self.sigma < float("inf"), "sigma", "a standard deviation of 0 or more")
        self._require(self.kind in ("gaussian", "laplace"), "kind", "one of gaussian, laplace")

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return _BoundNoise(self)


class AdditiveNoise(Stochastic):
    """Adds noise whatever the mode."""

    def __init__(self, sigma: float, kind: str) -> None:
        super().__init__()
        self.sigma, self.kind = sigma, kind

    def forward(self, z: Tensor) -> Tensor:
        """Z + σ·n."""
        if self.sigma == 0:
            return z
        if self.kind == "gaussian":
            return z + self.sigma * self.normal(z)
        u = self.uniform(z) - 0.5
        # Inverse of Laplace's distribution function. At u = −½ the tail would be 0: it gets that of the next u.
        tail = (1 - 2 * u.abs()).clamp_min(torch.finfo(z.dtype).eps)
        return z - self.sigma / 2**0.5 * u.sign() * tail.log()

    def expected(self, z: Tensor) -> Tensor:
        """The input: the noise has mean 0."""
        return z

    def extra_repr(self) -> str:
        """Show σ and the kind."""
        return f"sigma={self.sigma}, kind={self.kind}"


class _BoundNoise(BoundDefense):
    def __init__(self, spec: Noise) -> None:
        super().__init__()
        self._spec = spec
        self._layer = (AdditiveNoise(spec.sigma, spec.kind),)

    def channel(self) -> nn.Module:
        return self._layer[0]

    def noise_variance(self) -> float:
        # CEM's bound needs the entropy of the noise, and takes it to be Gaussian.
        return self._spec.sigma**2 if self._spec.kind == "gaussian" else 0.0
