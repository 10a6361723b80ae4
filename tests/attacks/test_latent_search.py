"""The search by itself: closed-form minima, one victim apart from another, the best that was ever seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.attacks.feature.latent_search import best_of, feature_gap, minimize, total_variation

CENTERS = torch.tensor([[1.0, -2.0], [0.5, 0.25], [3.0, 0.0]])


def bowl(point: Tensor) -> Tensor:
    return (point - CENTERS[: len(point)]).square().sum(1) + 1.0


def test_finds_the_minimum_of_each() -> None:
    best, value = minimize(bowl, torch.zeros(3, 2), steps=300, step_size=0.1)
    torch.testing.assert_close(best, CENTERS, atol=1e-2, rtol=0)
    torch.testing.assert_close(value, torch.ones(3), atol=1e-3, rtol=0)
    assert not best.requires_grad


def test_victims_do_not_bear_on_each_other() -> None:
    together, _ = minimize(bowl, torch.zeros(3, 2), steps=20, step_size=0.1)
    alone, _ = minimize(bowl, torch.zeros(1, 2), steps=20, step_size=0.1)
    torch.testing.assert_close(together[:1], alone)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 30), st.floats(0.01, 5.0), st.integers(0, 1000))
def test_is_never_worse_than_the_start_and_tells_its_own_value(steps: int, rate: float, seed: int) -> None:
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed))

    def rough(point: Tensor) -> Tensor:
        return bowl(point) + (7 * point).sin().sum(1)

    best, value = minimize(rough, start, steps=steps, step_size=rate)
    assert (value <= rough(start)).all()
    torch.testing.assert_close(rough(best), value)


def test_the_best_is_kept_of_a_path_that_leads_away() -> None:
    """Steps much too large: the start is as good as it gets."""
    best, value = minimize(bowl, CENTERS + 0.01, steps=5, step_size=50.0)
    torch.testing.assert_close(best, CENTERS + 0.01)
    torch.testing.assert_close(value, bowl(CENTERS + 0.01))


def test_bounds_and_steps() -> None:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1

    best, _ = minimize(bowl, torch.zeros(3, 2), steps=300, step_size=0.1, bounds=(0.0, 1.0), each_step=tick)
    torch.testing.assert_close(best, CENTERS.clamp(0, 1), atol=1e-2, rtol=0)
    assert count == 300
    start = torch.ones(3, 2)
    assert torch.equal(minimize(bowl, start, steps=0, step_size=0.1)[0], start)
    assert torch.equal(start, torch.ones(3, 2))


def test_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        best, _ = minimize(bowl, torch.zeros(3, 2), steps=300, step_size=0.1)
    torch.testing.assert_close(best, CENTERS, atol=1e-2, rtol=0)


def test_best_of_several() -> None:
    tries = [(torch.full((3, 1, 2), float(i)), torch.tensor(values)) for i, values in enumerate(
        ([3.0, float("nan"), 0.5], [1.0, 2.0, 0.7], [2.0, 5.0, float("inf")])
    )]  # fmt: skip
    points, values = best_of(tries)
    assert points[:, 0, 0].tolist() == [1.0, 1.0, 0.0]
    assert values.tolist() == [1.0, 2.0, 0.5]


def test_terms() -> None:
    z = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    gap = feature_gap(z.mean(0).expand_as(z), z, float(z.var(0, correction=0).mean()))
    assert float(gap.mean()) == pytest.approx(1, rel=1e-5), "right on average only"
    assert feature_gap(z, z, 2.0).tolist() == [0.0] * 4
    ramp = torch.arange(4.0).expand(2, 1, 3, 4) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    assert total_variation(ramp).tolist() == [1.0, 4.0]
    assert total_variation(ramp.mT).tolist() == [1.0, 4.0]
