"""Test beds: closed forms against other closed forms, against brute force, and against samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from sfumato.errors import InputError
from sfumato.information import Estimate, Figures, GaussianMixture, LinearChannel, LinearGaussian, mmse_bound

GRID = [(d, k, sigma) for d, k in ((1, 1), (4, 2), (6, 6), (9, 1)) for sigma in (0.05, 0.5, 3.0)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spd(d: int, seed: int) -> Tensor:
    a = torch.randn(d, d, generator=generator(seed), dtype=torch.float64)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def channel(d: int, k: int, sigma: float, seed: int = 7) -> LinearChannel:
    return LinearChannel(torch.randn(k, d, generator=generator(seed), dtype=torch.float64), sigma, (k, 1, 1))


def gaussian(d: int, k: int, sigma: float, seed: int = 0) -> LinearGaussian:
    mean = torch.randn(1, 1, d, generator=generator(seed + 1), dtype=torch.float64)
    return LinearGaussian(mean, spd(d, seed), channel(d, k, sigma))


def mixture(d: int, k: int, sigma: float, *, spread: float = 1.0, seed: int = 0) -> GaussianMixture:
    weights = torch.tensor([0.5, 0.3, 0.2])
    means = spread * torch.randn(3, 1, 1, d, generator=generator(seed + 1), dtype=torch.float64)
    scales = torch.tensor([1.0, 0.2, 2.0]).view(3, 1, 1)
    covariances = torch.stack([spd(d, seed + i) for i in range(3)]) * scales
    return GaussianMixture(weights, means, covariances, channel(d, k, sigma))


def errors_of(bed: LinearGaussian | GaussianMixture, estimate: Tensor, x: Tensor) -> Tensor:
    return (estimate - x).square().flatten(1).mean(1)


def near(values: Tensor, expected: float, room: float = 4.0) -> bool:
    """Whether the mean of independent values is what is expected, within ``room`` standard errors."""
    return abs(float(values.mean()) - expected) <= room * float(values.std()) / len(values) ** 0.5


@pytest.mark.parametrize(("d", "k", "sigma"), GRID)
def test_gaussian_figures_by_the_precision_matrix(d: int, k: int, sigma: float) -> None:
    """P = (S⁻¹ + WᵀW/σ²)⁻¹ is another way to the posterior covariance than the one of the code."""
    bed = gaussian(d, k, sigma)
    s, w = bed.covariance.numpy(), bed.channel.weight.numpy()
    p = np.linalg.inv(np.linalg.inv(s) + w.T @ w / sigma**2)
    e = 2 * math.pi * math.e
    f = bed.figures()
    assert f.dim == d
    assert f.sigma == sigma
    assert f.entropy.value == pytest.approx(np.linalg.slogdet(e * s)[1] / 2)
    assert f.feature_entropy.value == pytest.approx(np.linalg.slogdet(e * (w @ s @ w.T + sigma**2 * np.eye(k)))[1] / 2)
    assert f.conditional_entropy.value == pytest.approx(np.linalg.slogdet(e * p)[1] / 2)
    assert f.information.value == pytest.approx(np.linalg.slogdet(np.eye(d) + s @ w.T @ w / sigma**2)[1] / 2)
    assert f.rate == pytest.approx(f.information.value, abs=1e-12)
    assert f.mmse.value == pytest.approx(np.trace(p) / d)
    assert f.linear_mse == pytest.approx(f.mmse.value)
    assert f.prior_variance == pytest.approx(np.trace(s) / d)
    assert f.bound.value == pytest.approx(np.linalg.det(p) ** (1 / d))
    assert f.bound.value == pytest.approx(float(mmse_bound(f.conditional_entropy.value, d)))
    assert all(value.error == 0 for value in vars(f).values() if isinstance(value, Estimate))

    x, _ = bed.draw(5, generator=generator())
    z = bed.channel.send(x, generator=generator())
    mean = bed.mean.flatten().numpy()
    expected = mean + (z.flatten(1).numpy() - mean @ w.T) @ w @ p.T / sigma**2
    np.testing.assert_allclose(bed.reconstruct(z).flatten(1).numpy(), expected, atol=1e-9)
    assert bed.reconstruct(z).shape == x.shape


@pytest.mark.parametrize("kind", [gaussian, mixture])
@pytest.mark.parametrize(("d", "k", "sigma"), GRID)
def test_the_sandwich(kind, d: int, k: int, sigma: float) -> None:
    """Theorem 1's bound ≤ mmse ≤ error on samples, and no other estimator does better."""
    bed = kind(d, k, sigma)
    f = bed.figures(generator=generator(3), samples=6000)
    assert f.bound.value <= f.mmse.value * (1 + 1e-12)
    assert f.mmse.value <= f.linear_mse * (1 + 1e-12) + 4 * f.mmse.error
    assert f.linear_mse <= f.prior_variance * (1 + 1e-12)
    x, _ = bed.draw(6000, generator=generator(4))
    z = bed.channel.send(x, generator=generator(5))
    best = errors_of(bed, bed.reconstruct(z), x)
    assert abs(float(best.mean()) - f.mmse.value) <= 4 * math.hypot(float(best.std()) / 6000**0.5, f.mmse.error)

    w, flat = bed.channel.weight, x.flatten(1)
    mean = flat.mean(0)
    wrong = replace(bed, channel=replace(bed.channel, sigma=3 * sigma))
    ridge = mean + (z.flatten(1) - w @ mean) @ torch.linalg.solve(w @ w.T + sigma**2 * torch.eye(k), w)
    others = {
        "mean": mean.expand_as(flat),
        "wrong noise": wrong.reconstruct(z).flatten(1),
        "ridge": ridge,
        "ten times": 10 * bed.reconstruct(z).flatten(1),
    }
    for name, estimate in others.items():
        excess = errors_of(bed, estimate.view_as(x), x) - best
        assert float(excess.mean()) > -4 * float(excess.std()) / 6000**0.5, name
    assert near(errors_of(bed, x.mean(0).expand_as(x), x), f.prior_variance, 5.0)


