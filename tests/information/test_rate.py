from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from sfumato.errors import InputError
from sfumato.information import (
    add_variance,
    conditional_entropy_bound,
    feature_utility,
    log_densities,
    log_determinants,
    mixture_rate,
    mmse_bound,
    relative_conditional_entropy,
)

FORMS = ("isotropic", "diagonal", "full")


def covariances_of(form: str, m: int = 3, d: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if form == "full":
        roots = torch.randn(m, d, d, generator=generator, dtype=torch.float64)
        return roots @ roots.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    shape = (m,) if form == "isotropic" else (m, d)
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1


def as_matrices(covariances: Tensor, d: int) -> Tensor:
    if covariances.ndim == 3:
        return covariances
    rows = covariances.unsqueeze(-1).expand(-1, d) if covariances.ndim == 1 else covariances
    return torch.diag_embed(rows)


def weights_of(m: int = 3) -> Tensor:
    weights = torch.arange(1, m + 1, dtype=torch.float64)
    return weights / weights.sum()


@pytest.mark.parametrize("form", FORMS)
def test_rate_is_the_sum_of_the_definition(form: str) -> None:
    covariances, weights, noise, d = covariances_of(form), weights_of(), 0.3, 4
    slow = 0.0
    for weight, matrix in zip(weights.tolist(), as_matrices(covariances, d)):
        sent = torch.linalg.det(matrix + noise * torch.eye(d, dtype=torch.float64))
        slow += weight * (-math.log(weight) + 0.5 * math.log(float(sent) / noise**d))
    assert float(mixture_rate(weights, covariances, noise, dim=d)) == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_the_rate_is_right(form: str) -> None:
    covariances = covariances_of(form).requires_grad_()
    torch.autograd.gradcheck(
        lambda c: mixture_rate(weights_of(), 0.5 * (c + c.mT) if c.ndim == 3 else c, 0.2, dim=4), (covariances,)
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_rate_are_those_of_the_definition(form: str) -> None:
    """In covariances and weights, against autograd through determinants of whole matrices."""
    noise, d = 0.2, 4
    given = (weights_of(), covariances_of(form))
    found, expected = ([t.clone().requires_grad_() for t in given] for _ in range(2))
    mixture_rate(found[0], found[1], noise, dim=d).backward()
    sent = as_matrices(expected[1], d) / noise + torch.eye(d, dtype=torch.float64)
    (expected[0] * (0.5 * torch.logdet(sent) - expected[0].log())).sum().backward()
    for ours, dense in zip(found, expected):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, dense.grad, rtol=1e-5, atol=0.0)


def test_one_component_gives_the_mutual_information_of_the_gaussian_channel() -> None:
    variance, noise, d = 0.7, 0.2, 5
    rate = mixture_rate(torch.ones(1), torch.tensor([variance]), noise, dim=d)
    assert float(rate) == pytest.approx(d / 2 * math.log(1 + variance / noise), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 10), st.floats(1.01, 5))
def test_more_noise_means_a_lower_rate(noise: float, factor: float) -> None:
    covariances = covariances_of("diagonal")
    assert mixture_rate(weights_of(), covariances, noise * factor) < mixture_rate(weights_of(), covariances, noise)


