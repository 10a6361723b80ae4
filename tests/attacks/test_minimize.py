"""Descent in a box, of many images at once: against closed forms, SciPy, and each image alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_toys import generator
from scipy.optimize import lsq_linear
from torch import Tensor

from sfumato.attacks.feature.minimize import Method, Minimum, Objective, _History, free, minimize

METHODS: tuple[Method, ...] = ("adam", "sgd", "lbfgs")
EXACT: dict[Method, float] = {"adam": 2e-3, "sgd": 1e-3, "lbfgs": 1e-6}
"""How far above the least value each may end, relative to it."""
LR: dict[Method, float] = {"adam": 0.05, "sgd": 0.1, "lbfgs": 0.1}
SHAPE = (1, 3, 2)


def least_squares(n: int, *, inside: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A (n, 8, 6) and b (n, 8): the solutions of A·x = b lie inside the box, or many of their elements outside."""
    drawn = generator(seed)
    a = torch.randn(n, 8, 6, generator=drawn, dtype=torch.float64) * torch.linspace(0.5, 1.5, n).view(-1, 1, 1)
    x = torch.rand(n, 6, generator=drawn, dtype=torch.float64)
    x = 0.2 + 0.6 * x if inside else 3 * x - 1
    off = torch.randn(n, 8, generator=drawn, dtype=torch.float64) * 0.02
    return a, (a @ x.unsqueeze(-1)).squeeze(-1) + off


def objective_of(a: Tensor, b: Tensor) -> Objective:
    def objective(x: Tensor, rows: Tensor) -> Tensor:
        return ((a[rows] @ x.flatten(1).unsqueeze(-1)).squeeze(-1) - b[rows]).square().mean(1)

    return objective


def run(objective: Objective, n: int, method: Method, *, steps: int = 2000, lr: float | None = None) -> Minimum:
    start = torch.full((n, *SHAPE), 0.5, dtype=torch.float64)
    return minimize(objective, start, method=method, steps=steps, lr=lr or LR[method])


