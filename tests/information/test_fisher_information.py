from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.information import (
    dfil,
    gaussian_prior_information,
    jacobian_trace,
    unbiased_mse_bound,
    van_trees_bound,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class Matrix(nn.Module):
    """z = A·x on flattened images."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.a.T


def convolutions(seed: int = 0) -> nn.Sequential:
    edge = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), nn.Sigmoid()
    ).double()
    with torch.no_grad():
        for name, value in edge.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=seeded(seed), dtype=value.dtype)
                value.copy_(drawn.abs() + 0.1 if name.endswith("running_var") else 0.4 * drawn)
    return edge


def exact_trace(edge: nn.Module, x: Tensor) -> Tensor:
    """Image by image, with the whole Jacobian."""
    edge = edge.eval()
    rows = [torch.autograd.functional.jacobian(lambda v: edge(v.unsqueeze(0)).flatten(), image) for image in x]
    return torch.stack([j.square().sum() for j in rows])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_one_probe_is_exact_where_the_rows_are_orthogonal(inputs: int, scale: int, seed: int) -> None:
    a = scale * torch.linalg.qr(normal(inputs, inputs, seed=seed))[0]
    trace = jacobian_trace(Matrix(a), normal(3, inputs, seed=seed), generator=seeded(seed), probes=1)
    torch.testing.assert_close(trace, torch.full((3,), float(a.square().sum()), dtype=torch.float64))


def test_mean_of_a_linear_edge_and_its_stated_deviation() -> None:
    a = normal(5, 7)
    exact = float(a.square().sum())
    gram = a @ a.T
    deviation = math.sqrt(2 * float(gram.square().sum() - gram.diagonal().square().sum()))
    found = jacobian_trace(Matrix(a), normal(2000, 7, seed=1), generator=seeded(), probes=4)
    assert float(found.mean()) == pytest.approx(exact, abs=3 * deviation / math.sqrt(8000))
    assert float(found.std()) == pytest.approx(deviation / 2, rel=0.1)
    assert float(found.std()) < math.sqrt(2 / 4) * exact


def test_convolutions_with_batch_norm_against_the_whole_jacobian() -> None:
    edge, x = convolutions(), torch.rand(3, 2, 8, 8, generator=seeded(1), dtype=torch.float64)
    found = jacobian_trace(edge, x, generator=seeded(2), probes=4000)
    torch.testing.assert_close(found, exact_trace(edge, x), rtol=0.05, atol=0)


def test_probes_are_signs() -> None:
    class Every(nn.Module):
        """Repeats what it is given: JJᵀ is a block of ones."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 1)

    # (u₁ + u₂)² is 0 or 4, and 2 on average.
    found = jacobian_trace(Every(), normal(400, 1), generator=seeded(), probes=1)
    assert set(found.tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(2, abs=0.3)


def test_images_do_not_mix() -> None:
    edge, x = convolutions(), torch.rand(4, 2, 8, 8, generator=seeded(1), dtype=torch.float64)
    other = x.clone()
    other[1:] = 0.5
    first, second = (jacobian_trace(edge, v, generator=seeded(3), probes=3) for v in (x, other))
    assert first[0] == pytest.approx(float(second[0]))
    assert not torch.allclose(first[1:], second[1:])


def test_chunks_give_the_same() -> None:
    edge, x = convolutions(), torch.rand(2, 2, 8, 8, generator=seeded(1), dtype=torch.float64)
    whole = jacobian_trace(edge, x, generator=seeded(3), probes=7)
    for chunk in (1, 3, 100):
        torch.testing.assert_close(jacobian_trace(edge, x, generator=seeded(3), probes=7, chunk=chunk), whole)


def test_edge_is_left_as_it_was() -> None:
    edge = convolutions().train()
    edge[1].eval()
    before = {name: value.clone() for name, value in edge.state_dict().items()}
    x = torch.rand(2, 2, 8, 8, generator=seeded(), dtype=torch.float64).requires_grad_()
    found = jacobian_trace(edge, x, generator=seeded())
    assert not found.requires_grad
    assert x.grad is None
    assert [layer.training for layer in edge.children()] == [True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in edge.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in edge.parameters())

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        jacobian_trace(broken, x, generator=seeded())
    assert broken.training


def test_dropout_is_off() -> None:
    edge = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
    torch.testing.assert_close(jacobian_trace(edge, torch.ones(2, 5), generator=seeded()), torch.full((2,), 5.0))


def test_only_the_generator_decides() -> None:
    edge, x = convolutions(), torch.rand(2, 2, 8, 8, generator=seeded(1), dtype=torch.float64)
    before = torch.get_rng_state()
    first = jacobian_trace(edge, x, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(jacobian_trace(edge, x, generator=seeded(1)), first)
    assert not torch.equal(jacobian_trace(edge, x, generator=seeded(2)), first)


def test_dfil_is_the_trace_per_pixel_and_noise() -> None:
    edge, x = convolutions(), torch.rand(2, 2, 8, 8, generator=seeded(1), dtype=torch.float64)
    trace = jacobian_trace(edge, x, generator=seeded(5), probes=3)
    found = dfil(edge, x, 0.04, generator=seeded(5), probes=3, chunk=2)
    torch.testing.assert_close(found, trace / (0.04 * 128))


def test_sending_the_image_itself_leaks_one_over_the_noise() -> None:
    x = torch.rand(3, 1, 4, 4, generator=seeded())
    leakage = dfil(nn.Identity(), x, 0.01, generator=seeded(), probes=1)
    torch.testing.assert_close(leakage, torch.full((3,), 100.0))
    torch.testing.assert_close(unbiased_mse_bound(leakage), torch.full((3,), 0.01))  # reading it off is the best


@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 10))
@settings(max_examples=25, deadline=None)
def test_unbiased_bound_is_below_least_squares(d: int, seed: int, variance: float) -> None:
    a = normal(d + 2, d, seed=seed)
    bound = unbiased_mse_bound((a.square().sum() / (variance * d)).view(1))
    least_squares = variance * float(torch.linalg.inv(a.T @ a).trace()) / d  # exact MSE of the best unbiased one
    assert 0 < float(bound) <= least_squares * (1 + 1e-9)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6), st.floats(0.01, 10))
