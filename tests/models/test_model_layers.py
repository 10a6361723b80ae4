from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sfumato.models import Dropout, Normalize, Stochastic, initialize, scaled, set_generator
from sfumato.models.layers import spare_global_generator


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_against_twin(p: float) -> None:
    layer = Dropout(p)
    set_generator(layer, seeded(3))
    x = torch.randn(6, 7, generator=seeded())
    draws = torch.rand(6, 7, generator=seeded(3))
    expected = [[0.0 if draws[i, j] < p else float(x[i, j]) / (1 - p) for j in range(7)] for i in range(6)]
    torch.testing.assert_close(layer(x), torch.tensor(expected))
    assert layer.eval()(x) is x
    assert f"p={p}" in repr(layer)


def test_dropout_keeps_the_mean_and_drops_the_fraction() -> None:
    layer = Dropout(0.3)
    set_generator(layer, seeded())
    out = layer(torch.ones(100_000))
    assert abs(float((out == 0).float().mean()) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 100_000)
    assert abs(float(out.mean()) - 1) < 0.02


def test_dropout_of_nothing_draws_nothing() -> None:
    x = torch.ones(3)
    assert Dropout(0.0)(x) is x  # it has no generator


def test_stochastic_layer_without_generator_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"Dropout has no generator: call set_generator\(model, generator\)"):
        Dropout()(torch.ones(2))


def test_set_generator_reaches_every_layer_and_can_take_it_away() -> None:
    model = nn.Sequential(Dropout(), nn.Sequential(nn.ReLU(), Dropout()))
    generator = seeded()
    set_generator(model, generator)
    assert model[0].generator is generator
    assert model[1][1].generator is generator
    assert Dropout().generator is None  # the class is untouched
    set_generator(model, None)
    assert model[1][1].generator is None


def test_draws_are_the_generators_and_of_the_likeness() -> None:
    layer = Stochastic()
    set_generator(layer, seeded(4))
    like = torch.empty(3, 5, dtype=torch.float64)
    assert torch.equal(layer.uniform(like), torch.rand(3, 5, generator=(twin := seeded(4)), dtype=torch.float64))
    assert torch.equal(layer.normal(like), torch.randn(3, 5, generator=twin, dtype=torch.float64))
    before = torch.get_rng_state()
    layer.uniform(like)
    assert torch.equal(torch.get_rng_state(), before)
    assert not layer.state_dict()


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 5)), min_size=1, max_size=4),
    st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_normalize_against_twin(constants: list[tuple[float, float]], n: int) -> None:
    mean, std = zip(*constants)
    x = torch.rand(n, len(mean), 2, 3, generator=seeded())
    out = Normalize(mean, std)(x)
    for c, (m, s) in enumerate(constants):
        torch.testing.assert_close(out[:, c], (x[:, c] - m) / s)
    assert out.shape == x.shape


def test_initialize_statistics() -> None:
    conv, up, linear = nn.Conv2d(32, 64, 3), nn.ConvTranspose2d(64, 64, 3), nn.Linear(400, 200)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.weight.fill_(3), norm.bias.fill_(3), norm.running_mean.fill_(3), norm.running_var.fill_(3)
    model = nn.Sequential(conv, up, norm, nn.Sequential(linear))
    assert initialize(model, seeded()) is model
    for layer, deviation in ((conv, math.sqrt(2 / (64 * 9))), (up, math.sqrt(2 / (64 * 9))), (linear, 1 / 20)):
        weight = layer.weight.detach()
        n = weight.numel()
        assert abs(float(weight.mean())) < 4 * deviation / math.sqrt(n)
        assert abs(float(weight.std()) / deviation - 1) < 4 / math.sqrt(2 * n)
        assert not layer.bias.any()
        # Normal, not uniform: the kurtosis is 3, a uniform's 1.8.
        assert float((weight / deviation).pow(4).mean()) > 2.7
    assert torch.equal(norm.weight, torch.ones(8))
    assert torch.equal(norm.running_var, torch.ones(8))
    assert not norm.bias.any()
    assert not norm.running_mean.any()


def test_initialize_without_bias_and_in_order_of_the_modules() -> None:
    first, second = nn.Conv2d(2, 3, 3, bias=False), nn.Linear(4, 5, bias=False)
    initialize(nn.Sequential(first, second), generator := seeded(9))
    twin = seeded(9)
    torch.testing.assert_close(first.weight, torch.empty(3, 2, 3, 3).normal_(0, math.sqrt(2 / 27), generator=twin))
    torch.testing.assert_close(second.weight, torch.empty(5, 4).normal_(0, 0.5, generator=twin))
    assert torch.equal(generator.get_state(), twin.get_state())


def test_spare_global_generator() -> None:
    before = torch.get_rng_state()
    with spare_global_generator():
        nn.Linear(3, 3)
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(64, 1.0, 64), (64, 0.25, 16), (10, 0.01, 1), (3, 0.5, 2), (64, 1.5, 96)]
)
def test_scaled(channels: int, width: float, expected: int) -> None:
    assert scaled(channels, width) == expected
    assert isinstance(scaled(channels, width), int)
