"""What bottleneck, noise and dropout do to the feature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.defenses import Bottleneck, Dropout, Noise, chain
from sfumato.defenses.dropout import FeatureDropout
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import InputError
from sfumato.models import Feature, SplitModel, set_generator

N = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identity_split(bounds: tuple[float, float] | None = (0.0, 1.0)) -> SplitModel:
    """A feature that is the image itself."""
    feature = Feature((3, 4, 4), bounds)
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    return SplitModel(nn.Identity(), nn.Identity(), cloud, image_shape=(3, 4, 4), feature=feature, cut="x")


def noise(sigma: float, kind: str, z: Tensor, seed: int = 1) -> Tensor:
    layer = AdditiveNoise(sigma, kind)
    set_generator(layer, seeded(seed))
    return layer(z) - z


@pytest.mark.parametrize("sigma", [0.025, 0.3, 2.0])
@pytest.mark.parametrize(("kind", "kurtosis"), [("gaussian", 3.0), ("laplace", 6.0)])
def test_noise_has_mean_zero_and_its_deviation(kind: str, sigma: float, kurtosis: float) -> None:
    n = noise(sigma, kind, torch.zeros(N, dtype=torch.float64)) / sigma
    assert abs(float(n.mean())) < 5 / math.sqrt(N)
    assert float(n.std()) == pytest.approx(1, abs=5 * math.sqrt((kurtosis - 1) / 4 / N))
    assert float(n.pow(4).mean()) == pytest.approx(kurtosis, rel=0.1)
    assert abs(float(n.pow(3).mean())) < 0.2


def test_laplace_noise_has_laplaces_distribution() -> None:
    n = noise(math.sqrt(2.0), "laplace", torch.zeros(N, dtype=torch.float64))  # scale 1
    for x in (-3.0, -1.0, -0.1, 0.0, 0.5, 2.0):
        below = math.exp(x) / 2 if x < 0 else 1 - math.exp(-x) / 2
        assert float((n <= x).double().mean()) == pytest.approx(below, abs=5 * math.sqrt(0.25 / N))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_laplace_noise_at_the_edge_of_the_uniform_draw(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw of exactly 0 comes up once in 2²⁴: it must be a rare value, not one that cannot occur."""
    layer = AdditiveNoise(math.sqrt(2.0), "laplace")
    z = torch.zeros(2, dtype=dtype)
    largest = 1 - torch.finfo(dtype).eps / 2
    monkeypatch.setattr(layer, "uniform", lambda like: torch.tensor([0.0, largest], dtype=like.dtype))
    low, high = layer(z).double().tolist()
    assert low == pytest.approx(-high, rel=0.01)
    assert high == pytest.approx(-math.log(torch.finfo(dtype).eps), rel=0.01)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("training", [True, False])
def test_noise_is_on_whatever_the_mode(kind: str, training: bool) -> None:
    before = identity_split()
    model = Noise(0.5, kind).bind(before, generator=seeded()).defend(before).train(training)
    set_generator(model, seeded(1))
    x = torch.rand(4, 3, 4, 4, generator=seeded(2))
    first, second = model.send(x), model.send(x)
    assert not torch.equal(first, x)
    assert not torch.equal(first, second)  # fresh each time
    assert (first != x).all()
    set_generator(model, seeded(1))
    assert torch.equal(model.send(x), first)
    assert torch.equal(model.edge(x), x)  # the clean feature stays clean


def test_noise_passes_the_gradient() -> None:
    layer = AdditiveNoise(0.5, "laplace")
    set_generator(layer, seeded())
    z = torch.zeros(10, requires_grad=True)
    layer(z).sum().backward()
    assert torch.equal(z.grad, torch.ones(10))


def test_gaussian_noise_against_twin() -> None:
    z = torch.rand(5, 7, generator=seeded())
    twin = torch.randn(5, 7, generator=seeded(1))
    torch.testing.assert_close(noise(0.3, "gaussian", z), 0.3 * twin)


def test_no_noise_draws_nothing() -> None:
    z = torch.ones(3)
    assert AdditiveNoise(0.0, "gaussian")(z) is z
    before = identity_split()
    assert Noise(0.0).bind(before, generator=seeded()).defend(before).feature.noise_variance == 0


