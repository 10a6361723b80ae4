from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.data import ImageSet
from sfumato.information import ClassMixture
from sfumato.metrics import theory
from sfumato.models import Feature, SplitModel


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(variance: float, scale: float = 1.0) -> SplitModel:
    """An edge that averages 4×4 patches and scales."""
    edge = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 1, 1, bias=False))
    nn.init.constant_(edge[1].weight, scale)
    feature = Feature((1, 3, 3), (0.0, 1.0), variance)
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    return SplitModel(edge, nn.Identity(), cloud, image_shape=(1, 12, 12), feature=feature, cut="x")


def two_classes(n: int = 4000, seed: int = 0) -> ImageSet:
    """Patches of one value each: class 0 about 60 and class 1 about 180, spread 20, in 9 independent patches."""
    labels = torch.arange(n) % 2
    values = 60 + 120 * labels.view(-1, 1, 1, 1) + 20 * torch.randn(n, 1, 3, 3, generator=seeded(seed))
    pixels = values.clamp(0, 255).round().to(torch.uint8)
    return ImageSet(pixels.repeat_interleave(4, 2).repeat_interleave(4, 3), labels, ("a", "b"))


def test_rate_of_known_features() -> None:
    """Features are N(μ_class, (20/255)²) in 9 dimensions: R of one component a class is known, five come close."""
    noise, spread = 0.05**2, (20 / 255) ** 2
    found = theory(made(noise), two_classes(), generator=seeded(1))
    exact = math.log(2) + 4.5 * math.log(1 + spread / noise)
    # Five components cost their own choice, log 5 at most, and save some of the spread.
    assert exact - 1.5 < found["mixture_rate_nats"] < exact + math.log(5)
    assert found["mixture_rate_nats_per_dimension"] == pytest.approx(found["mixture_rate_nats"] / 9)
    assert 0.3 < found["feature_utility"] <= 1


def test_rate_of_few_images() -> None:
    """Twenty images a class: five components would each be about the mean of four, and miss a quarter of the spread."""
    noise, spread = 0.02**2, (20 / 255) ** 2
    exact = math.log(2) + 4.5 * math.log(1 + spread / noise)
    rates = [theory(made(noise), two_classes(40, seed), generator=seeded(1))["mixture_rate_nats"] for seed in range(5)]
    assert sum(rates) / 5 == pytest.approx(exact, abs=0.5)


def ten_groups(first: Tensor, labels: Tensor) -> ImageSet:
    """Images with those values (N,) in the first patch and 100 in the others."""
    values = torch.full((len(first), 1, 3, 3), 100, dtype=torch.uint8)
    values[:, 0, 0, 0] = first.to(torch.uint8)
    return ImageSet(values.repeat_interleave(4, 2).repeat_interleave(4, 3), labels, ("a", "b"))


def test_rate_of_components_that_spread_in_one_dimension() -> None:
    """Ten equal groups at distance 25, each ±2 in one dimension of nine: R = log 10 + ½·log(1 + (2/255)²/σ²).

    With one variance for all nine dimensions it would be log 10 + 4.5·log(1 + (2/255)²/9/σ²).
    """
    group = torch.arange(1000) % 10
    aside = 4 * (torch.arange(1000) // 10 % 2) - 2
    noise = 0.002**2
    found = theory(made(noise), ten_groups(10 + 25 * group + aside, group % 2), generator=seeded(1))
    growth = (2 / 255) ** 2 / noise
    assert found["mixture_rate_nats"] == pytest.approx(math.log(10) + 0.5 * math.log(1 + growth), rel=1e-3)


@pytest.mark.parametrize("deviation", [0.05, 4.0])
def test_utility_of_ten_points(deviation: float) -> None:
    """Ten points on a line, 1.5 standard deviations of the noise apart, against a quadrature."""
    group = torch.arange(2000) % 10
    split = made(deviation**2, 1.5 * deviation * 255 / 25)
    found = theory(split, ten_groups(10 + 25 * group, group % 2), generator=seeded(1))
    grid = torch.linspace(-8, 8 + 13.5, 20_001, dtype=torch.float64).unsqueeze(1)
    densities = torch.exp(-(grid - 1.5 * torch.arange(10)).square() / 2) / math.sqrt(2 * math.pi)
    exact = float(torch.trapezoid((densities.square().sum(1) / densities.sum(1)), grid.squeeze(1))) / 10
    assert 0.4 < exact < 0.7
    assert found["feature_utility"] == pytest.approx(exact, abs=0.03)  # a thousand draws


def test_the_mixture_is_fitted_in_four_passes() -> None:
    images = two_classes(1000)
    found = theory(made(0.05**2), images, generator=seeded(1))["mixture_rate_nats"]
    generator = seeded(1)
    chosen = images.select(torch.randperm(1000, generator=generator))
    z = chosen.images[:, 0, ::4, ::4].flatten(1) / 255
    mixture = ClassMixture(2, 5, 9, "diagonal")
    rates = []
    for _ in range(6):
        mixture.refresh(lambda: iter([(z, chosen.labels)]), generator=generator)
        rates.append(mixture.rate(0.05**2))
    assert found == pytest.approx(rates[3], abs=1e-5)
    assert min(abs(found - rate) for i, rate in enumerate(rates) if i != 3) > 1e-3


def test_more_noise_lowers_rate_and_utility() -> None:
    images = two_classes(1500)
    quiet, loud = (theory(made(v), images, generator=seeded(1)) for v in (0.01**2, 0.3**2))
    assert loud["mixture_rate_nats"] < quiet["mixture_rate_nats"]
    assert loud["feature_utility"] < quiet["feature_utility"]


def test_only_the_ratio_to_the_noise_counts() -> None:
    images = two_classes(1500)
    one, ten = (theory(made((0.05 * s) ** 2, s), images, generator=seeded(1)) for s in (1.0, 10.0))
    assert one["mixture_rate_nats"] == pytest.approx(ten["mixture_rate_nats"], rel=1e-3)


def test_leakage_of_a_linear_edge() -> None:
    """Each of 9 features is the mean of 16 pixels, times 2: tr(JᵀJ) = 9·16·(2/16)², over 144 pixels and σ²."""
    found = theory(made(0.01, 2.0), two_classes(200), generator=seeded(1))
    assert found["dfil"] == pytest.approx(9 * 16 * (2 / 16) ** 2 / 144 / 0.01, rel=1e-4)


def test_without_noise_there_is_no_rate() -> None:
    assert theory(made(0.0), two_classes(100), generator=seeded()) == {}


def test_the_generator_decides() -> None:
    images = two_classes(600)
    first, again, other = (theory(made(0.01), images, generator=seeded(s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_where_training_diverged(bad: float) -> None:
    assert theory(made(0.05**2, scale=bad), two_classes(200), generator=seeded()) == {}