def test_other_estimators_are_worse_where_they_should_be() -> None:
    bed = mixture(4, 2, 0.5)
    x, _ = bed.draw(20_000, generator=generator(4))
    z = bed.channel.send(x, generator=generator(5))
    f = bed.figures(generator=generator())
    # Least squares on the samples themselves: the best linear reconstruction, found by another way.
    design = torch.cat([z.flatten(1), torch.ones(len(z), 1)], 1).double()
    fitted = design @ torch.linalg.lstsq(design, x.flatten(1)).solution
    linear = errors_of(bed, fitted.view_as(x), x)
    assert near(linear, f.linear_mse)
    assert f.linear_mse > 1.05 * f.mmse.value
    assert float((linear - errors_of(bed, bed.reconstruct(z), x)).mean()) > 0.03 * f.mmse.value


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("d", [1, 3, 8])
def test_theorem_1_is_met_in_the_isotropic_case(d: int, sigma: float) -> None:
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator(), dtype=torch.float64)).Q
    bed = LinearGaussian(torch.zeros(1, 1, d), 0.3 * torch.eye(d), LinearChannel(1.7 * rotation, sigma, (d,)))
    f = bed.figures()
    assert f.bound.value == pytest.approx(f.mmse.value, rel=1e-9)
    assert f.mmse.value == pytest.approx(0.3 * sigma**2 / (sigma**2 + 1.7**2 * 0.3), rel=1e-6)
    if d > 1:
        stretched = replace(bed, covariance=torch.diag(torch.tensor([3.0, *[0.3] * (d - 1)])))
        assert stretched.figures().bound.value < (1 - 1e-7) * stretched.figures().mmse.value


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 5), st.floats(1.1, 4), st.integers(0, 50), st.sampled_from([1, 3, 5]))
def test_noise_takes_information(sigma: float, factor: float, seed: int, k: int) -> None:
    bed = gaussian(5, k, sigma, seed)
    noisier = replace(bed, channel=replace(bed.channel, sigma=factor * sigma))
    f, g = bed.figures(), noisier.figures()
    assert g.information.value < f.information.value
    assert g.mmse.value > f.mmse.value
    assert g.bound.value > f.bound.value
    # The unit in which the feature is measured does not matter, nor does where the images lie.
    scaled = LinearChannel(factor * bed.channel.weight, factor * sigma, bed.channel.feature_shape)
    same = LinearGaussian(bed.mean + 3, bed.covariance, scaled).figures()
    assert same.information.value == pytest.approx(f.information.value)
    assert same.mmse.value == pytest.approx(f.mmse.value)


