"""The theory of conditional entropy maximization: rate, entropy, and the error no attack can go below.

Xia et al. 2025 (CEM), theorems 1 and 2 (printed as 3) and equations 3 and 4. Everything is in nats and a sum over
dimensions; divide by D for a figure per dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information.checks import require_finite, require_indices, require_noise, require_variances
from sfumato.information.gaussian import add_variance, dimension, log_densities, log_determinants


def mixture_rate(weights: Tensor, covariances: Tensor, noise_variance: float, *, dim: int | None = None) -> Tensor:
    """R = Σ π_i(−log π_i + ½·log det(Σ'_i/σ² + I)), an upper bound on I(z; z').

    Holds where z' ~ Σ π_i N(μ_i, Σ'_i) and z = z' + N(0, σ²I); with one component it is the mutual information itself.
    Differentiable in weights and covariances.

    Args:
        weights: (M,) π_i ≥ 0, summing to 1; components of weight 0 count nothing.
        covariances: Σ'_i of the clean feature: (M,) isotropic, (M, D) diagonal or (M, D, D) full; may be 0.
        noise_variance: σ² > 0 of the channel.
        dim: D, which isotropic covariances do not tell.

    Returns:
        A scalar in nats.

    Raises:
        InputError: Weights that are no distribution, a σ² of 0 or less, variances below 0, covariances that are not
            finite, or shapes that do not fit.
    """
    _check_weights(weights, covariances)
    require_noise(noise_variance)
    require_variances(covariances)
    # In units of the noise: the ratio of the two determinants is one determinant then.
    dim = dimension(covariances, dim)
    growth = 0.5 * log_determinants(add_variance(covariances / noise_variance, 1.0), dim)
    rate: Tensor = (weights * growth - torch.special.xlogy(weights, weights)).sum()
    return rate


def conditional_entropy_bound(input_entropy: float | Tensor, rate: float | Tensor) -> Tensor:
    """H(x | z) ≥ H(x) − R (proposition 2 and theorem 2), in nats.

    Args:
        input_entropy: H(x), known for test beds and unknown for natural images: see
            :func:`relative_conditional_entropy`.
        rate: R, or an exact I(z; z'), which gives H(x | z) itself.
    """
    return torch.as_tensor(input_entropy) - torch.as_tensor(rate)


def relative_conditional_entropy(rate: float | Tensor, reference: float | Tensor) -> Tensor:
    """By how many nats H(x | z)'s bound lies above that of a reference model: R_reference − R.

    H(x) is unknown for natural images and is the same for every model, so only differences mean something (CEM, figure
    3). No error in absolute terms follows from them.
    """
    return torch.as_tensor(reference) - torch.as_tensor(rate)


def mmse_bound(conditional_entropy: float | Tensor, dim: int) -> Tensor:
    """exp(2·H(x | z)/d) / (2πe): no attack's expected squared error per dimension is below it (theorem 1).

    Met where x given z is Gaussian with the same isotropic covariance whatever z is.

    Args:
        conditional_entropy: H(x | z) or a lower bound on it, in nats, all dimensions together.
        dim: d = C·H·W of the image.

    Raises:
        InputError: ``dim`` < 1.
    """
    if dim < 1:
        raise InputError("dim", dim, "1 or more")
    return torch.exp(2 / dim * torch.as_tensor(conditional_entropy)) / (2 * math.pi * math.e)


def feature_utility(z: Tensor, components: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """How surely a sent feature tells its own component, in [0, 1] (CEM, equation 4).

    The mean over features of π_c N(z; μ_c, Σ_c) / Σ_j π_j N(z; μ_j, Σ_j), with c the component that z came from.

    Args:
        z: (N, D) features as they are sent.
        components: (N,) index of the component of each.
        weights: (M,) summing to 1.
        means: (M, D).
        covariances: Of what is sent, noise included: (M,), (M, D) or (M, D, D).

    Returns:
        A scalar.

    Raises:
        InputError: Weights that are no distribution, components that there are not, variances of 0 or less, shapes
            that do not fit, or an element that is NaN or infinite.
    """
    _check_weights(weights, covariances)
    if components.shape != z.shape[:1]:
        raise InputError("shape of components", tuple(components.shape), f"({len(z)},), one of each feature")
    require_indices("components", components, len(weights), "component")
    require_finite(z=z, means=means)
    require_variances(covariances, positive=True)
    joint = log_densities(z, means, covariances) + weights.log()
    own = joint.gather(1, components.view(-1, 1)).squeeze(1)
    return (own - joint.logsumexp(1)).exp().mean()


def _check_weights(weights: Tensor, covariances: Tensor) -> None:
    if weights.ndim != 1 or len(weights) != len(covariances):
        given = (tuple(weights.shape), tuple(covariances.shape))
        raise InputError("shapes of weights, covariances", given, "(M,), and M covariances")
    values = weights.detach()
    if bool((values < 0).any()) or not math.isclose(float(values.sum()), 1.0, abs_tol=1e-4):
        raise InputError("weights", float(values.sum()), "weights of 0 or more that sum to 1")