@settings(max_examples=40, deadline=None)
def test_van_trees_is_below_the_exact_mmse_of_a_gaussian(d: int, k: int, seed: int, variance: float) -> None:
    a, root = normal(k, d, seed=seed), normal(d, d, seed=seed + 1)
    covariance = root @ root.T + 0.1 * torch.eye(d)
    leakage = (a.square().sum() / (variance * d)).view(1)
    bound = van_trees_bound(leakage, gaussian_prior_information(covariance))
    posterior = torch.linalg.inv(torch.linalg.inv(covariance) + a.T @ a / variance)
    assert 0 < bound <= float(posterior.trace()) / d * (1 + 1e-9)


def test_van_trees_is_exact_in_the_isotropic_case_with_a_measured_leakage() -> None:
    d, prior, noise = 6, 0.3, 0.05
    a = 1.7 * torch.linalg.qr(normal(d, d))[0]
    leakage = dfil(Matrix(a), normal(10, d), noise, generator=seeded(), probes=1)
    bound = van_trees_bound(leakage, gaussian_prior_information(torch.full((d,), prior)))
    assert bound == pytest.approx(1 / (1 / prior + 1.7**2 / noise))


def test_van_trees_averages_the_leakage_and_not_the_bounds() -> None:
    assert van_trees_bound(torch.tensor([1.0, 7.0]), 1.0) == pytest.approx(1 / 5)
    assert van_trees_bound(torch.tensor([0.0]), 0.0) == math.inf
    assert van_trees_bound(torch.tensor([0.0]), 4.0) == pytest.approx(0.25)  # nothing sent: the prior's own variance


def test_a_biased_attack_beats_the_unbiased_bound_and_not_van_trees() -> None:
    leakage = torch.tensor([2.0])
    posterior_mean = 1 / (2.0 + 1.0)  # x ~ N(0, 1), noise of variance 1/2: MSE of E[x | z]
    assert posterior_mean < float(unbiased_mse_bound(leakage))
    assert van_trees_bound(leakage, 1.0) == pytest.approx(posterior_mean)


def test_prior_information_of_a_gaussian() -> None:
    variances = torch.tensor([0.5, 2.0, 4.0])
    assert gaussian_prior_information(variances) == pytest.approx((2 + 0.5 + 0.25) / 3)
    assert gaussian_prior_information(torch.diag(variances)) == pytest.approx((2 + 0.5 + 0.25) / 3)
    root = normal(5, 5)
    covariance = root @ root.T + torch.eye(5)
    assert gaussian_prior_information(covariance) == pytest.approx(float(torch.linalg.inv(covariance).trace()) / 5)


@pytest.mark.parametrize(
    "covariance",
    [torch.zeros(0), torch.ones(2, 3), torch.ones(2, 2, 2), torch.tensor([1.0, 0.0]), -torch.eye(2), torch.ones(2, 2)],
)
def test_covariances_that_are_none(covariance: Tensor) -> None:
    with pytest.raises(InputError, match="covariance"):
        gaussian_prior_information(covariance)


def test_nothing_leaks_infinite_bound() -> None:
    assert unbiased_mse_bound(torch.tensor([0.0, 4.0])).tolist() == [math.inf, 0.25]


@pytest.mark.parametrize("leakage", [torch.tensor([-1.0]), torch.tensor([math.nan]), torch.zeros(0)])
def test_leakage_that_is_none(leakage: Tensor) -> None:
    with pytest.raises(InputError, match="leakage"):
        unbiased_mse_bound(leakage)
    with pytest.raises(InputError, match="leakage"):
        van_trees_bound(leakage, 1.0)


def test_arguments_out_of_range() -> None:
    x = torch.zeros(2, 3)
    for arguments in ({"probes": 0}, {"chunk": 0}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            jacobian_trace(nn.Identity(), x, generator=seeded(), **arguments)
    for empty in (torch.zeros(0, 3), torch.tensor(1.0)):
        with pytest.raises(InputError, match="shape of x"):
            jacobian_trace(nn.Identity(), empty, generator=seeded())
    with pytest.raises(InputError, match="one for each image"):
        jacobian_trace(nn.Flatten(0), x, generator=seeded())
    for variance in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="noise_variance"):
            dfil(nn.Identity(), x, variance, generator=seeded())
    for prior in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="prior_information"):
            van_trees_bound(torch.ones(1), prior)
