"""Sums and products within groups of rows, for all groups at once."""

from __future__ import annotations

import torch
from torch import Tensor


def group_sums(rows: Tensor, index: Tensor, groups: int) -> Tensor:
    """Sum of the rows of each group.

    Args:
        rows: (N, ...).
        index: (N,) group of each row, 0 to ``groups`` − 1.
        groups: G.

    Returns:
        (G, ...).
    """
    return rows.new_zeros(groups, *rows.shape[1:]).index_add_(0, index, rows)


def add_outer_products(sums: Tensor, rows: Tensor, index: Tensor) -> None:
    """Add Σ r rᵀ over the rows of each group to ``sums``, in place.

    Args:
        sums: (G, D, D).
        rows: (N, D).
        index: (N,) group of each row.
    """
    padded, _ = _padded(rows, index, len(sums))
    sums.baddbmm_(padded.mT, padded)


def group_products(matrices: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """A_g r of each row with the symmetric matrix of its own group.

    Args:
        matrices: (G, D, D), symmetric.
        rows: (N, D).
        index: (N,) group of each row.

    Returns:
        (N, D).
    """
    if rows.device.type != "cpu":
        # The size of the largest group would have to be waited for; gathering the matrices costs memory only.
        return torch.bmm(matrices[index], rows.unsqueeze(-1)).squeeze(-1)
    padded, place = _padded(rows, index, len(matrices))
    return torch.bmm(padded, matrices)[index, place]


def _padded(rows: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Rows as (G, size of the largest group, D), filled up with zeros; and each row's place in its group."""
    order = index.argsort(stable=True)
    sizes = torch.bincount(index, minlength=groups)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(index)
    place[order] = torch.arange(len(index), device=index.device) - starts[index[order]]
    padded = rows.new_zeros(groups, int(sizes.max()) if len(index) else 0, rows.shape[1])
    padded[index, place] = rows
    return padded, place
