"""MINE from below and CLUB from above, on correlated Gaussians, whose information is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.information import Fitting, estimate_mutual_information, estimate_upper_bound

FITTING = Fitting(steps=800, batch=512, learning_rate=2e-3)


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
    x, z = correlated(8000, 3, 0.0)
    short = Fitting(steps=150)
    below = estimate_mutual_information(x, z, generator=torch.Generator().manual_seed(2), fitting=short)
    above = estimate_upper_bound(x, z, generator=torch.Generator().manual_seed(2), fitting=short)
    assert abs(below) < 0.02
    assert abs(above) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("measure", [estimate_mutual_information, estimate_upper_bound])
def test_more_noise_leaves_less_information(measure) -> None:
    short, values = Fitting(steps=100, learning_rate=3e-3), []
    for rho in (0.9, 0.6, 0.3):
        x, z = correlated(3000, 2, rho)
        values.append(measure(x, z, generator=torch.Generator().manual_seed(2), fitting=short, hidden=32))
    assert values[0] > values[1] > values[2] > 0
