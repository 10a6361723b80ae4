"""How much two batches depend on each other, seen through kernels: HSIC and COCO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information.checks import require_choice
from sfumato.information.rows import paired_rows

Kernel = Callable[[Tensor], Tensor]
"""From rows (N, D) to their Gram matrix (N, N), up to terms of a single row: centering takes those out."""

HsicEstimator = Literal["biased", "unbiased", "normalized"]

_BANDWIDTH_PER_ROOT_DIMENSION = 5.0


@dataclass(frozen=True)
class GaussianKernel:
    """k(a, b) = exp(−‖a − b‖² / (2σ²)), without its constant 1.

    Every entry is less by 1, which changes no measure here and keeps the digits of close rows: with the default σ the
    kernel of two images is 0.99 and more.

    Args:
        bandwidth: σ, positive; 5·√D where it is ``None``, as BiDO has it (Peng et al. 2022).
    """

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not (0 < self.bandwidth < math.inf):
            raise InputError("bandwidth", self.bandwidth, "a positive number, or None for 5·√dimension")

    def __call__(self, rows: Tensor) -> Tensor:
        """(N, D) to (N, N), in (−1, 0]; the gradient is finite also where two rows coincide."""
        sigma = self.bandwidth or _BANDWIDTH_PER_ROOT_DIMENSION * math.sqrt(rows.shape[1])
        # Divided first: squares of large rows would overflow.
        rows = rows / sigma
        # The matrix-product shortcut cancels catastrophically for close rows.
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.expm1(-distances.square() / 2)


@dataclass(frozen=True)
class LinearKernel:
    """k(a, b) = a·b, the kernel for one-hot labels; measured from the first row, which changes no measure here."""

    def __call__(self, rows: Tensor) -> Tensor:
        """(N, D) to (N, N)."""
        # Rows far from zero would cancel, and a constant sample would leave rounding errors that look like a signal.
        rows = rows - rows[:1].detach()
        return rows @ rows.T


_GAUSSIAN = GaussianKernel()


def hsic(
    x: Tensor,
    z: Tensor,
    *,
    estimator: HsicEstimator = "biased",
    kernel_x: Kernel = _GAUSSIAN,
    kernel_z: Kernel = _GAUSSIAN,
) -> Tensor:
    """Hilbert–Schmidt independence criterion of two paired samples; 0 in the limit of large N iff independent.

    With K and L the kernels' Gram matrices, H = I − 11ᵀ/N, and K̃, L̃ the Gram matrices with a zero diagonal:

    - ``biased``: tr(KHLH)/N² (Gretton et al. 2005), 0 or more, too large by a term of order 1/N. It is HSIC of the
      empirical distribution itself, as :func:`distance_correlation` is; Gretton et al. divide by (N − 1)², which makes
      it no less biased.
    - ``unbiased``: [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((N−1)(N−2)) − 2/(N−2)·1ᵀK̃L̃1] / (N(N−3)) (Song et al. 2012, eq. 5); its
      mean is exact, so it is negative at times.
    - ``normalized``: HSIC(x, z)/√(HSIC(x, x)·HSIC(z, z)) of biased ones, in [0, 1] (centered kernel alignment,
      Cortes et al. 2012). Zero where either sample is constant.

    Gaussian kernels are characteristic: with them HSIC sees any dependence. The linear kernel sees correlation only; it
    loses nothing on one-hot labels. The gradient is finite everywhere with both kernels of this module. NaN where an
    element is NaN or infinite.

    Args:
        x: (N, ...), flattened behind the first axis.
        z: (N, ...), likewise; may be of another shape.
        estimator: Which of the three.
        kernel_x: For ``x``.
        kernel_z: For ``z``; ``LinearKernel()`` for one-hot labels.

    Raises:
        InputError: The two differ in N, N < 2 (4 if unbiased), or there is no such estimator.
    """
    require_choice("estimator", estimator, get_args(HsicEstimator))
    x, z = paired_rows("hsic", x, z, least=4 if estimator == "unbiased" else 2)
    with _full_precision(x):
        k, m = kernel_x(x), kernel_z(z)
        if estimator == "unbiased":
            return _unbiased(k, m)
        k, m = _centered(k), _centered(m)
        return (k * m).mean() if estimator == "biased" else _alignment(k, m)


def coco(x: Tensor, z: Tensor, *, kernel_x: Kernel = _GAUSSIAN, kernel_z: Kernel = _GAUSSIAN) -> Tensor:
    """Constrained covariance: the largest covariance of functions f(x), g(z) of norm 1 in the kernels' spaces.

    COCO = (1/N)·√λ, λ the largest eigenvalue of HKH·HLH, which is the square of the largest singular value of
    (HKH)^½(HLH)^½ (Gretton et al. 2005, "Kernel methods for measuring independence", section 2). With linear kernels
    it is the largest singular value of the covariance matrix of x and z. The largest singular value of the product
    HKH·HLH itself, with which the closed form is often written, is another number: it is no covariance, and for
    independent samples it falls with N only half as fast.

    COCO is never more than √(biased HSIC), which adds all eigenvalues up. Zero where either sample is constant. The
    gradient is finite; it holds the two best functions fixed, which is exact to first order. NaN where an element is
    NaN or infinite.

    Args:
        x: (N, ...), flattened behind the first axis.
        z: (N, ...), likewise.
        kernel_x: For ``x``.
        kernel_z: For ``z``.

    Raises:
        InputError: The two differ in N, or N < 2.
    """
    x, z = paired_rows("coco", x, z)
    with _full_precision(x):
        return _constrained_covariance(kernel_x(x), kernel_z(z))


def _constrained_covariance(k: Tensor, m: Tensor) -> Tensor:
    # An eigenvalue solver stops at NaN with an error; a loss is to become NaN, and nobody waits to look at it here.
    finite = k.detach().isfinite().all() & m.detach().isfinite().all()
    k, m = torch.where(finite, k, 0.0), torch.where(finite, m, 0.0)
    # Of degree ½ in the scale of each matrix: brought to 1 and back, so that squares cannot underflow.
    (k, k_scale), (m, m_scale) = _unit(_centered(k)), _unit(_centered(m))
    with torch.no_grad():
        root_k, root_m = _root(k), _root(m)
        u, _, v = torch.linalg.svd(root_k @ root_m)
        f, g = root_m @ v[0], root_k @ u[:, 0]  # the roots' inverses are never needed
    norms = (f @ k @ f) * (g @ m @ g)
    tiny = torch.finfo(norms.dtype).tiny
    covariance: Tensor = (f @ k) @ (m @ g) / torch.where(norms > tiny, norms, 1.0).sqrt()
    scale = k_scale.sqrt() * m_scale.sqrt() / len(k)
    return torch.where(finite, torch.where(norms > tiny, covariance * scale, 0.0), torch.nan)


def _full_precision(x: Tensor) -> torch.autocast:
    """Autocast off: in half precision a centered kernel matrix has no digit left, and no eigenvalue either."""
    return torch.autocast(x.device.type, enabled=False)


def _centered(gram: Tensor) -> Tensor:
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def _alignment(k: Tensor, m: Tensor) -> Tensor:
    # The ratio does not feel a scale; the fourth powers in it would underflow.
    (k, _), (m, _) = _unit(k), _unit(m)
    # An entry of each is now ±1, so this is 1 or more unless a sample is constant.
    norms = k.square().sum() * m.square().sum()
    return (k * m).sum() / norms.clamp_min(1).sqrt()


def _unit(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix divided by its largest entry, and that entry, which carries no gradient; 1 for a matrix of zeros."""
    largest = gram.detach().abs().max()
    scale = torch.where(largest > 0, largest, 1.0)
    return gram / scale, scale


def _root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root


def _unbiased(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    off_diagonal = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, m = k * off_diagonal, m * off_diagonal
    together = (k * m).sum()
    apart = k.sum() * m.sum() / ((n - 1) * (n - 2))
    mixed = 2 / (n - 2) * (k.sum(0) * m.sum(0)).sum()
    return (together + apart - mixed) / (n * (n - 3))
