from __future__ import annotations

import math

import pytest
import torch

from sfumato.errors import InputError
from sfumato.information import EffectiveInformation, effective_information


def test_counts_what_is_not_zero() -> None:
    z = torch.tensor([[[0.0, 1.0], [-2.0, 0.5]], [[0.0, 0.0], [0.0, 3.0]]])
    assert effective_information(z) == EffectiveInformation(elements=2.0, fraction=0.5)


def test_threshold_is_exclusive_and_on_the_magnitude() -> None:
    z = torch.tensor([[0.5, -0.5, 0.6, -0.7, 0.0]])
    assert effective_information(z, threshold=0.5) == EffectiveInformation(2.0, 0.4)
    assert effective_information(z, threshold=1.0) == EffectiveInformation(0.0, 0.0)


def test_against_twin() -> None:
    z = torch.relu(torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
    counts = [sum(1 for element in image.flatten().tolist() if abs(element) > 0.3) for image in z]
    found = effective_information(z, threshold=0.3)
    assert found.elements == pytest.approx(sum(counts) / 7)
    assert found.fraction == pytest.approx(sum(counts) / 7 / 60)


def test_integers_and_scalars_per_image() -> None:
    assert effective_information(torch.tensor([0, 3, -1, 0])) == EffectiveInformation(0.5, 0.5)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0)])
def test_nothing_to_count(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one or more images"):
        effective_information(torch.zeros(shape))


@pytest.mark.parametrize("threshold", [-0.1, math.nan])
def test_threshold_below_zero(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        effective_information(torch.ones(2, 2), threshold=threshold)
