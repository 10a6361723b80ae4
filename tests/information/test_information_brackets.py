"""MINE from below and CLUB from above, on correlated Gaussians, whose information is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.information import Fitting, estimate_mutual_information, estimate_upper_bound

FITTING = Fitting(steps=1500, batch=512, learning_rate=2e-3)


def correlated(n: int, d: int, rho: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "rho"), [(3, 0.6), (4, 0.7)])
def test_mine_and_club_bracket_the_truth(d: int, rho: float) -> None:
    x, z = correlated(30_000, d, rho)
    information = -d / 2 * math.log(1 - rho**2)
    club_limit = d * rho**2 / (1 - rho**2)  # CLUB with the true conditional: it is no tighter
    below = estimate_mutual_information(x, z, generator=torch.Generator().manual_seed(2), fitting=FITTING)
    above = estimate_upper_bound(x, z, generator=torch.Generator().manual_seed(2), fitting=FITTING)
    assert 0.9 * information < below < information + 0.03
    assert information < above
    assert above == pytest.approx(club_limit, rel=0.1)


@pytest.mark.slow
def test_independent_pairs_have_next_to_no_information() -> None:
    x, _ = correlated(8000, 3, 0.0)
    z = torch.randn(8000, 3, generator=torch.Generator().manual_seed(3))
    short = Fitting(steps=300, batch=512)
    below = estimate_mutual_information(x, z, generator=torch.Generator().manual_seed(2), fitting=short)
    above = estimate_upper_bound(x, z, generator=torch.Generator().manual_seed(2), fitting=short)
    assert abs(below) < 0.02
    assert abs(above) < 0.05


@pytest.mark.slow
def test_more_noise_leaves_less_information_by_both_measures() -> None:
    values = []
    for rho in (0.3, 0.6, 0.9):
        x, z = correlated(6000, 2, rho)
        short, seed = Fitting(steps=300, batch=512, learning_rate=2e-3), torch.Generator().manual_seed(2)
        values.append(
            [f(x, z, generator=seed, fitting=short) for f in (estimate_mutual_information, estimate_upper_bound)]
        )
    assert values[0][0] < values[1][0] < values[2][0]
    assert values[0][1] < values[1][1] < values[2][1]
