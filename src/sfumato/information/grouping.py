"""Sums and products within groups of rows, for all groups at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""From a tensor of this process to its sum over all that share a batch, in each of them; its argument is left alone."""


def alone(tensor: Tensor) -> Tensor:
    """The :data:`Total` of a process that has the whole batch."""
    return tensor


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


def group_sizes(index: Tensor, groups: int) -> Tensor:
    """Number of rows of each group, (G,) int64. Unlike ``bincount`` it waits for no device.

    Args:
        index: (N,) group of each row.
        groups: G.
    """
    return index.new_zeros(groups).index_add_(0, index, torch.ones_like(index))


def add_outer_products(sums: Tensor, rows: Tensor, index: Tensor) -> None:
    """Add Σ r rᵀ over the rows of each group to ``sums``, in place.

    Args:
        sums: (G, D, D).
        rows: (N, D).
        index: (N,) group of each row.
    """
    if len(rows) == 0:
        return
    padded, place = _padded(rows, index, len(sums))
    filled = rows.new_zeros(len(sums) * padded.shape[1]).index_fill_(0, place, 1.0)
    padded *= filled.view(len(sums), -1, 1)
    sums.baddbmm_(padded.mT, padded)


def group_products(rows: Tensor, matrices: Tensor, index: Tensor) -> Tensor:
    """Each row times the matrix of its own group.

    Args:
        rows: (N, D).
        matrices: (G, D, E).
        index: (N,) group of each row.

    Returns:
        (N, E).
    """
    groups, _, columns = matrices.shape
    # Where the size of the largest group would have to be waited for, gathering the matrices costs memory only; and it
    # takes less where nearly all rows are of one group.
    if rows.device.type == "cpu" and groups * int(group_sizes(index, groups).max()) <= len(rows) * columns:
        padded, place = _padded(rows, index, groups)
        # This way round a few columns are multiplied twice as fast.
        return torch.bmm(matrices.mT, padded.mT).mT.flatten(0, 1).index_select(0, place)
    return torch.bmm(rows.unsqueeze(1), matrices[index]).squeeze(1)


def _padded(rows: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Rows as (G, size of the largest group, D), filled up with any row; and each row's place in it, flattened."""
    group, order = index.sort(stable=True)
    sizes = group_sizes(index, groups)
    largest = int(sizes.max())
    count = torch.arange(max(groups, len(index)), device=index.device)
    # The i-th row of a group is at i places after its group's first.
    first = count[:groups] * largest - (sizes.cumsum(0) - sizes)
    sorted_place = count[: len(index)] + first.index_select(0, group)
    place = torch.empty_like(index).index_copy_(0, order, sorted_place)
    source = order.new_zeros(groups * largest).index_copy_(0, sorted_place, order)
    # Selecting rows is several times faster than writing them to their places.
    return rows.index_select(0, source).view(groups, largest, rows.shape[1]), place
