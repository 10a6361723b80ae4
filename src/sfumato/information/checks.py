"""What the arguments of measures have to be: each requirement in one place and one wording.

Sizes, types and options cost nothing to look at. The numbers in a tensor do: reading them waits for the device, so what
does is for figures that are handed to people, and never for a loss inside a training step, which lets NaN through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sfumato.errors import InputError, one_of


def require_counts(**numbers: int) -> None:
    """Numbers of things, by the name of their argument.

    Raises:
        InputError: One of them is below 1.
    """
    for field, number in numbers.items():
        if not number >= 1:
            raise InputError(field, number, "1 or more")


def require_choice(field: str, value: object, names: Iterable[str]) -> None:
    """One of a few names.

    Raises:
        InputError: Another one; the nearest is suggested.
    """
    names = tuple(names)
    if value not in names:
        raise InputError(field, value, one_of(names, value))


def require_noise(noise_variance: float) -> None:
    """σ² of a channel whose rate is asked for.

    Raises:
        InputError: It is 0, negative, infinite or NaN.
    """
    if not 0 < noise_variance < math.inf:
        raise InputError("noise_variance", noise_variance, "a variance above 0: without noise the rate is infinite")


def require_floors(floor: float, gamma: float) -> None:
    """The variance without pressure, and what is added below both logarithms.

    Raises:
        InputError: A negative floor, a γ that is not above 0, or one that is not finite.
    """
    if not 0 <= floor < math.inf:
        raise InputError("floor", floor, "a variance of 0 or more")
    if not 0 < gamma < math.inf:
        raise InputError("gamma", gamma, "a number above 0")


def require_shrinkage(amount: float) -> None:
    """How far covariances are drawn to isotropic ones.

    Raises:
        InputError: It is no share.
    """
    if not 0 <= amount <= 1:
        raise InputError("shrinkage", amount, "from 0 to 1")


def require_rows(z: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> None:
    """A batch of features and their classes, as far as shapes and types tell.

    Args:
        z: To be (N, D).
        y: To be (N,).
        dim: D.
        dtype: Of z.

    Raises:
        InputError: Another shape or type.
    """
    if z.ndim != 2 or z.shape[1] != dim:
        raise InputError("shape of z", tuple(z.shape), f"(N, {dim})")
    if z.dtype != dtype:
        raise InputError("dtype of z", z.dtype, f"{dtype}, as what it is compared with")
    if y.shape != z.shape[:1]:
        raise InputError("shape of y", tuple(y.shape), f"({len(z)},), one of each row of z")
    if y.dtype != torch.int64:
        raise InputError("dtype of y", y.dtype, "torch.int64")


def require_indices(field: str, index: Tensor, groups: int, what: str) -> None:
    """Indices within a range; waits for the device.

    Args:
        field: Name of the argument.
        index: (N,).
        groups: Number of groups.
        what: What a group is.

    Raises:
        InputError: One is below 0, or ``groups`` or more, or they are no integers.
    """
    if index.dtype != torch.int64:
        raise InputError(f"dtype of {field}", index.dtype, f"torch.int64: a {what} from 0 to {groups - 1}")
    outside = index[(index < 0) | (index >= groups)]
    if len(outside):
        raise InputError(field, int(outside[0]), f"a {what} from 0 to {groups - 1}")


def require_finite(**tensors: Tensor) -> None:
    """Tensors without NaN and infinity, by the name of their argument; waits for the device.

    Raises:
        InputError: One of them has such an element; says how many of how many.
    """
    for field, values in tensors.items():
        bad = values.numel() - int(values.detach().isfinite().count_nonzero())
        if bad:
            raise InputError(field, f"NaN or infinity in {bad} of {values.numel()} elements", "finite numbers")


def require_variances(covariances: Tensor, *, positive: bool = False) -> None:
    """Covariances that may be those of something; waits for the device.

    Of full ones only that they are finite: that they are positive definite shows when they are factorized.

    Args:
        covariances: (M,), (M, D) or (M, D, D).
        positive: Whether 0 is too small.

    Raises:
        InputError: NaN, infinity, or a variance below 0.
    """
    require_finite(covariances=covariances)
    if covariances.ndim < 3 and covariances.numel():
        least = float(covariances.detach().min())
        if least < 0 or (positive and least == 0):
            raise InputError("covariances", least, f"variances {'above 0' if positive else 'of 0 or more'}")
