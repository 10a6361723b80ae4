"""Paired samples as two tables of rows; shared by the measures that compare them."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import InputError


def paired_rows(measure: str, x: Tensor, z: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both samples flattened behind the first axis, as floating point numbers.

    Args:
        measure: Who asks, for the error.
        x: (N, ...).
        z: (N, ...); integers (one-hot labels) become numbers of the type of ``x``, half precision becomes single.
        least: Smallest N that the measure is defined for.

    Raises:
        InputError: The two differ in N, N is too small, a row has no element, or numbers are complex.
    """
    if x.ndim == 0 or z.ndim == 0 or len(x) != len(z) or len(x) < least:
        sizes = tuple(len(v) if v.ndim else 0 for v in (x, z))
        raise InputError(f"{measure} (N of x, N of z)", sizes, f"the same N of {least} or more")
    if x.numel() == 0 or z.numel() == 0:
        raise InputError(f"{measure} (shape of x, shape of z)", (tuple(x.shape), tuple(z.shape)), "no empty rows")
    if x.is_complex() or z.is_complex():
        raise InputError(f"{measure} (dtype of x, dtype of z)", (x.dtype, z.dtype), "real numbers")
    floating = next((v.dtype for v in (x, z) if v.is_floating_point()), torch.get_default_dtype())
    return _flat(x, floating), _flat(z, floating)


def derangement(n: int, *, generator: torch.Generator, device: torch.device) -> Tensor:
    """A random order of n rows, all in one cycle, so that no row keeps its place.

    A plain permutation leaves one row where it was on average; a pair left together is one of the joint distribution
    among those that should be independent.

    Args:
        n: 2 or more.
        generator: Draws it.
        device: Where the (n,) indices are wanted.
    """
    cycle = torch.randperm(n, generator=generator, device=generator.device)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order.to(device)


def _flat(v: Tensor, floating: torch.dtype) -> Tensor:
    wanted = v.dtype if v.is_floating_point() else floating
    # Differences of close rows are all that the measures look at.
    return v.to(torch.promote_types(wanted, torch.float32)).reshape(len(v), -1)