@pytest.mark.parametrize("method", METHODS)
def test_closed_form_where_the_box_does_not_bind(method: Method) -> None:
    a, b = least_squares(5, inside=True)
    found = run(objective_of(a, b), 5, method)
    exact = torch.linalg.lstsq(a, b.unsqueeze(-1)).solution.squeeze(-1)
    least = objective_of(a, b)(exact, torch.arange(5))
    assert exact.min() > 0
    assert exact.max() < 1
    torch.testing.assert_close(found.values, least, rtol=EXACT[method], atol=0)
    torch.testing.assert_close(found.images.flatten(1), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_scipy_where_it_does(method: Method) -> None:
    a, b = least_squares(5, inside=False)
    found = run(objective_of(a, b), 5, method)
    exact = np.stack([lsq_linear(p, q, (0, 1), method="bvls").x for p, q in zip(a.numpy(), b.numpy())])
    least = objective_of(a, b)(torch.from_numpy(exact), torch.arange(5))
    assert ((exact <= 1e-9) | (exact >= 1 - 1e-9)).sum() >= 8
    torch.testing.assert_close(found.values, least, rtol=EXACT[method], atol=1e-9)
    torch.testing.assert_close(found.images.flatten(1), torch.from_numpy(exact), rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_remembered_is_what_was_seen(method: Method) -> None:
    a, b = least_squares(6, inside=False)
    objective = objective_of(a, b)
    previous = torch.full((6,), torch.inf, dtype=torch.float64)
    for steps in (0, 1, 2, 5, 20):
        found = run(objective, 6, method, steps=steps)
        torch.testing.assert_close(objective(found.images, torch.arange(6)), found.values)
        assert (found.images >= 0).all()
        assert (found.images <= 1).all()
        assert (found.steps <= steps).all()
        if method == "lbfgs":  # the others take shorter steps where there are fewer
            assert (found.values <= previous).all()
        previous = found.values
    start = run(objective, 6, method, steps=0)
    assert (start.images == 0.5).all()
    assert (found.values < start.values).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_image_goes_its_way_whatever_goes_beside_it(method: Method) -> None:
    """Also where its neighbors end early, or are not finite."""
    a, b = least_squares(6, inside=False)
    a[1], b[1] = 0, 0  # nothing to improve
    b[4] = torch.nan
    together = run(objective_of(a, b), 6, method, steps=60)
    for i in range(6):
        alone = run(objective_of(a[i : i + 1], b[i : i + 1]), 1, method, steps=60)
        torch.testing.assert_close(alone.images[0], together.images[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.values[0], together.values[i])
        assert alone.steps[0] == together.steps[i]
    assert together.steps[1] == 0
    assert together.steps[0] > 10


@pytest.mark.parametrize("method", METHODS)
def test_not_finite_stays_where_it_was(method: Method) -> None:
    a, b = least_squares(3, inside=True)
    b[1] = torch.nan
    found = run(objective_of(a, b), 3, method)
    assert torch.isinf(found.values[1])
    assert (found.images[1] == 0.5).all()
    assert found.steps[1] == 0
    assert found.images.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_moves_nothing(method: Method) -> None:
    def root(x: Tensor, rows: Tensor) -> Tensor:
        return (x - 0.5).flatten(1).abs().sum(1).sqrt()  # slope 0/0 at its start

    found = run(root, 2, method, steps=5)
    assert (found.images == 0.5).all()


@pytest.mark.parametrize("method", METHODS)
def test_ends_when_it_cannot_improve(method: Method) -> None:
    ticks: list[int] = []
    a, b = least_squares(3, inside=True)
    start = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    found = minimize(
        objective_of(a, b), start, method=method, steps=100_000, lr=LR[method], tick=lambda: ticks.append(1)
    )
    assert len(ticks) < 3000
    assert len(ticks) == int(found.steps.max())


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_too_long_a_step_is_shortened(method: Method) -> None:
    """A step length at which plain gradient descent would run away: nineteen times the longest that is stable."""
    a, b = least_squares(4, inside=True)
    curvature = torch.linalg.matrix_norm(a, 2).square().max() * 2 / 8 * 6
    found = run(objective_of(a, b), 4, method, lr=float(38 / curvature))
    exact = torch.linalg.lstsq(a, b.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(found.values, objective_of(a, b)(exact, torch.arange(4)), rtol=0.02, atol=0)


def test_values_below_zero_are_values_too() -> None:
    """The rule for going back compares with the size of the best value."""
    a, b = least_squares(4, inside=True)
    plain = objective_of(a, b)
    found = run(lambda x, rows: plain(x, rows) - 5, 4, "sgd")
    exact = torch.linalg.lstsq(a, b.unsqueeze(-1)).solution.squeeze(-1)
    # A thousandth of 5 is all that it strives for.
    torch.testing.assert_close(found.values + 5, plain(exact, torch.arange(4)), rtol=0, atol=5e-3)


def test_quasi_newton_needs_few_steps_where_gradients_need_many() -> None:
    scales = torch.tensor([1.0, 3, 10, 30, 100, 300], dtype=torch.float64)
    goal = torch.tensor([0.1, 0.9, 0.4, 0.7, 0.2, 0.6], dtype=torch.float64)

    def valley(x: Tensor, rows: Tensor) -> Tensor:
        return (scales * (x.flatten(1) - goal).square()).mean(1)

    assert float(run(valley, 1, "lbfgs", steps=40).values) < 1e-10
    assert float(run(valley, 1, "sgd", steps=40, lr=0.001).values) > 1e-4


def test_pixels_at_the_border_are_free_to_come_back() -> None:
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5])
    gradient = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0])
    assert free(x, gradient).tolist() == [False, True, False, True, True]


def test_the_gradient_leaves_the_model_alone() -> None:
    weight = torch.ones(1, requires_grad=True)
    run(lambda x, rows: (weight * x).square().flatten(1).mean(1), 2, "adam", steps=3)
    assert weight.grad is None


def test_a_pair_without_curvature_counts_for_nothing() -> None:
    """Along it the slope falls: taken for an estimate of the Hessian it would point uphill."""
    x = torch.zeros(2, *SHAPE, dtype=torch.float64)
    history = _History(x)
    move, gradient = torch.rand(2, *SHAPE, generator=generator(0), dtype=torch.float64), torch.ones_like(x)
    slope = torch.stack([-move[0], 4 * move[1]])  # bent downwards; of curvature 4
    history.add(move, slope, torch.tensor([True, True]))
    assert history.empty().tolist() == [True, False]
    direction = history.direction(gradient)
    torch.testing.assert_close(direction[0], gradient[0])
    torch.testing.assert_close(direction[1], gradient[1] / 4)
    history.forget(torch.tensor([False, True]))
    torch.testing.assert_close(history.direction(gradient), gradient)
