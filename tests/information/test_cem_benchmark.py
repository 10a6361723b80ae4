"""The loops that ``benchmarks/cem.py`` times against the library compute what the library computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from benchmarks import cem
from sfumato.information import ClassMixture, reference_loss

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def begun() -> tuple[ClassMixture, Batches]:
    """A mixture after one pass, none of whose components is empty, and the features of the pass."""
    z, y = cem.features(1_500)
    batches = list(zip(z.split(400), y.split(400)))
    mixture = ClassMixture(cem.CLASSES, cem.COMPONENTS, cem.DIM)
    mixture.refresh(lambda: batches, generator=cem.seeded())
    assert bool((mixture.weights > 0).all())
    return mixture, batches


def test_loop_of_the_loss(begun: tuple[ClassMixture, Batches]) -> None:
    mixture, ((z, y), *_) = begun
    z, y = z[: cem.BATCH], y[: cem.BATCH]
    z, y = z[y != 3], y[y != 3]  # a class that the batch lacks
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    slow = cem.loss_by_loops(mixture, leaves[0], y)
    fast = reference_loss(copy.deepcopy(mixture), leaves[1], y, cem.FLOOR)
    torch.testing.assert_close(fast, slow)
    assert float(slow.detach()) > 0.1
    gradients = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip((slow, fast), leaves)]
    assert bool(gradients[0].any())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-9)


def test_loop_of_the_refresh(begun: tuple[ClassMixture, Batches]) -> None:
    mixture, batches = copy.deepcopy(begun[0]), begun[1]
    # Another pass over moved features: every center moves, and no component runs empty.
    moved = [(0.8 * z + 0.1 * z.flip(1), y) for z, y in batches]
    before = mixture.means.clone()
    means, variances = cem.refresh_by_loops(mixture, moved)
    mixture.refresh(lambda: moved, generator=cem.seeded())
    assert bool((mixture.weights > 0).all())
    assert float((mixture.means - before).abs().amax(2).min()) > 0.01
    torch.testing.assert_close(mixture.means, means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixture.covariances, variances, rtol=1e-4, atol=1e-6)