def brute_force(bed: GaussianMixture) -> tuple[float, float, float, float]:
    """H(x), H(z), I(x; z) and the mmse of one pixel by summing the joint density over a plane."""
    w, sigma = float(bed.channel.weight), bed.channel.sigma
    means, spreads = bed.means.flatten().numpy(), bed.covariances.flatten().sqrt().numpy()
    x = np.linspace((means - 9 * spreads).min(), (means + 9 * spreads).max(), 3001)
    z = np.linspace(*sorted((w * x[0] - 9 * sigma, w * x[-1] + 9 * sigma)), 2001) if w > 0 else None
    if z is None:
        z = np.linspace(w * x[-1] - 9 * sigma, w * x[0] + 9 * sigma, 2001)
    dx, dz = x[1] - x[0], z[1] - z[0]

    def density(t, mean, spread):
        return np.exp(-(((t - mean) / spread) ** 2) / 2) / spread / math.sqrt(2 * math.pi)

    p_x = sum(float(p) * density(x, m, s) for p, m, s in zip(bed.weights, means, spreads, strict=True))
    joint = p_x[:, None] * density(z[None], w * x[:, None], sigma)
    p_z = joint.sum(0) * dx
    mean = (joint * x[:, None]).sum(0) * dx / np.maximum(p_z, 1e-300)
    mmse = float((joint * (x[:, None] - mean) ** 2).sum() * dx * dz)

    def entropy(p, step):
        return float(-(p * np.log(np.maximum(p, 1e-300))).sum() * step)

    h_x, h_z = entropy(p_x, dx), entropy(p_z, dz)
    return h_x, h_z, h_x + h_z - entropy(joint, dx * dz), mmse


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.2, 1.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_mixture_of_one_pixel_by_brute_force(spread: float, sigma: float) -> None:
    bed = mixture(1, 1, sigma, spread=spread)
    h_x, h_z, information, mmse = brute_force(bed)
    f = bed.figures(generator=generator())
    assert f.entropy == Estimate(pytest.approx(h_x, abs=1e-5), 0.0)
    assert f.feature_entropy == Estimate(pytest.approx(h_z, abs=1e-5), 0.0)
    assert f.information == Estimate(pytest.approx(information, abs=1e-4), 0.0)
    assert f.conditional_entropy == Estimate(pytest.approx(h_x - information, abs=1e-4), 0.0)
    assert f.mmse == Estimate(pytest.approx(mmse, abs=1e-6), 0.0)


def agree(a: Estimate, b: Estimate) -> bool:
    return abs(a.value - b.value) <= 4 * math.hypot(a.error, b.error)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("d", [1, 2, 6])
def test_quadrature_and_monte_carlo_agree(d: int, sigma: float) -> None:
    bed = mixture(d, 1, sigma)
    drawn = bed.figures(generator=generator(1), samples=10_000, method="monte_carlo")
    exact = bed.figures(generator=generator(2), samples=10_000, method="quadrature")
    for name in ("entropy", "feature_entropy", "information", "conditional_entropy", "bound", "mmse"):
        assert agree(getattr(drawn, name), getattr(exact, name)), name
    assert exact.mmse.error == exact.information.error == 0
    assert 0 < drawn.mmse.error < 0.02 * drawn.mmse.value
    assert drawn.information.error > 0
    automatic = bed.figures(generator=generator(2), samples=10_000)
    assert automatic == exact


