"""Fisher information that a noisy feature carries about its image, and what it proves about reconstruction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfumato.errors import InputError


def jacobian_trace(
    edge: nn.Module, x: Tensor, *, generator: torch.Generator, probes: int = 16, chunk: int | None = None
) -> Tensor:
    """tr(JᵀJ) of each image, J the Jacobian of the edge there, by Hutchinson's estimate; J is never formed.

    The mean over probes u of ‖Jᵀu‖², u a feature of random signs (Hutchinson 1990). Unbiased; its relative standard
    deviation is below √(2/probes), which it comes near where a single direction makes up all of JJᵀ, and 0 where the
    rows of J are orthogonal. Vector–Jacobian products, as every layer that can be trained has them.

    The edge works in evaluation mode, image by image, and is left as it was. No graph is kept.

    Args:
        edge: (N, ...) to (N, ...); deterministic, and each image for itself.
        x: (N, ...) images.
        generator: Draws the signs.
        probes: Number of them.
        chunk: Probes at a time, where memory is short; all by default.

    Returns:
        (N,), 0 or more.

    Raises:
        InputError: ``probes`` or ``chunk`` below 1, or no image.
    """
    for name, value in (("probes", probes), ("chunk", chunk)):
        if value is not None and value < 1:
            raise InputError(name, value, "1 or more")
    if x.ndim == 0 or x.numel() == 0:
        raise InputError("shape of x", tuple(x.shape), "(N, ...) with one or more images and elements")
    # Ignored by the derivative below, and keeps the graph of the edge's own parameters from being built.
    with _evaluating(edge), torch.no_grad():
        z, pull, *_ = torch.func.vjp(edge, x)
        if len(z) != len(x):
            raise InputError("edge (features for N images)", len(z), f"{len(x)}, one for each image")
        signs = torch.randint(0, 2, (probes, *z.shape), generator=generator, device=generator.device)
        signs = signs.to(z) * 2 - 1
        (pulled,) = torch.func.vmap(pull, chunk_size=chunk)(signs)
    return torch.as_tensor(pulled).flatten(2).square().sum(2).mean(0)


def dfil(
    edge: nn.Module,
    x: Tensor,
    noise_variance: float,
    *,
    generator: torch.Generator,
    probes: int = 16,
    chunk: int | None = None,
) -> Tensor:
    """Diagonal Fisher information leakage of each image: tr(FI)/d, FI = JᵀJ/σ² (Maeng et al. 2023, section 3).

    What z = f(x) + σ·n, n ~ N(0, I), tells about x, per pixel; in 1/(pixel unit)². For Gaussian noise only.

    Args:
        edge: f, as for :func:`jacobian_trace`.
        x: (N, ...) images of d elements.
        noise_variance: σ², positive.
        generator: Draws the probes.
        probes: See :func:`jacobian_trace`.
        chunk: See :func:`jacobian_trace`.

    Returns:
        (N,), 0 or more.

    Raises:
        InputError: The variance is not positive, or as for :func:`jacobian_trace`.
    """
    if not 0 < noise_variance < math.inf:
        accepted = "a positive number (without noise the information is infinite)"
        raise InputError("noise_variance", noise_variance, accepted)
    trace = jacobian_trace(edge, x, generator=generator, probes=probes, chunk=chunk)
    return trace / (noise_variance * (x.numel() // len(x)))


def unbiased_mse_bound(leakage: Tensor) -> Tensor:
    """Smallest MSE per pixel of an *unbiased* reconstruction: 1/dFIL (Cramér–Rao; Maeng et al. 2023, equation 4).

    A trained attack is biased towards likely images and may do better: for those see :func:`van_trees_bound`.

    Args:
        leakage: dFIL of each image, 0 or more.

    Returns:
        As ``leakage``; infinite where nothing leaks.

    Raises:
        InputError: A negative leakage.
    """
    _check_leakage(leakage)
    return leakage.reciprocal()


def van_trees_bound(leakage: Tensor, prior_information: float) -> float:
    """Smallest mean MSE per pixel of *any* reconstruction: 1/(E[dFIL] + prior information) (van Trees 1968).

    Holds for biased and unbiased attacks alike, on average over images drawn from the prior; the prior's density has
    to be smooth and to vanish at the edge of its support. Exact where x is Gaussian with equal variances, the edge is
    linear, and JᵀJ is a multiple of the identity. As a statement about real images it is as good as their prior.

    Args:
        leakage: dFIL of images drawn from the prior; their mean counts, with its sampling error.
        prior_information: Fisher information of the prior per pixel, tr(J_prior)/d, in 1/(pixel unit)²; for a Gaussian
            :func:`gaussian_prior_information`.

    Raises:
        InputError: A negative leakage, no image, or prior information that is not 0 or more.
    """
    _check_leakage(leakage)
    if not 0 <= prior_information < math.inf:
        raise InputError("prior_information", prior_information, "0 or more")
    total = float(leakage.double().mean()) + prior_information
    return 1 / total if total > 0 else math.inf


def gaussian_prior_information(covariance: Tensor) -> float:
    """Fisher information per dimension of a Gaussian about its own location: tr(Σ⁻¹)/d.

    Args:
        covariance: (d, d) symmetric positive definite, or the (d,) variances of independent dimensions.

    Raises:
        InputError: Another shape, or not positive definite.
    """
    square = covariance.ndim == 2 and covariance.shape[0] == covariance.shape[1]
    if covariance.numel() == 0 or not (covariance.ndim == 1 or square):
        raise InputError("shape of covariance", tuple(covariance.shape), "(d, d), or (d,) variances")
    covariance = covariance.double()
    if covariance.ndim == 1:
        if not bool((covariance > 0).all()):
            raise InputError("covariance", float(covariance.min()), "positive variances")
        return float(covariance.reciprocal().mean())
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise InputError("covariance", tuple(covariance.shape), "a positive definite matrix")
    return float(torch.cholesky_inverse(factor).diagonal().mean())


def _check_leakage(leakage: Tensor) -> None:
    if leakage.numel() == 0 or not bool((leakage >= 0).all()):
        raise InputError("leakage", leakage.detach().flatten()[:4].tolist(), "one or more numbers of 0 or more")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each layer in the mode that it was in: some may have been frozen."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
