"""What the standard beds are built from, each against a loop over pixels, and that they are fit to be calibrated on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sfumato.errors import InputError
from sfumato.information import STANDARD_BEDS
from sfumato.information.standard_beds import (
    IMAGE_SHAPE,
    average_pooling,
    matrix_of,
    patch_covariance,
    projection,
    stationary_covariance,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places(shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [(c, i, j) for c in range(shape[0]) for i in range(shape[1]) for j in range(shape[2])]


@pytest.mark.parametrize("lengths", [(2.0, 0.5), (0, 3.0), (0, 0)])
def test_stationary_covariance(lengths: tuple[float, float]) -> None:
    shape = (3, 2, 4)
    made = stationary_covariance(shape, std=0.2, lengths=lengths, between_channels=0.4)

    def decay(distance: int, length: float) -> float:
        return math.exp(-distance / length) if length else float(distance == 0)

    for a, (c, i, j) in enumerate(places(shape)):
        for b, (e, k, m) in enumerate(places(shape)):
            expected = 0.04 * (1.0 if c == e else 0.4) * decay(abs(i - k), lengths[0]) * decay(abs(j - m), lengths[1])
            assert float(made[a, b]) == pytest.approx(expected, abs=1e-15)
    assert float(torch.linalg.eigvalsh(made).min()) > 0


def test_patch_covariance() -> None:
    shape, p = (2, 4, 6), 2
    within = torch.randn(4, 4, generator=generator(), dtype=torch.float64)
    within = within @ within.T
    made = patch_covariance(shape, within)
    for a, (c, i, j) in enumerate(places(shape)):
        for b, (e, k, m) in enumerate(places(shape)):
            together = (c, i // p, j // p) == (e, k // p, m // p)
            expected = float(within[i % p * p + j % p, k % p * p + m % p]) if together else 0.0
            assert float(made[a, b]) == pytest.approx(expected, abs=1e-15)


def test_matrix_of_a_linear_map() -> None:
    kernels = torch.randn(5, 2, 3, 3, generator=generator(), dtype=torch.float64)
    weight, shape = matrix_of(lambda x: F.conv2d(x, kernels, padding=1, stride=2), (2, 6, 4))
    assert shape == (5, 3, 2)
    x = torch.randn(3, 2, 6, 4, generator=generator(1), dtype=torch.float64)
    expected = F.conv2d(x, kernels, padding=1, stride=2)
    torch.testing.assert_close((x.flatten(1) @ weight.T).view_as(expected), expected)


def test_channels() -> None:
    x = torch.randn(2, 3, 4, 8, generator=generator(), dtype=torch.float64)
    pool = average_pooling((3, 4, 8), 2, 0.3)
    assert (pool.sigma, pool.feature_shape) == (0.3, (3, 2, 4))
    torch.testing.assert_close((x.flatten(1) @ pool.weight.T).view(2, 3, 2, 4), F.avg_pool2d(x, 2))
    kernels = torch.randn(5, 3, 2, 2, generator=generator(1))
    project = projection((3, 4, 8), kernels, 0.4)
    assert (project.sigma, project.feature_shape) == (0.4, (5, 2, 4))
    expected = F.conv2d(x, kernels.double(), stride=2)
    torch.testing.assert_close((x.flatten(1) @ project.weight.T).view_as(expected), expected)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: stationary_covariance((1, 2, 2), std=0.0, lengths=(1, 1)), "std"),
        (lambda: stationary_covariance((1, 2, 2), std=1.0, lengths=(1, -1)), "lengths"),
        (lambda: stationary_covariance((1, 2, 2), std=1.0, lengths=(1, 1), between_channels=1.0), "between_channels"),
        (lambda: stationary_covariance((1, 2, 2), std=1.0, lengths=(1, 1), between_channels=-0.1), "between_channels"),
        (lambda: patch_covariance((1, 5, 4), torch.eye(4)), "within"),
        (lambda: patch_covariance((1, 4, 5), torch.eye(4)), "within"),
        (lambda: patch_covariance((1, 4, 4), torch.eye(5)), "within"),
    ],
)
def test_what_cannot_be_is_refused(make, word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()


@pytest.mark.parametrize("sigma", [0.02, 0.2])
@pytest.mark.parametrize("name", STANDARD_BEDS)
def test_standard_beds(name: str, sigma: float) -> None:
    bed = STANDARD_BEDS[name].build(sigma)
    assert STANDARD_BEDS[name].summary.endswith(".")
    assert bed.image_shape == IMAGE_SHAPE
    assert bed.channel.sigma == sigma
    x, _ = bed.draw(2000, generator=generator())
    # Rounding and clipping to pixels change next to nothing.
    assert float(x.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(((x < 0) | (x > 1)).double().mean()) < 1e-3
    f = bed.figures(generator=generator(), samples=2000)
    assert f.prior_variance == pytest.approx(float(x.var()), rel=0.1)
    assert 0.05 < f.mmse.value / f.prior_variance < 0.95 or name == "white"
    assert 0.01 * f.mmse.value > 1 / 12 / 255**2


@pytest.mark.parametrize("sigma", [0.03, 0.3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 12, 16), (3, 8, 12)])
@pytest.mark.parametrize("name", STANDARD_BEDS)
def test_standard_beds_of_other_sizes(name: str, shape: tuple[int, int, int], sigma: float) -> None:
    bed = STANDARD_BEDS[name].build(sigma, shape)
    assert bed.image_shape == shape
    x, _ = bed.draw(1500, generator=generator())
    z = bed.channel.send(x, generator=generator(1))
    f = bed.figures(generator=generator(2), samples=2000)
    assert f.dim == math.prod(shape)
    assert f.prior_variance == pytest.approx(float(x.var()), rel=0.1)
    errors = (bed.reconstruct(z) - x).square().flatten(1).mean(1)
    assert abs(float(errors.mean()) - f.mmse.value) < 4 * (f.mmse.error + float(errors.std()) / 1500**0.5)
    room = 1 + 1e-9
    assert f.bound.value - 4 * f.bound.error <= f.mmse.value * room
    assert f.mmse.value - 4 * f.mmse.error <= f.linear_mse * room < f.prior_variance
    assert f.information.value - 4 * f.information.error <= f.rate * room


@pytest.mark.parametrize("name", ["white", "patches"])
def test_independent_patches_leave_the_same_error_at_every_size(name: str) -> None:
    one, other = (STANDARD_BEDS[name].build(0.05, shape) for shape in [(1, 12, 12), (3, 8, 4)])
    few, many = (bed.figures(generator=generator()) for bed in (other, one))
    assert few.mmse.value == pytest.approx(many.mmse.value)
    assert few.bound.value == pytest.approx(many.bound.value)
    assert few.information.value / few.dim == pytest.approx(many.information.value / many.dim)


def test_channels_of_the_smooth_bed_are_alike_and_those_of_the_others_are_not() -> None:
    for name, expected in (("smooth", 0.8 * 0.1**2 / (0.1**2 + 0.03**2)), ("patches", 0.0)):
        x, _ = STANDARD_BEDS[name].build(0.1, (3, 8, 8)).draw(4000, generator=generator())
        first, second, _ = (x - 0.5).unbind(1)
        correlation = (first * second).mean() / (first.square().mean() * second.square().mean()).sqrt()
        assert float(correlation) == pytest.approx(expected, abs=0.02), name


@pytest.mark.parametrize("name", STANDARD_BEDS)
@pytest.mark.parametrize("shape", [(1, 10, 12), (1, 12, 6), (0, 12, 12), (12, 12)])
def test_sizes_that_cannot_be(name: str, shape) -> None:
    with pytest.raises(InputError, match="image_shape"):
        STANDARD_BEDS[name].build(0.1, shape)


def test_what_the_standard_beds_are_for() -> None:
    figures = {
        name: bed.build(0.03).figures(generator=generator(), samples=2000) for name, bed in STANDARD_BEDS.items()
    }
    assert figures["white"].bound.value == pytest.approx(figures["white"].mmse.value)
    for name in ("smooth", "patches", "moods"):
        assert figures[name].bound.value < 0.9 * figures[name].mmse.value, name
    assert figures["moods"].linear_mse > 1.1 * figures["moods"].mmse.value, "no linear reconstruction will do"