def test_standard_errors_are_honest() -> None:
    """Over many seeds the estimates scatter about the exact figures as their errors say."""
    bed = mixture(2, 1, 0.5)
    exact = bed.figures(generator=generator(), samples=200_000, method="quadrature")
    runs = [bed.figures(generator=generator(seed), samples=600, method="monte_carlo") for seed in range(60)]
    for name in ("information", "mmse", "conditional_entropy", "entropy"):
        scores = torch.tensor(
            [(getattr(r, name).value - getattr(exact, name).value) / getattr(r, name).error for r in runs]
        )
        assert 0.7 < float(scores.std()) < 1.35, name
        assert abs(float(scores.mean())) < 0.6, name


@pytest.mark.parametrize("sigma", [1e-4, 1e-6])
def test_where_next_to_nothing_is_left(sigma: float) -> None:
    """The mmse is a millionth of a millionth of the prior variance, and right to many digits."""
    bed = gaussian(5, 5, sigma)
    s, w = bed.covariance.numpy(), bed.channel.weight.numpy()
    p = np.linalg.inv(np.linalg.inv(s) * sigma**2 + w.T @ w) * sigma**2
    f = bed.figures()
    assert f.mmse.value == pytest.approx(np.trace(p) / 5, rel=1e-8)
    assert f.linear_mse == pytest.approx(f.mmse.value, rel=1e-8)
    white = LinearGaussian(torch.zeros(1, 1, 3), torch.eye(3), LinearChannel(torch.eye(3), sigma, (3,))).figures()
    assert white.bound.value == pytest.approx(white.mmse.value, rel=1e-9)


def test_more_samples_less_error() -> None:
    bed = mixture(4, 2, 0.5)
    few, many = (bed.figures(generator=generator(), samples=n) for n in (1000, 16_000))
    assert few.mmse.error / many.mmse.error == pytest.approx(4, rel=0.3)
    assert agree(few.information, many.information)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (4, 2), (6, 3)])
def test_the_rate_bounds_the_information(d: int, k: int, sigma: float) -> None:
    for spread in (0.0, 1.0, 5.0):
        f = mixture(d, k, sigma, spread=spread).figures(generator=generator(), samples=4000)
        assert f.information.value <= f.rate
        assert f.information.value >= -4 * f.information.error
        assert f.rate - f.information.value <= math.log(3)


def test_what_the_rate_exceeds_the_information_by() -> None:
    """Nothing where z tells the component, the entropy of the weights where it tells nothing of it."""
    bed = mixture(4, 2, 0.5)
    apart = replace(bed, means=1000 * bed.means).figures(generator=generator(), samples=2000)
    assert apart.rate == pytest.approx(apart.information.value, abs=1e-9)
    alike = GaussianMixture(
        bed.weights, bed.means[:1].expand(3, -1, -1, -1), bed.covariances[:1].expand(3, -1, -1), bed.channel
    )
    f = alike.figures(generator=generator(), samples=2000)
    single = LinearGaussian(bed.means[0], bed.covariances[0], bed.channel).figures()
    mixing = float(torch.special.entr(bed.weights).sum())
    assert f.rate == pytest.approx(single.information.value + mixing)
    assert f.information.value == pytest.approx(single.information.value)
    assert f.conditional_entropy.value == pytest.approx(single.conditional_entropy.value)
    assert f.mmse.value == pytest.approx(single.mmse.value)


