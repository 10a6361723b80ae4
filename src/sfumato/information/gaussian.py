"""Gaussian components in three forms of covariance: isotropic (M,), diagonal (M, D), full (M, D, D)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information.checks import require_shrinkage


def add_variance(covariances: Tensor, variance: float | Tensor) -> Tensor:
    """Σ_i + variance·I, in the same form.

    Args:
        covariances: (M,), (M, D) or (M, D, D).
        variance: Added to every dimension.
    """
    if covariances.ndim < 3:
        return covariances + variance
    return covariances + variance * torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)


def shrink(covariances: Tensor, amount: float) -> Tensor:
    """(1 − s)·Σ + s·(tr Σ/D)·I: full or diagonal covariances drawn to isotropic ones, which keep their trace.

    Args:
        covariances: (M,), (M, D) or (M, D, D).
        amount: s from 0 to 1.

    Raises:
        InputError: s is no share.
    """
    require_shrinkage(amount)
    if covariances.ndim == 1 or amount == 0:
        return covariances
    if covariances.ndim == 2:
        return torch.lerp(covariances, covariances.mean(1, keepdim=True), amount)
    mean = covariances.diagonal(dim1=1, dim2=2).mean(1)
    return (1 - amount) * covariances + torch.diag_embed(amount * mean.unsqueeze(1).expand(covariances.shape[:2]))


def cholesky(covariances: Tensor) -> Tensor:
    """Lower triangular factors (M, D, D) of full covariances; differentiable.

    Raises:
        InputError: One of them is not positive definite in its precision.
    """
    factors: Tensor
    factors, failed = torch.linalg.cholesky_ex(covariances)
    if bool(failed.any()):
        accepted = "positive definite ones: more noise on the feature, or shrinkage above 0"
        raise InputError("covariances", f"{int(failed.count_nonzero())} that are singular in {factors.dtype}", accepted)
    return factors


def log_determinants(covariances: Tensor, dim: int | None = None) -> Tensor:
    """Logarithm of det Σ_i of each component, (M,); differentiable.

    Args:
        covariances: Positive definite: (M,) variances, (M, D) diagonals or (M, D, D) matrices.
        dim: D, which isotropic covariances do not tell.

    Raises:
        InputError: Isotropic covariances without ``dim``, another ``dim`` than theirs, a shape of none of the forms, or
            a matrix that is not positive definite.
    """
    dim = dimension(covariances, dim)
    if covariances.ndim == 1:
        return dim * covariances.log()
    if covariances.ndim == 2:
        return covariances.log().sum(1)
    return 2 * cholesky(covariances).diagonal(dim1=1, dim2=2).log().sum(1)


def log_densities(z: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Log density of every feature under every component, in nats, (N, M).

    Args:
        z: (N, D).
        means: (M, D).
        covariances: Positive definite: (M,), (M, D) or (M, D, D).

    Raises:
        InputError: Shapes that do not fit, or a matrix that is not positive definite.
    """
    dim = means.shape[-1]
    if z.ndim != 2 or z.shape[1] != dim or len(covariances) != len(means):
        given = (tuple(z.shape), tuple(means.shape), tuple(covariances.shape))
        raise InputError("shapes of z, means, covariances", given, "(N, D), (M, D), and M covariances")
    constant = dim * math.log(2 * math.pi) + log_determinants(covariances, dim)
    residuals = z.unsqueeze(0) - means.unsqueeze(1)  # (M, N, D)
    if covariances.ndim == 3:
        white = torch.linalg.solve_triangular(cholesky(covariances), residuals.mT, upper=False)  # (M, D, N)
        squared = white.square().sum(1)
    else:
        spread = covariances.view(len(means), 1, -1)
        squared = (residuals.square() / spread).sum(2)
    densities: Tensor = -0.5 * (squared + constant.unsqueeze(1)).T
    return densities


def dimension(covariances: Tensor, dim: int | None) -> int:
    """D of the components.

    Raises:
        InputError: Isotropic covariances without ``dim``, another ``dim`` than theirs, or a shape of none of the forms.
    """
    shape = tuple(covariances.shape)
    if not 1 <= covariances.ndim <= 3 or (covariances.ndim == 3 and shape[1] != shape[2]):
        raise InputError("shape of covariances", shape, "(M,) isotropic, (M, D) diagonal or (M, D, D) full")
    if covariances.ndim == 1:
        if dim is None or dim < 1:
            raise InputError("dim", dim, "the dimension D of the features, for isotropic covariances do not tell it")
        return dim
    if dim not in (None, shape[-1]):
        raise InputError("dim", dim, f"{shape[-1]}, the dimension of the covariances, or nothing")
    return int(shape[-1])
