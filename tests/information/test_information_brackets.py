"""MINE from below and CLUB from above, on correlated Gaussians and on test beds, whose information is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sfumato.information import (
    STANDARD_BEDS,
    Bed,
    Fitting,
    GaussianMixture,
    LinearGaussian,
    average_pooling,
    estimate_mutual_information,
    estimate_upper_bound,
    stationary_covariance,
)

FITTING = Fitting(steps=800, batch=512, learning_rate=2e-3)
PAIRS = 20_000
PIXELS = (1, 4, 4)


def standard(name: str, sigma: float) -> Bed:
    """16 pixels, so that a small network sees what there is."""
    return STANDARD_BEDS[name].build(sigma, PIXELS)


def light_and_dark(sigma: float) -> Bed:
    """Two components that differ in their means."""
    shape = (1, 2, 2)
    means = torch.stack([torch.full(shape, level, dtype=torch.float64) for level in (0.35, 0.65)])
    covariance = stationary_covariance(shape, std=0.05, lengths=(1.0, 1.0))
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return GaussianMixture(weights, means, covariance.expand(2, -1, -1), average_pooling(shape, 1, sigma))


BEDS = [
    pytest.param(standard("patches", 0.1), id="linear-Gaussian, 0.1"),
    pytest.param(standard("patches", 0.03), id="linear-Gaussian, 0.03"),
    pytest.param(standard("moods", 0.1), id="mixture, 0.1"),
    pytest.param(standard("moods", 0.03), id="mixture, 0.03"),
    pytest.param(light_and_dark(0.1), id="mixture of means, 0.1"),
]


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
    assert 0.9 * information < below.value < information + 4 * below.error
    assert information < above.value
    assert above.value == pytest.approx(club_limit, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("bed", BEDS)
def test_mine_and_club_bracket_what_is_known_of_a_bed(bed: Bed) -> None:
    drawn = torch.Generator().manual_seed(1)
    information = bed.figures(generator=drawn).information
    x, _ = bed.draw(PAIRS, generator=drawn)
    z = bed.channel.send(x, generator=drawn).flatten(1)
    x = x.flatten(1)
    density = information_densities(bed, x, z)
    spread = float(density.std())
    # The bed's figure is no assumption of this test: it is the mean of log p(z | x)/p(z), an independent package's.
    doubt = math.hypot(information.error, spread / PAIRS**0.5)
    assert abs(float(density.mean()) - information.value) < 4 * doubt

    below, above = (
        measure(x.float(), z.float(), generator=torch.Generator().manual_seed(2), fitting=FITTING)
        for measure in (estimate_mutual_information, estimate_upper_bound)
    )
    # Nor is the information below the rate by construction here.
    assert float(density.mean()) < bed.figures(generator=drawn).rate + 4 * spread / PAIRS**0.5
    assert 0.8 * information.value < below.value < information.value + 4 * math.hypot(information.error, below.error)
    # A network that had learned log p(z | x)/p(z) itself would have an error near that of its mean.
    assert 0.8 < below.error / (spread / (FITTING.held_out * PAIRS) ** 0.5) < 2
    assert information.value < above.value
    # z given x is Gaussian on every bed, whatever x is: CLUB with the true conditional is tr Cov(z')/σ².
    sent = (x - x.mean(0)) @ bed.channel.weight.T
    assert above.value == pytest.approx(float(sent.square().sum(1).mean()) / bed.channel.sigma**2, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("bed", [BEDS[1], BEDS[4]])
def test_club_of_images_given_the_feature_is_above_too(bed: Bed) -> None:
    """Its Gaussian of x given z is the truth on a linear-Gaussian bed, and no more than near it on a mixture."""
    drawn = torch.Generator().manual_seed(1)
    x, _ = bed.draw(PAIRS, generator=drawn)
    z = bed.channel.send(x, generator=drawn)
    above = estimate_upper_bound(
        x.float(), z.float(), generator=torch.Generator().manual_seed(2), fitting=FITTING, direction="x_given_z"
    )
    assert above.value > bed.figures(generator=drawn).information.value


@pytest.mark.slow
def test_much_information_is_far_above_mine_and_the_bounded_variant_stays_below_one() -> None:
    """29 nats: some 5,000 pairs cannot show them to a mean of exponentials, and a sigmoid cannot at all."""
    bed, drawn = STANDARD_BEDS["smooth"].build(0.03), torch.Generator().manual_seed(1)
    information = bed.figures(generator=drawn).information.value
    x, _ = bed.draw(PAIRS, generator=drawn)
    z = bed.channel.send(x, generator=drawn)
    plain, bounded = (
        estimate_mutual_information(
            x.float(), z.float(), generator=torch.Generator().manual_seed(2), fitting=FITTING, bounded=bounded
        ).value
        for bounded in (False, True)
    )
    assert 3 < plain < math.log(FITTING.held_out * PAIRS) < information
    assert 0.9 < bounded < 1


@pytest.mark.slow
def test_independent_pairs_have_next_to_no_information() -> None:
    x, z = correlated(8000, 3, 0.0)
    short = Fitting(steps=150)
    below = estimate_mutual_information(x, z, generator=torch.Generator().manual_seed(2), fitting=short)
    above = estimate_upper_bound(x, z, generator=torch.Generator().manual_seed(2), fitting=short)
    assert abs(below.value) < 0.02
    assert abs(above.value) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("measure", [estimate_mutual_information, estimate_upper_bound])
def test_more_noise_leaves_less_information(measure) -> None:
    short, values = Fitting(steps=100, learning_rate=3e-3), []
    for rho in (0.9, 0.6, 0.3):
        x, z = correlated(3000, 2, rho)
        values.append(measure(x, z, generator=torch.Generator().manual_seed(2), fitting=short, hidden=32).value)
    assert values[0] > values[1] > values[2] > 0


def information_densities(bed: Bed, x: Tensor, z: Tensor) -> Tensor:
    """Log p(z | x)/p(z) of each pair, (N,) in nats, by torch.distributions; their mean is the information."""
    if isinstance(bed, LinearGaussian):
        shares, means, covariances = torch.ones(1), bed.mean.unsqueeze(0), bed.covariance.unsqueeze(0)
    else:
        assert isinstance(bed, GaussianMixture)
        shares, means, covariances = bed.weights, bed.means, bed.covariances
    weight, variance = bed.channel.weight, bed.channel.sigma**2
    noise = variance * torch.eye(len(weight), dtype=torch.float64)
    given = MultivariateNormal(x @ weight.T, noise)
    components = MultivariateNormal(means.flatten(1) @ weight.T, weight @ covariances @ weight.T + noise)
    return given.log_prob(z) - MixtureSameFamily(Categorical(shares.double()), components).log_prob(z)