def test_one_component_is_the_gaussian() -> None:
    bed = gaussian(6, 2, 0.4)
    one = GaussianMixture(torch.ones(1), bed.mean.unsqueeze(0), bed.covariance.unsqueeze(0), bed.channel)
    state = (source := generator()).get_state()
    assert one.figures(generator=source) == bed.figures() == bed.figures(generator=source, samples=2)
    assert torch.equal(source.get_state(), state), "closed forms draw nothing"
    x, component = one.draw(10, generator=generator(3))
    assert torch.equal(x, bed.draw(10, generator=generator(3))[0])
    assert not component.any()
    z = bed.channel.send(x, generator=generator())
    assert torch.equal(one.reconstruct(z), bed.reconstruct(z))
    assert (one.components, bed.components, one.image_shape, bed.image_shape) == (1, 1, (1, 1, 6), (1, 1, 6))


@pytest.mark.parametrize(("d", "k", "sigma"), [(1, 1, 0.5), (4, 2, 0.2), (3, 5, 1.0)])
def test_reconstruction_by_a_loop(d: int, k: int, sigma: float) -> None:
    """Posterior by Bayes' rule, one feature and one component at a time, with PyTorch's own densities."""
    bed = mixture(d, k, sigma)
    x, _ = bed.draw(7, generator=generator(2))
    z = bed.channel.send(x, generator=generator(3))
    w = bed.channel.weight
    for feature, made in zip(z.flatten(1), bed.reconstruct(z).flatten(1), strict=True):
        total, mean = torch.zeros(()), torch.zeros(d, dtype=torch.float64)
        for p, m, s in zip(bed.weights, bed.means.flatten(1), bed.covariances, strict=True):
            spread = w @ s @ w.T + sigma**2 * torch.eye(k)
            chance = p * MultivariateNormal(w @ m, spread).log_prob(feature).exp()
            mean = mean + chance * (m + s @ w.T @ torch.linalg.inv(spread) @ (feature - w @ m))
            total = total + chance
        torch.testing.assert_close(made, mean / total, atol=1e-9, rtol=1e-9)


def test_draws_have_the_moments_of_the_bed() -> None:
    bed = mixture(3, 2, 0.7)
    x, component = bed.draw(30_000, generator=generator())
    assert x.shape == (30_000, 1, 1, 3)
    assert x.dtype == torch.float64
    for i in range(3):
        own = x.flatten(1)[component == i]
        assert len(own) / 30_000 == pytest.approx(float(bed.weights[i]), abs=0.015)
        scale = bed.covariances[i].diagonal().sqrt()
        torch.testing.assert_close(own.mean(0) / scale, bed.means[i].flatten() / scale, atol=0.06, rtol=0)
        torch.testing.assert_close(
            own.T.cov() / scale / scale[:, None], bed.covariances[i] / scale / scale[:, None], atol=0.08, rtol=0
        )
    clean = x.flatten(1) @ bed.channel.weight.T
    noise = bed.channel.send(x, generator=generator(1)).flatten(1) - clean
    torch.testing.assert_close(noise.T.cov(), 0.49 * torch.eye(2, dtype=torch.float64), atol=0.02, rtol=0)
    again, _ = bed.draw(30_000, generator=generator())
    assert torch.equal(x, again)


@pytest.mark.parametrize("kind", [gaussian, mixture])
def test_share_of_pixels_outside_an_interval(kind) -> None:
    bed = kind(4, 2, 0.5)
    x, _ = bed.draw(20_000, generator=generator())
    for low, high in ((-0.5, 0.7), (-2.0, 0.1), (-9.0, 9.0)):
        outside = ((x < low) | (x > high)).double().mean()
        assert bed.share_outside(low, high) == pytest.approx(float(outside), abs=0.015)