def test_noise_says_its_variance_and_keeps_the_bounds_of_the_clean_feature() -> None:
    before = identity_split()
    after = Noise(0.2, "laplace").bind(before, generator=seeded()).defend(before)
    assert after.feature == Feature((3, 4, 4), (0.0, 1.0), 0.0)  # no Gaussian noise, which CEM's bound needs
    gaussian = Noise(0.2).bind(before, generator=seeded()).defend(before)
    assert gaussian.feature == Feature((3, 4, 4), (0.0, 1.0), pytest.approx(0.04))
    assert after.edge is before.edge
    assert after.cloud is before.cloud
    assert "sigma=0.2, kind=laplace" in repr(after.channel)


def test_noise_wants_a_bounded_feature() -> None:
    with pytest.raises(InputError, match=r"a feature without bounds'; accepted: a bounded feature"):
        Noise().bind(identity_split(bounds=None), generator=seeded())


@pytest.mark.parametrize("p", [0.2, 0.8])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_drops_its_fraction_without_rescaling(p: float, training: bool) -> None:
    layer = FeatureDropout(p).train(training)
    set_generator(layer, seeded())
    z = 1 + torch.rand(N, generator=seeded(1))
    out = layer(z)
    dropped = out == 0
    assert float(dropped.float().mean()) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / N))
    assert torch.equal(out[~dropped], z[~dropped])
    assert not torch.equal(layer(z), out)  # fresh each time
    assert f"p={p}" in repr(layer)


def test_dropout_against_twin_and_its_gradient() -> None:
    layer = FeatureDropout(0.4)
    set_generator(layer, seeded(1))
    z = torch.randn(4, 5, generator=seeded(), requires_grad=True)
    draws = torch.rand(4, 5, generator=seeded(1))
    out = layer(z)
    expected = [[float(z.detach()[i, j]) if draws[i, j] >= 0.4 else 0.0 for j in range(5)] for i in range(4)]
    torch.testing.assert_close(out.detach(), torch.tensor(expected))
    out.sum().backward()
    assert torch.equal(z.grad, (draws >= 0.4).float())


def test_dropout_of_nothing_draws_nothing_and_needs_no_bounds() -> None:
    z = torch.ones(3)
    assert FeatureDropout(0.0)(z) is z
    before = identity_split(bounds=None)
    after = Dropout(0.3).bind(before, generator=seeded()).defend(before)
    assert isinstance(after.channel, FeatureDropout)
    assert after.feature == before.feature


def test_order_of_noise_and_dropout_is_kept() -> None:
    before = identity_split()
    last = chain(Noise(0.5), Dropout(0.5)).bind(before, generator=seeded()).defend(before)
    first = chain(Dropout(0.5), Noise(0.5)).bind(before, generator=seeded()).defend(before)
    x = torch.rand(20, 3, 4, 4, generator=seeded(1))
    for model in (last, first):
        set_generator(model, seeded(2))
    assert (last.send(x) == 0).float().mean() > 0.4  # dropped after the noise: zeros stay zeros
    assert not (first.send(x) == 0).any()


@pytest.mark.parametrize(("activation", "low", "high"), [("sigmoid", 0.0, 1.0), ("tanh", -1.0, 1.0)])
def test_bottleneck_bounds_the_feature(activation: str, low: float, high: float) -> None:
    before = identity_split(bounds=None)
    after = Bottleneck(2, activation).bind(before, generator=seeded()).defend(before)
    assert after.feature == Feature((2, 4, 4), (low, high), 0.0)
    x = torch.randn(8, 3, 4, 4, generator=seeded(1))
    z = after.edge(1000 * x).detach()
    assert float(z.min()) == pytest.approx(low, abs=1e-3)
    assert float(z.max()) == pytest.approx(high, abs=1e-3)
    assert low <= float(z.min()) < float(z.max()) <= high
    conv = after.edge[1][0]
    by_hand = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    assert torch.equal(after.edge(x), {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[activation](by_hand))


def test_bottleneck_convolutions() -> None:
    before = identity_split()
    after = Bottleneck(5).bind(before, generator=seeded()).defend(before)
    down, up = after.edge[1][0], after.cloud[0]
    assert (down.in_channels, down.out_channels, up.in_channels, up.out_channels) == (3, 5, 5, 3)
    assert down.kernel_size == up.kernel_size == (3, 3)
    assert after.cloud[0](torch.zeros(1, 5, 4, 4)).shape == (1, 3, 4, 4)  # no activation behind it
    assert len(after.cloud) == 2
    # He, fan out, and the two drawn one after the other.
    twin = seeded()
    torch.testing.assert_close(down.weight, torch.empty(5, 3, 3, 3).normal_(0, math.sqrt(2 / 45), generator=twin))
    torch.testing.assert_close(up.weight, torch.empty(3, 5, 3, 3).normal_(0, math.sqrt(2 / 27), generator=twin))