def test_components_without_spread_leave_the_entropy_of_the_choice() -> None:
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0])
    assert float(mixture_rate(weights, torch.zeros(4, 3), 0.1)) == pytest.approx(1.5 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_log_densities_are_those_of_pytorch(form: str) -> None:
    covariances, generator = covariances_of(form), torch.Generator().manual_seed(1)
    z = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    means = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    expected = [MultivariateNormal(m, c).log_prob(z) for m, c in zip(means, as_matrices(covariances, 4))]
    torch.testing.assert_close(log_densities(z, means, covariances), torch.stack(expected, 1))


@pytest.mark.parametrize("form", FORMS)
def test_log_determinants_and_added_variance(form: str) -> None:
    covariances = covariances_of(form)
    expected = torch.logdet(as_matrices(covariances, 4) + 0.5 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(log_determinants(add_variance(covariances, 0.5), 4), expected)


def test_bound_is_met_by_an_isotropic_gaussian() -> None:
    d, variance = 7, 0.03
    entropy = d / 2 * math.log(2 * math.pi * math.e * variance)
    assert float(mmse_bound(entropy, d)) == pytest.approx(variance, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=6))
def test_bound_never_exceeds_the_mean_variance_of_a_gaussian(variances: list[float]) -> None:
    spread = torch.tensor(variances, dtype=torch.float64)
    entropy = 0.5 * (2 * math.pi * math.e * spread).log().sum()
    assert float(mmse_bound(entropy, len(variances))) <= float(spread.mean()) * (1 + 1e-9)


def test_entropy_bounds_are_differences() -> None:
    assert float(conditional_entropy_bound(10.0, 3.0)) == 7.0
    assert float(relative_conditional_entropy(3.0, reference=5.0)) == 2.0
    noise = (0.1, 0.4)
    loud, quiet = (mixture_rate(weights_of(), covariances_of("diagonal"), s) for s in reversed(noise))
    assert relative_conditional_entropy(loud, quiet) > 0


@pytest.mark.parametrize("form", FORMS)
def test_utility_is_the_mean_posterior_of_the_own_component(form: str) -> None:
    covariances, generator = covariances_of(form), torch.Generator().manual_seed(2)
    z = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    means = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    own, weights = torch.tensor([0, 1, 2, 2, 0]), weights_of()
    densities = [MultivariateNormal(m, c).log_prob(z).exp() for m, c in zip(means, as_matrices(covariances, 4))]
    slow = 0.0
    for n, c in enumerate(own.tolist()):
        evidence = sum(float(weights[j] * densities[j][n]) for j in range(3))
        slow += float(weights[c] * densities[c][n]) / evidence / len(z)
    assert float(feature_utility(z, own, weights, means, covariances)) == pytest.approx(slow, rel=1e-9)


def test_utility_of_two_components_far_and_near() -> None:
    means, own = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    far = feature_utility(means, own, torch.tensor([0.5, 0.5]), means, torch.tensor([0.01, 0.01]))
    near = feature_utility(means, own, torch.tensor([0.5, 0.5]), means, torch.tensor([1.0, 1.0]))
    same = Normal(0, 1).log_prob(torch.tensor(0.0)).exp()
    other = Normal(0, 1).log_prob(torch.tensor(2.0)).exp()
    assert float(far) == pytest.approx(1.0)
    assert float(near) == pytest.approx(float(same / (same + other)), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: mixture_rate(torch.tensor([0.5, 0.4]), torch.ones(2), 0.1, dim=2), "weights"),
        (lambda: mixture_rate(torch.tensor([1.5, -0.5]), torch.ones(2), 0.1, dim=2), "weights"),
        (lambda: mixture_rate(torch.ones(1), torch.ones(2), 0.1, dim=2), "shapes of weights"),
        (lambda: mixture_rate(torch.ones(1), torch.ones(1), 0.1), "dim"),
        (lambda: mixture_rate(torch.ones(1), torch.ones(1, 3), 0.1, dim=2), "dim"),
        (lambda: mixture_rate(torch.ones(1), torch.ones(1, 3, 2), 0.1), "shape of covariances"),
        (lambda: mixture_rate(torch.ones(1), torch.ones(1, 2), 0.0), "noise_variance"),
        (lambda: mmse_bound(1.0, 0), "dim"),
        (lambda: log_densities(torch.ones(2, 3), torch.ones(1, 2), torch.ones(1)), "shapes of z"),
        (lambda: log_densities(torch.ones(2, 3), torch.ones(1, 3), torch.ones(1, 3, 3)), "covariances"),
        (lambda: log_determinants(torch.zeros(2, 3, 3)), "covariances"),
    ],
)
def test_bad_input_is_named(call, field: str) -> None:
    with pytest.raises(InputError, match=field):
        call()
