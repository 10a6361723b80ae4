from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.information.grouping import add_outer_products, group_products, group_sizes, group_sums


@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_groups_against_loops(n: int, groups: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    index = torch.randint(0, groups, (n,), generator=generator)
    matrices = torch.randn(groups, d, d, generator=generator, dtype=torch.float64)
    wide = torch.randn(groups, d, 3, generator=generator, dtype=torch.float64)
    sums, outer = torch.zeros(groups, d).double(), matrices.clone()
    products = torch.zeros(n, 3).double()
    for i, g in enumerate(index.tolist()):
        sums[g] += rows[i]
        outer[g] += torch.outer(rows[i], rows[i])
        products[i] = rows[i] @ wide[g]
    torch.testing.assert_close(group_sums(rows, index, groups), sums)
    torch.testing.assert_close(group_products(rows, wide, index), products)
    assert group_sizes(index, groups).tolist() == [index.tolist().count(g) for g in range(groups)]
    found = matrices.clone()
    add_outer_products(found, rows, index)
    torch.testing.assert_close(found, outer)