@pytest.mark.parametrize("kind", [gaussian, mixture])
def test_white_noise_adds_to_every_component(kind) -> None:
    bed = kind(4, 2, 0.5)
    noisy = bed.with_white_noise(0.25)
    assert type(noisy) is type(bed)
    f, g = bed.figures(generator=generator()), noisy.figures(generator=generator())
    assert g.prior_variance == pytest.approx(f.prior_variance + 0.25)
    assert g.entropy.value > f.entropy.value
    x, _ = bed.draw(40_000, generator=generator(1))
    x = x + 0.5 * torch.randn(x.shape, generator=generator(2), dtype=x.dtype)
    z = noisy.channel.send(x, generator=generator(3))
    assert near(errors_of(noisy, noisy.reconstruct(z), x), g.mmse.value)


ONE = torch.ones(1)
BAD = {
    "sigma 0": (lambda: channel(4, 2, 0.0), "sigma"),
    "sigma infinite": (lambda: channel(4, 2, math.inf), "sigma"),
    "sigma not a number": (lambda: channel(4, 2, math.nan), "sigma"),
    "weight's rows": (lambda: LinearChannel(torch.ones(3, 4), 1.0, (2, 1, 1)), "weight"),
    "weight's axes": (lambda: LinearChannel(torch.ones(4), 1.0, (4,)), "weight"),
    "weight not finite": (lambda: LinearChannel(torch.full((1, 4), math.nan), 1.0, (1,)), "weight"),
    "no images": (lambda: LinearGaussian(torch.zeros(4), torch.eye(4), channel(4, 2, 1.0)), "means"),
    "size": (lambda: LinearGaussian(torch.zeros(1, 1, 4), torch.eye(3), channel(4, 2, 1.0)), "covariances"),
    "pixels": (lambda: LinearGaussian(torch.zeros(1, 1, 3), torch.eye(3), channel(4, 2, 1.0)), "columns"),
    "asymmetric": (
        lambda: LinearGaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), channel(2, 1, 1.0)),
        "symmetric",
    ),
    "indefinite": (lambda: LinearGaussian(torch.zeros(1, 1, 2), -torch.eye(2), channel(2, 1, 1.0)), "definite"),
    "covariance not finite": (
        lambda: LinearGaussian(torch.zeros(1, 1, 2), math.nan * torch.eye(2), channel(2, 1, 1.0)),
        "definite",
    ),
    "mean not finite": (
        lambda: LinearGaussian(torch.full((1, 1, 2), math.inf), torch.eye(2), channel(2, 1, 1.0)),
        "means",
    ),
    "number of weights": (
        lambda: GaussianMixture(torch.ones(2) / 2, torch.zeros(1, 1, 1, 2), torch.eye(2)[None], channel(2, 1, 1.0)),
        "weights",
    ),
    "sum of weights": (
        lambda: GaussianMixture(0.9 * ONE, torch.zeros(1, 1, 1, 2), torch.eye(2)[None], channel(2, 1, 1.0)),
        "sum to 1",
    ),
    "negative weight": (
        lambda: replace(mixture(2, 1, 1.0), weights=torch.tensor([1.5, -0.3, -0.2])),
        "positive",
    ),
    "degenerate": (
        lambda: LinearGaussian(torch.zeros(1, 1, 2), torch.eye(2), LinearChannel(torch.ones(3, 2), 1e-12, (3,))),
        "sigma",
    ),
    "quadrature of many": (lambda: mixture(4, 2, 1.0).figures(generator=generator(), method="quadrature"), "method"),
    "samples": (lambda: mixture(4, 2, 1.0).figures(generator=generator(), samples=5), "samples"),
    "far apart": (
        lambda: replace(mixture(1, 1, 1e-6), means=1e6 * torch.arange(3.0).view(3, 1, 1, 1)).figures(
            generator=generator()
        ),
        "monte_carlo",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(name: str) -> None:
    make, word = BAD[name]
    with pytest.raises(InputError, match=word):
        make()


def test_figures_are_plain_numbers() -> None:
    f = mixture(4, 2, 1.0).figures(generator=generator())
    assert isinstance(f, Figures)
    for value in vars(f).values():
        assert isinstance(value, (int, float, Estimate))
        if isinstance(value, Estimate):
            assert type(value.value) is type(value.error) is float
