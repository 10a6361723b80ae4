from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information import pearson_redundancy


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow(z: Tensor) -> float:
    """Image by image with numpy's correlation matrix."""
    images = []
    for image in z.numpy():
        r = np.corrcoef(image.reshape(len(image), -1))
        c = len(r)
        images.append(np.mean([r[i, j] ** 2 for i in range(c) for j in range(c) if i != j]))
    return float(np.mean(images))


@given(st.integers(1, 4), st.integers(2, 6), st.integers(2, 5), st.integers(2, 5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_against_twin(n: int, c: int, h: int, w: int, seed: int) -> None:
    z = normal(n, c, h, w, seed=seed)
    value = float(pearson_redundancy(z, epsilon=1e-14))
    assert value == pytest.approx(slow(z), rel=1e-6)
    assert 0 <= value <= 1


def test_known_answers() -> None:
    a, b = torch.tensor([1.0, -1, 1, -1]).double(), torch.tensor([1.0, 1, -1, -1]).double()
    assert float(pearson_redundancy(torch.stack([a, b]).view(1, 2, 2, 2))) == 0
    assert float(pearson_redundancy(torch.stack([a, 3 - 2 * a]).view(1, 2, 2, 2))) == pytest.approx(1)
    assert float(pearson_redundancy(torch.stack([a, a, b]).view(1, 3, 2, 2))) == pytest.approx(1 / 3)


@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(0.5, 20))
@settings(max_examples=30, deadline=None)
def test_invariances(seed: int, shift: float, scale: float) -> None:
    z = normal(3, 4, 3, 3, seed=seed)
    value = float(pearson_redundancy(z))
    positions = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    moved = z.flatten(2)[:, :, positions].view_as(z)
    factors = scale * torch.tensor([1.0, -1, 2, 0.5]).double().view(4, 1, 1)
    for other in (z[[2, 0, 1]], z[:, [3, 1, 0, 2]], moved, factors * z + shift):
        assert float(pearson_redundancy(other)) == pytest.approx(value, rel=1e-5)


def test_maps_of_any_number_of_axes() -> None:
    z = normal(2, 3, 4, 5)
    assert torch.equal(pearson_redundancy(z), pearson_redundancy(z.flatten(2)))
    assert torch.equal(pearson_redundancy(z), pearson_redundancy(z.unsqueeze(-1)))


def test_epsilon_quietens_a_quiet_channel() -> None:
    z = normal(1, 2, 4, 4)
    z[:, 1] = z[:, 0]
    variance = float(z[0, 0].var(correction=0))
    epsilon = 0.5
    assert float(pearson_redundancy(z, epsilon=epsilon)) == pytest.approx((variance / (variance + epsilon)) ** 2)


def test_constant_channels_correlate_with_nothing_and_pull_at_nothing() -> None:
    z = normal(3, 4, 5, 5)
    z[:, 1] = 0.3
    expected = slow(z[:, [0, 2, 3]]) * 6 / 12  # six of the twelve ordered pairs are left
    z.requires_grad_()
    value = pearson_redundancy(z)
    value.backward()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    assert z.grad.isfinite().all()
    assert z.grad[:, 1].abs().max() < 1e-6
    assert z.grad[:, 0].abs().max() > 1e-5


@given(st.floats(-30, 0), st.sampled_from([1e-8, 1e-4]))
@settings(max_examples=30, deadline=None)
def test_nearly_constant_channels_keep_a_bounded_gradient(power: float, epsilon: float) -> None:
    z = normal(1, 2, 3, 3, dtype=torch.float32)
    z[:, 1] = z[:, 0] * 10**power
    z.requires_grad_()
    pearson_redundancy(z, epsilon=epsilon).backward()
    assert float(z.grad.norm()) < 4 / math.sqrt(epsilon)


def test_gradcheck() -> None:
    z = normal(2, 3, 2, 3)
    z[0, 1] = 0.3
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: pearson_redundancy(v, epsilon=1e-3), z)


@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (2, 3, 1, 1), (0, 3, 2, 2), (3, 4)])
def test_shapes_without_a_pair(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="2 or more channels and positions") as caught:
        pearson_redundancy(torch.zeros(shape))
    assert caught.value.value == shape


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_epsilon_that_is_not_positive(epsilon: float) -> None:
    with pytest.raises(InputError, match="epsilon"):
        pearson_redundancy(normal(1, 2, 2, 2), epsilon=epsilon)
