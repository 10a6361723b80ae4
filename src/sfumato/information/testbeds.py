"""Problems whose answers are known: Gaussian images, or a small mixture of them, sent linearly with Gaussian noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information.beds import Figures, LinearChannel, Method
from sfumato.information.estimate import Estimate
from sfumato.information.gaussian import add_variance, log_densities, log_determinants
from sfumato.information.quadrature import expectations_on_line
from sfumato.information.rate import mixture_rate, mmse_bound

_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Images x ~ Σ_i π_i N(m_i, S_i) through a linear channel.

    Given the component everything is Gaussian: the best reconstruction is the mean of the components' Wiener filters
    weighted by the responsibilities P(i | z). The entropies need no density: with c the component,
    H(x) = Σ π_i (H_i − log π_i) − H(c | x), likewise H(z), and so I(x; z) = R − H(c | z). What CEM's rate R
    exceeds the information by is exactly what z leaves open about the component. Only H(c | x), H(c | z) and the mmse
    are drawn, as means over x and z of quantities computed in closed form; with a feature of one dimension the last two
    are integrated instead.

    Args:
        weights: π, (M,), positive, summing to 1.
        means: (M, C, H, W).
        covariances: (M, d, d), symmetric, positive definite, d = C·H·W.
        channel: Takes d pixels.

    Raises:
        InputError: Shapes that do not fit, weights that are no distribution, a covariance that is not positive
            definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    channel: LinearChannel

    def __post_init__(self) -> None:
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, getattr(self, name).detach().double())
        _check(self.weights, self.means, self.covariances, self.channel)
        object.__setattr__(self, "weights", self.weights / self.weights.sum())  # to the last digit
        if int(torch.linalg.cholesky_ex(self._feature_covariances).info.count_nonzero()) > 0:
            raise InputError("channel.sigma", self.channel.sigma, "more noise: z is degenerate in double precision")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.means.shape
        return c, h, w

    @property
    def components(self) -> int:
        """M."""
        return len(self.weights)

    def draw(self, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in float64, and the component (N,) that each is from."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self._draw_of(component, generator), component

    def reconstruct(self, z: Tensor) -> Tensor:
        """E[x | z] of features (N, ...), as (N, C, H, W) in float64."""
        z = z.flatten(1).double()
        return torch.cat([self._posterior(part)[0] for part in torch.split(z, _CHUNK)]).reshape(-1, *self.image_shape)

    def figures(self, *, generator: torch.Generator, samples: int = 20_000, method: Method = "auto") -> Figures:
        """Everything known of the bed.

        Args:
            generator: Draws the samples; not touched where everything is in closed form.
            samples: Images drawn, as many of each component; 2 or more of each.
            method: How H(c | z) and the mmse are found: ``quadrature`` needs a feature of one dimension,
                ``monte_carlo`` always goes, ``auto`` integrates where it can. One component needs neither.

        Raises:
            InputError: Too few samples, or quadrature for a feature of several dimensions.
        """
        line = self.channel.weight.shape[0] == 1
        if method == "quadrature" and not line:
            raise InputError("method", method, "monte_carlo or auto: the feature has several dimensions")
        if samples < 2 * len(self.weights):
            raise InputError("samples", samples, f"{2 * len(self.weights)} or more, 2 of each component")
        left = self._drawn(samples, generator) if len(self.weights) > 1 else self._single()
        if len(self.weights) > 1 and line and method != "monte_carlo":
            left = self._integrated(left)
        return self._assemble(left)

    def share_outside(self, low: float, high: float) -> float:
        """Expected share of pixels below ``low`` or above ``high``."""
        spreads = self.covariances.diagonal(dim1=1, dim2=2).sqrt()
        below = torch.special.ndtr((low - self._flat_means) / spreads)
        above = torch.special.ndtr((self._flat_means - high) / spreads)
        return float(self.weights @ (below + above).mean(1))

    def with_white_noise(self, variance: float) -> Self:
        """The bed of images that carry white noise of this variance before they are sent."""
        return replace(self, covariances=add_variance(self.covariances, variance))

    @cached_property
    def _flat_means(self) -> Tensor:
        return self.means.flatten(1)

    @cached_property
    def _factors(self) -> Tensor:
        factors: Tensor = torch.linalg.cholesky(self.covariances)
        return factors

    @cached_property
    def _clean_covariances(self) -> Tensor:
        """Σ'_i = W·S_i·Wᵀ, (M, D, D)."""
        made = self.channel.weight @ self.covariances @ self.channel.weight.T
        return (made + made.mT) / 2

    @cached_property
    def _feature_means(self) -> Tensor:
        return self._flat_means @ self.channel.weight.T

    @cached_property
    def _feature_covariances(self) -> Tensor:
        return add_variance(self._clean_covariances, self.channel.sigma**2)

    @cached_property
    def _gains(self) -> Tensor:
        """Wiener filters of the components, (M, d, D)."""
        return _wiener(self.covariances, self.channel)

    @cached_property
    def _left_variances(self) -> Tensor:
        """Tr Cov(x | z, c = i), (M,)."""
        return _linear_errors(self._gains, self._factors, self.channel)

    @cached_property
    def _covariance(self) -> Tensor:
        """Of x over all components, (d, d)."""
        spread = self._flat_means - self.weights @ self._flat_means
        within = torch.einsum("m,mij->ij", self.weights, self.covariances)
        return within + torch.einsum("m,mi,mj->ij", self.weights, spread, spread)

    def _linear_error(self) -> float:
        """E‖x − the best linear reconstruction‖²."""
        whole = self._covariance.unsqueeze(0)
        return float(_linear_errors(_wiener(whole, self.channel), torch.linalg.cholesky(whole), self.channel))

    def _draw_of(self, component: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(component), self._flat_means.shape[1], generator=generator, dtype=torch.float64)
        x = torch.cat([self._shaped(*part) for part in zip(torch.split(noise, _CHUNK), torch.split(component, _CHUNK))])
        return x.reshape(-1, *self.image_shape)

    def _shaped(self, noise: Tensor, component: Tensor) -> Tensor:
        every = torch.einsum("mij,nj->nmi", self._factors, noise)
        own = component.view(-1, 1, 1).expand(-1, 1, every.shape[-1])
        return every.gather(1, own).squeeze(1) + self._flat_means[component]

    def _posterior(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E[x | z] (N, d), tr Cov(x | z) (N,) and H(c | z) in nats (N,) of features (N, D)."""
        share = self._responsibilities(z, self._feature_means, self._feature_covariances)
        centered = z.unsqueeze(0) - self._feature_means.unsqueeze(1)
        filtered = self._flat_means.unsqueeze(1) + centered @ self._gains.mT  # (M, N, d)
        mean = torch.einsum("nm,mnd->nd", share, filtered)
        between = (share.T * (filtered - mean).square().sum(2)).sum(0)
        return mean, share @ self._left_variances + between, torch.special.entr(share).sum(1)

    def _responsibilities(self, points: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
        """P(c | point), (N, M)."""
        return (self.weights.log() + log_densities(points, means, covariances)).softmax(1)

    def _single(self) -> _Left:
        exact = Estimate(0.0)
        mmse = Estimate(float(self._left_variances[0]) / self._flat_means.shape[1])
        return _Left(given_x=exact, given_z=exact, difference=exact, mmse=mmse)

    def _drawn(self, samples: int, generator: torch.Generator) -> _Left:
        # As many of each component, weighted afterwards: chance has no say in how often each is drawn.
        component = torch.arange(len(self.weights)).repeat_interleave(samples // len(self.weights))
        x = self._draw_of(component, generator)
        z = self.channel.send(x, generator=generator).flatten(1)
        given_x, given_z, variance = [], [], []
        for pixels, feature in zip(torch.split(x.flatten(1), _CHUNK), torch.split(z, _CHUNK)):
            share = self._responsibilities(pixels, self._flat_means, self.covariances)
            given_x.append(torch.special.entr(share).sum(1))
            _, left, uncertainty = self._posterior(feature)
            variance.append(left)
            given_z.append(uncertainty)
        of_x, of_z, mmse = torch.cat(given_x), torch.cat(given_z), torch.cat(variance) / x[0].numel()
        return _Left(*(self._stratified_mean(values) for values in (of_x, of_z, of_z - of_x, mmse)))

    def _stratified_mean(self, values: Tensor) -> Estimate:
        """Mean of values (M·n,), n of each component in order."""
        strata = values.view(len(self.weights), -1)
        variance = self.weights.square() @ strata.var(1) / strata.shape[1]
        return Estimate(float(self.weights @ strata.mean(1)), math.sqrt(float(variance)))

    def _integrated(self, drawn: _Left) -> _Left:
        """H(c | z) and the mmse along the one dimension of the feature; H(c | x) too where there is one pixel."""
        left, unsure = expectations_on_line(
            lambda z: self._posterior(z.unsqueeze(1))[1:],
            self.weights,
            self._feature_means[:, 0],
            self._feature_covariances[:, 0, 0],
        )
        given_x, d = drawn.given_x, self._flat_means.shape[1]
        if d == 1:
            means, variances = self._flat_means[:, 0], self.covariances[:, 0, 0]
            (exact,) = expectations_on_line(self._open_after, self.weights, means, variances)
            given_x = Estimate(exact)
        return _Left(given_x, Estimate(unsure), Estimate(unsure - given_x.value, given_x.error), Estimate(left / d))

    def _open_after(self, pixels: Tensor) -> tuple[Tensor]:
        """H(c | x) of images of one pixel (N,)."""
        share = self._responsibilities(pixels.unsqueeze(1), self._flat_means, self.covariances)
        return (torch.special.entr(share).sum(1),)

    def _assemble(self, left: _Left) -> Figures:
        d, k = self._flat_means.shape[1], self.channel.weight.shape[0]
        mixing = float(torch.special.entr(self.weights).sum())
        of_x = mixing + float(self.weights @ _gaussian_entropies(self.covariances))
        rate = float(mixture_rate(self.weights, self._clean_covariances, self.channel.sigma**2))
        of_noise = k / 2 * math.log(2 * math.pi * math.e * self.channel.sigma**2)
        information = Estimate(rate - left.given_z.value, left.given_z.error)
        conditional = Estimate(of_x - rate + left.difference.value, left.difference.error)
        bound = float(mmse_bound(torch.tensor(conditional.value, dtype=torch.float64), d))
        return Figures(
            dim=d,
            sigma=self.channel.sigma,
            entropy=Estimate(of_x - left.given_x.value, left.given_x.error),
            feature_entropy=Estimate(information.value + of_noise, information.error),
            information=information,
            rate=rate,
            conditional_entropy=conditional,
            bound=Estimate(bound, bound * 2 / d * conditional.error),
            mmse=left.mmse,
            linear_mse=self._linear_error() / d,
            prior_variance=float(self._covariance.trace()) / d,
        )


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Images x ~ N(m, S) through a linear channel: every figure in closed form.

    With P = S − S·Wᵀ·(W·S·Wᵀ + σ²I)⁻¹·W·S: I(x; z) = R = ½ log det(I + W·S·Wᵀ/σ²), H(x | z) = ½ log det(2πe·P),
    mmse = tr P/d and E[x | z] the Wiener filter. Theorem 1 of CEM holds with equality where P is a multiple of I.

    Args:
        mean: m, (C, H, W).
        covariance: S, (d, d), symmetric, positive definite, d = C·H·W.
        channel: Takes d pixels.

    Raises:
        InputError: Shapes that do not fit, or a covariance that is not positive definite.
    """

    mean: Tensor
    covariance: Tensor
    channel: LinearChannel

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean.detach().double())
        object.__setattr__(self, "covariance", self.covariance.detach().double())
        _ = self._mixture  # checks everything

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._mixture.image_shape

    @property
    def components(self) -> int:
        """1."""
        return 1

    def draw(self, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in float64, and zeros (N,): there is one component."""
        return self._mixture.draw(count, generator=generator)

    def reconstruct(self, z: Tensor) -> Tensor:
        """E[x | z] of features (N, ...), as (N, C, H, W) in float64."""
        return self._mixture.reconstruct(z)

    def figures(
        self, *, generator: torch.Generator | None = None, samples: int = 20_000, method: Method = "auto"
    ) -> Figures:
        """Everything known of the bed, exactly; draws nothing, whatever the arguments."""
        return self._mixture._assemble(self._mixture._single())

    def share_outside(self, low: float, high: float) -> float:
        """Expected share of pixels below ``low`` or above ``high``."""
        return self._mixture.share_outside(low, high)

    def with_white_noise(self, variance: float) -> Self:
        """The bed of images that carry white noise of this variance before they are sent."""
        return replace(self, covariance=self._mixture.with_white_noise(variance).covariances[0])

    @cached_property
    def _mixture(self) -> GaussianMixture:
        one = torch.ones(1, dtype=torch.float64)
        return GaussianMixture(one, self.mean.unsqueeze(0), self.covariance.unsqueeze(0), self.channel)


@dataclass(frozen=True)
class _Left:
    """What z and x leave open: H(c | x), H(c | z), the latter less the former, and the mmse."""

    given_x: Estimate
    given_z: Estimate
    difference: Estimate
    mmse: Estimate


def _wiener(covariances: Tensor, channel: LinearChannel) -> Tensor:
    """S_i·Wᵀ·(W·S_i·Wᵀ + σ²I)⁻¹, (M, d, D)."""
    cross = channel.weight @ covariances  # (M, D, d)
    feature = add_variance(cross @ channel.weight.T, channel.sigma**2)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(feature)).mT


def _linear_errors(gains: Tensor, factors: Tensor, channel: LinearChannel) -> Tensor:
    """E‖x − G·z‖² of centered x with covariances L·Lᵀ, (M,).

    ‖(I − G·W)·L‖² + σ²‖G‖² equals tr S − tr G·W·S for a Wiener filter, and does not cancel where little is left.
    """
    missed = factors - gains @ (channel.weight @ factors)
    return missed.square().sum((1, 2)) + channel.sigma**2 * gains.square().sum((1, 2))


def _gaussian_entropies(covariances: Tensor) -> Tensor:
    """Entropies in nats (M,) of Gaussians with covariances (M, d, d)."""
    return (log_determinants(covariances) + covariances.shape[-1] * math.log(2 * math.pi * math.e)) / 2


def _check(weights: Tensor, means: Tensor, covariances: Tensor, channel: LinearChannel) -> None:
    if means.ndim != 4 or weights.shape != means.shape[:1] or len(weights) < 1:
        given = (tuple(weights.shape), tuple(means.shape))
        raise InputError("weights and means (shapes)", given, "(M,) and (M, C, H, W), M of 1 or more")
    d = means[0].numel()
    if covariances.shape != (len(weights), d, d):
        raise InputError("covariances (shape)", tuple(covariances.shape), f"({len(weights)}, {d}, {d})")
    if channel.weight.shape[1] != d:
        raise InputError("channel.weight (columns)", channel.weight.shape[1], f"{d}, the pixels of an image")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise InputError("weights", weights.tolist(), "positive values that sum to 1")
    if not bool(means.isfinite().all()):
        raise InputError("means", "values that are not finite", "finite values")
    asymmetry = float((covariances - covariances.mT).abs().max())
    failed = torch.linalg.cholesky_ex(covariances).info.count_nonzero()
    if not asymmetry <= 1e-9 * float(covariances.abs().max()) or int(failed) > 0:
        raise InputError("covariances", "one that is not", "symmetric and positive definite matrices")
