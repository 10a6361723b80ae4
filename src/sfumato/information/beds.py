"""What every test bed offers: images of a known distribution, a linear channel with noise, and exact figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information.estimate import Estimate

Method = Literal["auto", "monte_carlo", "quadrature"]
"""How figures without a closed form are found."""


@dataclass(frozen=True)
class Figures:
    """What is known of a bed. Entropies, information and rate are in nats, errors in squared pixel units.

    Attributes:
        dim: d, pixels of an image over all channels.
        sigma: Standard deviation of the channel's noise.
        entropy: H(x).
        feature_entropy: H(z).
        information: I(x; z) = I(z; z').
        rate: R, the upper bound of the information by theorem 2 of CEM.
        conditional_entropy: H(x | z) = H(x) − I(x; z), by its proposition 2.
        bound: exp((2/d)·H(x | z))/(2πe), its theorem 1: no more than the mmse.
        mmse: E tr Cov(x | z)/d, the error of the best reconstruction there can be.
        linear_mse: Error of the best linear reconstruction, which knows only mean and covariance of x.
        prior_variance: tr Cov(x)/d, the error of answering with the mean.
    """

    dim: int
    sigma: float
    entropy: Estimate
    feature_entropy: Estimate
    information: Estimate
    rate: float
    conditional_entropy: Estimate
    bound: Estimate
    mmse: Estimate
    linear_mse: float
    prior_variance: float


@dataclass(frozen=True, eq=False)
class LinearChannel:
    """What happens to an image x: z = z' + n with z' = W·x and n ~ N(0, σ²I).

    Args:
        weight: W, (D, d); D is the product of ``feature_shape``.
        sigma: σ > 0; without noise the information would be infinite.
        feature_shape: Shape of z without the batch axis.

    Raises:
        InputError: σ is not positive, W is not finite or does not fit the feature.
    """

    weight: Tensor
    sigma: float
    feature_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise InputError("sigma", self.sigma, "a standard deviation above 0")
        if self.weight.ndim != 2 or len(self.weight) != math.prod(self.feature_shape):
            given = f"shape {tuple(self.weight.shape)}"
            raise InputError(
                "weight", given, f"(D, d) with D = {math.prod(self.feature_shape)}, of {self.feature_shape}"
            )
        if not bool(self.weight.isfinite().all()):
            raise InputError("weight", "values that are not finite", "finite values")
        object.__setattr__(self, "weight", self.weight.detach().double())

    def send(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Features (N, ...) in ``feature_shape`` of images (N, C, H, W), with noise drawn anew."""
        clean = x.flatten(1).to(self.weight) @ self.weight.T
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return (clean + self.sigma * noise).reshape(len(x), *self.feature_shape)


class Bed(Protocol):
    """A distribution of images and a channel for which everything can be computed."""

    @property
    def channel(self) -> LinearChannel:
        """What the images pass through."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def components(self) -> int:
        """M, 1 for a Gaussian."""

    def draw(self, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in float64, and the component (N,) that each is from."""

    def reconstruct(self, z: Tensor) -> Tensor:
        """E[x | z], the reconstruction of least mean squared error, (N, C, H, W) in float64."""

    def figures(self, *, generator: torch.Generator, samples: int = 20_000, method: Method = "auto") -> Figures:
        """Everything known of the bed; draws only what has no closed form."""

    def share_outside(self, low: float, high: float) -> float:
        """Expected share of pixels below ``low`` or above ``high``."""

    def with_white_noise(self, variance: float) -> Self:
        """The bed of images that carry white noise of this variance before they are sent."""
