from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information import (
    ClassAverage,
    GatedPooling,
    class_softmax,
    effective_sample_size,
    gated_scores,
    log_variance_penalty,
)
from sfumato.information.attention import class_mean, class_spread, class_uniform, mean_log_variance

K, D, H = 4, 3, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(n: int, seed: int = 0, classes: int = K) -> tuple[Tensor, Tensor]:
    """Features and labels; the last class is always absent."""
    generator = seeded(seed)
    z = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return z, torch.randint(0, classes - 1, (n,), generator=generator)


def even_sample(n: int) -> tuple[Tensor, Tensor]:
    """All classes but the last, in turn."""
    return sample(n)[0], torch.arange(n) % (K - 1)


def pooling(seed: int = 0, **changes: object) -> GatedPooling:
    """With an attention that has learned something: w is not 0."""
    path = GatedPooling(K, D, H, generator=seeded(seed), **changes).double()  # type: ignore[arg-type]
    with torch.no_grad():
        path.mixer.copy_(2 * torch.randn(H, generator=seeded(seed + 1)))
    return path


def slow_gated_variance(z: Tensor, y: Tensor, path: GatedPooling) -> tuple[Tensor, Tensor]:
    """Prototypes and running variances, class by class and feature by feature."""
    prototypes, variances = path.prototypes.value.clone(), path.variances.value.clone()
    for c in range(K):
        rows = [row for row, label in zip(z, y.tolist()) if label == c]
        if not rows:
            continue
        scores = [float((torch.tanh(path.value @ row) * torch.sigmoid(path.gate @ row)) @ path.mixer) for row in rows]
        raised = [math.exp(score) for score in scores]
        weights = [(1 - path.uniform) * r / sum(raised) + path.uniform / len(rows) for r in raised]
        share = len(rows) / (len(rows) + path.prototypes.momentum * float(path.prototypes.mass[c]))
        mean = sum(a * row for a, row in zip(weights, rows))
        prototypes[c] = share * mean + (1 - share) * prototypes[c]
        spread = sum(a * (row - prototypes[c]) ** 2 for a, row in zip(weights, rows))
        variances[c] = share * spread + (1 - share) * variances[c]
    return prototypes, variances


@given(st.integers(1, 20), st.floats(0, 0.95), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_gated_pooling_against_twin(n: int, momentum: float, uniform: float, seed: int) -> None:
    path = pooling(seed % 5, momentum=momentum, uniform=uniform)
    for step in range(3):
        z, y = sample(n, seed + step)
        with torch.no_grad():
            prototypes, variances = slow_gated_variance(z, y, path)
        value = path.variance(z, y, side="feature")
        torch.testing.assert_close(value, variances, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(path.tracked(), variances, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(path.prototypes.value, prototypes, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 30), st.sampled_from([1.0, 1e3]), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_softmax_is_one_of_each_class(n: int, scale: float, seed: int) -> None:
    scores = scale * torch.randn(n, generator=seeded(seed), dtype=torch.float64)
    y = torch.randint(0, K, (n,), generator=seeded(seed + 1))
    weights = class_softmax(scores, y, K)
    for c in y.unique():
        torch.testing.assert_close(weights[y == c], scores[y == c].softmax(0))
    assert torch.equal(class_uniform(y, K, torch.float64), torch.stack([1 / (y == c).sum().double() for c in y]))


def test_gradients_of_the_pure_functions() -> None:
    z, y = sample(7, 3)
    scores = torch.randn(7, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    value, gate = (torch.randn(H, D, generator=seeded(s), dtype=torch.float64, requires_grad=True) for s in (2, 3))
    mixer = torch.randn(H, generator=seeded(4), dtype=torch.float64, requires_grad=True)
    z.requires_grad_()
    centers = torch.randn(K, D, generator=seeded(5), dtype=torch.float64, requires_grad=True)
    present = torch.bincount(y, minlength=K) > 0

    def penalty(v: Tensor) -> Tensor:
        return log_variance_penalty(v, present, floor=0.1, gamma=0.01)

    assert torch.autograd.gradcheck(lambda s: class_softmax(s, y, K), (scores,))
    assert torch.autograd.gradcheck(gated_scores, (z, value, gate, mixer))
    weights = class_softmax(scores.detach(), y, K).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: class_mean(a, b, y, K), (z, weights))
    assert torch.autograd.gradcheck(lambda a, b, c: class_spread(a, b, c, y), (z, centers, weights))
    assert torch.autograd.gradcheck(lambda a: effective_sample_size(a, y, K), (weights,))
    variances = centers.detach().square().add(0.2).requires_grad_()
    assert torch.autograd.gradcheck(penalty, (variances,))
    assert torch.autograd.gradcheck(lambda v: mean_log_variance(v, present, gamma=0.01), (variances,))


def test_penalty_by_hand() -> None:
    """Two present classes; one dimension of the first is below the floor, the absent class would add much."""
    v = torch.tensor([[0.5, 0.001], [2.0, 1.0], [99.0, 99.0]])
    present = torch.tensor([True, True, False])
    expected = (math.log(0.52 / 0.12) + 0 + math.log(2.02 / 0.12) + math.log(1.02 / 0.12)) / 4
    assert float(log_variance_penalty(v, present, floor=0.1, gamma=0.02)) == pytest.approx(expected)
    raw = sum(math.log(x + 0.02) for x in (0.5, 0.001, 2.0, 1.0)) / 4
    assert float(mean_log_variance(v, present, gamma=0.02)) == pytest.approx(raw)


def test_effective_sample_size_by_hand() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25, 1.0, 0.0, 1.0])
    assert effective_sample_size(weights, y, K).tolist() == [4, 1, 1, 0]


@given(st.floats(0, 0.95), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_running_average_is_the_weighted_sum_over_all_batches(momentum: float, seed: int) -> None:
    average = ClassAverage(K, D, momentum).double()
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(6):
        counts = torch.randint(0, 4, (K,), generator=seeded(seed + step))
        values = torch.randn(K, D, generator=seeded(seed + step), dtype=torch.float64)
        seen.append((counts, values))
        average.keep(average.blend(values, counts), counts)
    for c in range(K):
        weights = [momentum ** (5 - s) * int(counts[c]) for s, (counts, _) in enumerate(seen)]
        if sum(weights) > 1e-6:
            expected = sum(w * values[c] for w, (_, values) in zip(weights, seen)) / sum(weights)
            torch.testing.assert_close(average.value[c], expected, rtol=1e-9, atol=1e-12)
        assert float(average.mass[c]) == pytest.approx(sum(weights))


def test_absent_class_keeps_its_average() -> None:
    path = pooling()
    z, y = even_sample(20)
    path.variance(z, y, side="feature")
    before = path.tracked().clone()
    path.variance(2 * z[y != 1], y[y != 1], side="feature")
    assert torch.equal(path.tracked()[1], before[1])
    assert not torch.equal(path.tracked()[0], before[0])
    assert not path.tracked()[3].any()


def test_one_feature_of_a_class_is_measured_against_the_running_prototype() -> None:
    path = pooling(momentum=0.5)
    z, y = torch.zeros(4, D).double(), torch.zeros(4, dtype=torch.int64)
    path.variance(z, y, side="feature")
    single = torch.full((1, D), 3.0).double()
    share = 1 / (1 + 0.5 * 4)
    prototype = share * 3
    value = path.variance(single, y[:1], side="feature")
    torch.testing.assert_close(value[0], torch.full((D,), share * (3 - prototype) ** 2).double())


@given(st.floats(0.05, 1), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_variance_is_never_below_its_share_of_the_plain_one(uniform: float, seed: int) -> None:
    """For any attention, even one that puts all of its weight on one feature of each class."""
    path = pooling(seed % 5, momentum=0.0, uniform=uniform)
    with torch.no_grad():
        path.mixer *= 1e3
    z, y = sample(15, seed)
    value = path.variance(z, y, side="feature")
    for c in y.unique():
        own = z[y == c]
        assert (value[c] >= uniform * (own - own.mean(0)).square().mean(0) - 1e-9).all()


def test_uniform_share_of_one_is_the_plain_variance() -> None:
    path = pooling(momentum=0.0, uniform=1.0)
    z, y = even_sample(15)
    value = path.variance(z, y, side="feature")
    torch.testing.assert_close(value[0], z[y == 0].var(0, correction=0))


def test_it_starts_at_the_plain_variance_and_can_leave_it() -> None:
    path = GatedPooling(K, D, H, momentum=0.0, uniform=0.0, generator=seeded()).double()
    z, y = even_sample(15)
    torch.testing.assert_close(path.variance(z, y, side="feature")[1], z[y == 1].var(0, correction=0))
    path.objective(z, y, gamma=0.01).backward()
    assert path.mixer.grad is not None
    assert path.mixer.grad.abs().max() > 1e-4


def test_each_side_learns_alone() -> None:
    path = pooling()
    z, y = even_sample(15)
    z.requires_grad_()
    path.variance(z, y, side="feature").sum().backward()
    assert z.grad is not None
    assert all(parameter.grad is None for parameter in path.parameters())
    before, z.grad = {name: value.clone() for name, value in path.named_buffers()}, None
    path.objective(z, y, gamma=0.01).backward()
    assert z.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in path.parameters())
    assert all(torch.equal(value, before[name]) for name, value in path.named_buffers())


def test_feature_is_pulled_to_its_prototype_by_its_weight() -> None:
    """The gradient of the variance of a first batch: 2·a_i·(z_i − p), the prototype's own part being zero."""
    path = pooling()
    z, y = sample(9)
    z.requires_grad_()
    path.variance(z, y, side="feature").sum().backward()
    weights = path.weights(z, y).detach()
    expected = 2 * weights.unsqueeze(1) * (z.detach() - path.prototypes.value[y])
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize(("objective", "grows"), [("adversarial", True), ("joint", False)])
def test_objective(objective: str, grows: bool) -> None:
    path = pooling(momentum=0.0, uniform=0.0, objective=objective)
    z, y = even_sample(30)
    optimizer = torch.optim.Adam(path.parameters(), 0.05)
    present = torch.bincount(y, minlength=K) > 0

    def logarithm() -> float:
        return float(mean_log_variance(path.variance(z, y, side="attention").detach(), present, gamma=0.01))

    plain = GatedPooling(K, D, H, momentum=0.0, uniform=1.0, generator=seeded()).double()
    reference = float(mean_log_variance(plain.variance(z, y, side="feature"), present, gamma=0.01))
    for _ in range(60):
        optimizer.zero_grad()
        path.objective(z, y, gamma=0.01).backward()
        optimizer.step()
    assert (logarithm() > reference) == grows
    assert abs(logarithm() - reference) > 0.05


def test_bad_values() -> None:
    with pytest.raises(InputError, match="momentum: got 1"):
        ClassAverage(K, D, 1.0)
    with pytest.raises(InputError, match=r"uniform: got 1\.5"):
        GatedPooling(K, D, H, uniform=1.5, generator=seeded())
