from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.defenses import CEM, Context, Epoch, build
from sfumato.defenses.cem import BoundCEM
from sfumato.errors import InputError
from sfumato.information.grouping import Total
from sfumato.models import Feature, SplitModel

K, D = 3, 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_split(variance: float = 0.04) -> SplitModel:
    feature = Feature((2, 1, 3), (0.0, 1.0), variance)
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(D, K))
    return SplitModel(nn.Identity(), nn.Identity(), cloud, image_shape=(2, 1, 3), feature=feature, cut="x")


def bound_cem(spec: CEM, variance: float = 0.04) -> BoundCEM:
    bound = spec.bind(noisy_split(variance), generator=seeded())
    assert isinstance(bound, BoundCEM)
    return bound


def sample(n: int, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    z = spread * torch.randn(n, 2, 1, 3, generator=generator, dtype=torch.float64)
    return z, torch.randint(0, K, (n,), generator=generator)


def refreshed(spec: CEM, seed: int = 0, variance: float = 0.04, n: int = 120) -> BoundCEM:
    bound = bound_cem(spec, variance).double()
    z, y = sample(n, seed)

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(z.split(32), y.split(32)))

    bound.epoch_start(Epoch(1, 3, features, seeded(seed)))
    return bound


def context(z: Tensor, y: Tensor, *, epoch: int = 1, lr: float = 0.001) -> Context:
    nothing = torch.zeros(len(z), K, dtype=z.dtype)
    return Context(z, y, z, torch.full_like(z, 77.0), nothing, epoch, 0, lr, seeded())


def slow_rate(bound: BoundCEM, z: Tensor, y: Tensor, threshold: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """The authors' isotropic loss, class by class and component by component; with the new variances and weights."""
    mixture = bound.mixture
    k, m, d = mixture.means.shape
    variances, weights = mixture.covariances.clone(), mixture.weights.clone()
    total, classes = torch.zeros((), dtype=z.dtype), 0
    for c in range(k):
        own = z[y == c].flatten(1)
        if not len(own):
            continue
        classes += 1
        n_class = float(mixture.counts[c])
        nearest = [int((row - mixture.means[c]).square().sum(1).argmin()) for row in own.detach()]
        for i in range(m):
            members = [row for row, j in zip(own, nearest) if j == i]
            weight, v = mixture.weights[c, i], mixture.covariances[c, i]
            b = len(members)
            if b:
                a = min(0.99, 10 * b / (n_class * float(weight))) if n_class * float(weight) > 0 else 0.99
                squared = sum((row - mixture.means[c, i]).square().sum() / d for row in members) / b
                v = a * squared + (1 - a) * v
            gap = torch.log(v + 0.01) - math.log(threshold * noise + 0.01)
            total = total + weight * (gap if gap > 0 else 0 * gap)
            variances[c, i] = v.detach()
            weights[c, i] += (b - len(own) * weight) / n_class
    return total / classes, variances, weights


@given(
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([0.125, 0.0625, 8.0]),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_rate_against_twin(m: int, n: int, threshold: float, spread: float, seed: int) -> None:
    bound = refreshed(CEM(components=m, threshold=threshold), seed % 7)
    z, y = sample(n, seed, spread)
    z.requires_grad_()
    expected, variances, weights = slow_rate(bound, z, y, threshold, 0.04)
    (slow_gradient,) = torch.autograd.grad(expected, z)
    value = bound.rate(z, y)
    (gradient,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(bound.mixture.covariances, variances, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(bound.mixture.weights, weights, rtol=1e-9, atol=1e-12)


def test_rate_by_hand() -> None:
    """One class, one component at 0, variance before 0.5, 1,000 images: a = 10·2/1,000 = 0.02."""
    bound = bound_cem(CEM(components=1), variance=0.04).double()
    bound.mixture.covariances.fill_(0.5)
    bound.mixture.counts.copy_(torch.tensor([1000.0, 1000, 1000]))
    z = torch.full((2, 2, 1, 3), 2.0, dtype=torch.float64)
    v = 0.02 * 4 + 0.98 * 0.5
    value = bound.rate(z, torch.tensor([1, 1]))
    assert float(value) == pytest.approx(math.log(v + 0.01) - math.log(0.125 * 0.04 + 0.01))
    assert bound.mixture.covariances.flatten().tolist() == pytest.approx([0.5, v, 0.5])


def test_no_pressure_below_the_threshold() -> None:
    bound = refreshed(CEM(components=2, threshold=0.5), variance=4.0)
    z = torch.stack([bound.mixture.means[c, 0].view(2, 1, 3) for c in range(K)]).requires_grad_()
    bound.mixture.covariances.fill_(1.9)  # below t·σ² = 2
    value = bound.rate(z, torch.arange(K))
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, z)[0].any()
    bound.mixture.covariances.fill_(500.0)
    assert float(bound.rate(z, torch.arange(K)).detach()) > 0


def test_threshold_and_noise_set_the_floor() -> None:
    z, y = sample(12, 5, spread=3.0)
    values = {}
    for threshold, variance in ((0.125, 0.04), (0.25, 0.02), (0.5, 0.04), (0.125, 0.5)):
        bound = refreshed(CEM(components=1, threshold=threshold), variance=variance)
        values[threshold, variance] = float(bound.rate(z, y)) + math.log(threshold * variance + 0.01)
    assert values[0.25, 0.02] == pytest.approx(values[0.125, 0.04])
    assert len({round(v, 5) for v in values.values()}) == 1


def test_pulling_features_together_lowers_the_rate() -> None:
    bound = refreshed(CEM(components=2))
    z, y = sample(60, 3, spread=2.0)
    z.requires_grad_()
    optimizer = torch.optim.SGD([z], 5.0)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        value = copy.deepcopy(bound).rate(z, y)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.1


def test_running_weights_sum_to_one_and_find_the_shares() -> None:
    bound = refreshed(CEM(components=3))
    for seed in range(30):
        bound.rate(*sample(20, seed))
        torch.testing.assert_close(bound.mixture.weights.sum(1), torch.ones(K).double())
        assert bound.mixture.weights.min() >= 0
    # If all features of a class keep falling to one component, its weight goes to 1.
    z = bound.mixture.means[1, 2].view(1, 2, 1, 3).expand(20, -1, -1, -1)
    for _ in range(60):
        bound.rate(z, torch.ones(20, dtype=torch.int64))
    assert float(bound.mixture.weights[1, 2]) > 0.99


def test_class_that_the_last_pass_saw_little_of() -> None:
    """Weights stay weights also where a batch holds more of a class than the pass over the features did."""
    bound = bound_cem(CEM(components=2)).double()
    z, y = sample(30)
    y[y == 2] = 1
    y[0] = 0
    few = torch.cat([z[:1], z[y == 1]]), torch.cat([y[:1], y[y == 1]])
    bound.epoch_start(Epoch(1, 2, lambda: iter([few]), seeded()))
    assert bound.mixture.counts[0] == 1
    assert bound.mixture.counts[2] == 0
    for seed in range(5):
        z, y = sample(24, seed)
        assert bound.rate(z, y).isfinite()
        assert bound.mixture.weights.min() >= 0
        torch.testing.assert_close(bound.mixture.weights.sum(1), torch.ones(K).double())


def test_no_gradient_reaches_the_mixture_and_none_leaves_it() -> None:
    bound = refreshed(CEM())
    z, y = sample(10)
    z.requires_grad_()
    first = bound.rate(z, y)
    second = bound.rate(z, y)  # a second step before the backward pass of the first
    (first + second).backward()
    assert not any(value.requires_grad for value in bound.buffers())
    assert not list(bound.parameters())


def test_loss_is_weight_times_schedule_times_rate() -> None:
    z, y = sample(10, 2)
    for schedule, pressure in (("authors", 0.02), ("constant", 1.0)):
        bound = refreshed(CEM(weight=7.0, schedule=schedule))
        expected = 7 * pressure * float(copy.deepcopy(bound).rate(z, y))
        losses = bound.losses(context(z, y, lr=0.05))
        assert list(losses) == ["cem"]
        assert float(losses["cem"]) == pytest.approx(expected)
        assert expected > 0


def test_authors_schedule() -> None:
    """0.02, 0.1, 0.5, 1, 1 at the recipe's learning rates, and in between by 0.001/lr."""
    spec = CEM(weight=1.0)
    z, y = sample(10, 2)
    pressures = []
    for lr in [0.05 * 0.2**k for k in range(5)] + [0.001, 0.00041]:
        bound = refreshed(spec)
        rate = float(copy.deepcopy(bound).rate(z, y))
        pressures.append(float(bound.losses(context(z, y, lr=lr))["cem"]) / rate)
    assert pressures == pytest.approx([0.02, 0.1, 0.5, 1, 1, 1, 0.001 / 0.00041])


@pytest.mark.parametrize("variant", ["isotropic", "diagonal", "full"])
def test_exact_variants_are_the_rate_of_the_mixture(variant: Any) -> None:
    z, y = sample(40, 3)
    for per_dimension, unit in ((True, D), (False, 1)):
        bound = refreshed(CEM(weight=2.0, schedule="constant", variant=variant, per_dimension=per_dimension))
        loss = float(bound.losses(context(z, y))["cem"])
        assert loss == pytest.approx(2 * bound.theory()["cem_rate_nats"] / unit, rel=1e-6)
        assert bound.mixture.covariances.ndim == {"isotropic": 2, "diagonal": 3, "full": 4}[variant]


def test_shrinkage_reaches_loss_and_theory() -> None:
    rates = [refreshed(CEM(variant="full", shrinkage=s)).theory()["cem_rate_nats"] for s in (0.0, 0.5, 1.0)]
    assert rates == sorted(rates)
    assert rates[2] > rates[0] + 1e-3
    z, y = sample(40, 3)
    values = [float(refreshed(CEM(variant="full", shrinkage=s)).rate(z, y)) for s in (0.0, 1.0)]
    assert values[0] < values[1]


@pytest.mark.parametrize("variant", ["reference", "isotropic", "diagonal", "full"])
def test_weight_and_schedule_are_those_of_the_variant_unless_given(variant: Any) -> None:
    expected = (16.0, "authors") if variant == "reference" else (0.3, "constant")
    for spec in (CEM(variant=variant), *build({"recipe": "dropout_cem", "variant": variant}).parts()[-1:]):
        assert isinstance(spec, CEM)
        assert (spec.weight, spec.schedule) == expected
        (told,) = spec.describe()
        assert (told["weight"], told["schedule"]) == expected
        assert build(told) == spec
    assert CEM(0.0, variant=variant).weight == 0
    given = CEM(16.0, schedule="authors", variant=variant)
    assert (given.weight, given.schedule) == (16, "authors")
    z, y = sample(20, 2)
    rate = float(refreshed(CEM(variant=variant)).rate(z, y))
    loss = float(refreshed(CEM(variant=variant)).losses(context(z, y, lr=0.05))["cem"])
    assert loss == pytest.approx(rate * (16 * 0.001 / 0.05 if variant == "reference" else 0.3))


def test_global_mixture_knows_no_classes() -> None:
    bound = refreshed(CEM(variant="diagonal", per_class=False, components=3))
    assert bound.mixture.means.shape == (1, 3, D)
    z, y = sample(30, 3)
    other = copy.deepcopy(bound)
    assert torch.equal(bound.rate(z, y), other.rate(z, (y + 1) % K))
    own = refreshed(CEM(variant="diagonal", components=3))
    assert not torch.equal(copy.deepcopy(own).rate(z, y), own.rate(z, (y + 1) % K))


def test_the_authors_loss_is_per_class_and_per_dimension() -> None:
    with pytest.raises(InputError, match=r"cem\.per_class: got False"):
        CEM(per_class=False)
    with pytest.raises(InputError, match=r"cem\.per_dimension: got False"):
        CEM(per_dimension=False)


def in_shares(work: Callable[[int, Total], Tensor], shares: int) -> list[Tensor]:
    """What ``work`` gives for every rank, in threads that can sum over each other."""
    barrier, given = threading.Barrier(shares, timeout=20), [torch.empty(0)] * shares

    def ranked(rank: int) -> Tensor:
        def total(tensor: Tensor) -> Tensor:
            given[rank] = tensor.clone()
            barrier.wait()
            summed = torch.stack(given).sum(0)
            barrier.wait()
            return summed

        return work(rank, total)

    with ThreadPoolExecutor(shares) as pool:
        return list(pool.map(ranked, range(shares)))


@pytest.mark.parametrize("variant", ["reference", "isotropic", "diagonal", "full"])
def test_shares_of_a_batch_are_the_batch(variant: Any) -> None:
    """Value, running values and mean gradient of processes are those of one that has the whole batch."""
    z, y = sample(42, 3, spread=2.0)
    y[::3] = 0  # a class of the first share alone, of three
    y[(y == 0) & (torch.arange(42) % 3 > 0)] = 1
    z[y == 0] += 0.5

    def run(shares: int) -> tuple[list[Tensor], Tensor, list[BoundCEM]]:
        parts = [refreshed(CEM(variant=variant, components=2, schedule="constant", weight=1.0)) for _ in range(shares)]
        leaves = [z[rank::shares].clone().requires_grad_() for rank in range(shares)]

        def work(rank: int, total: Total) -> Tensor:
            ctx = replace(context(leaves[rank], y[rank::shares]), total=total)
            loss = parts[rank].losses(ctx)["cem"]
            loss.backward()
            return loss.detach()

        values, gradient = in_shares(work, shares), torch.zeros_like(z)
        for rank, leaf in enumerate(leaves):
            gradient[rank::shares] = leaf.grad / shares
        return values, gradient, parts

    (value,), gradient, (one,) = run(1)
    before = refreshed(CEM(variant=variant, components=2))
    assert not torch.allclose(one.mixture.weights, before.mixture.weights)
    values, of_shares, parts = run(3)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(of_shares, gradient)
    for found, part in zip(values, parts):
        torch.testing.assert_close(found, value)
        for name, running in one.mixture.state_dict().items():
            torch.testing.assert_close(part.mixture.state_dict()[name], running)


def test_every_process_takes_the_first_ones_mixture() -> None:
    """Last bits of a device may differ, and with them what is assigned and where a center begins."""
    first = refreshed(CEM(), seed=5).mixture.state_dict()
    bound = bound_cem(CEM()).double()
    z, y = sample(120, 0)
    bound.epoch_start(Epoch(1, 3, lambda: iter([(z, y)]), seeded(), agree=lambda own: first))
    assert all(torch.equal(value, first[name]) for name, value in bound.mixture.state_dict().items())
    assert not torch.equal(refreshed(CEM()).mixture.means, first["means"])


@pytest.mark.parametrize("variant", ["reference", "full"])
def test_mixed_precision_does_not_reach_the_mixture(variant: Any) -> None:
    z, y = sample(60, 3)
    gradients = []
    for mixed in (False, True):
        bound = refreshed(CEM(variant=variant, schedule="constant")).float()
        leaf = z.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = bound.losses(context(leaf, y))["cem"]
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    assert torch.equal(*gradients)


def test_silent_in_the_first_epoch() -> None:
    bound = bound_cem(CEM())
    z, y = sample(10)
    passes: list[int] = []

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        passes.append(1)
        return iter([(z.float(), y)])

    bound.epoch_start(Epoch(0, 3, features, seeded()))
    before = {name: value.clone() for name, value in bound.state_dict().items()}
    assert bound.losses(context(z.float(), y, epoch=0)) == {}
    assert not passes
    assert all(torch.equal(value, before[name]) for name, value in bound.state_dict().items())
    assert bound.theory() == {}
    bound.epoch_start(Epoch(1, 3, features, seeded()))
    assert len(passes) == 2
    assert set(bound.losses(context(z.float(), y, epoch=1))) == {"cem"}


def test_the_mixture_follows_the_features_into_every_epoch() -> None:
    """One component a class: each refresh finds the class's mean and mean variance exactly, wherever features went."""
    bound = bound_cem(CEM(components=1)).double()
    for index in range(1, 5):
        z, y = sample(60, index)
        z = z * index + 10 * index

        def features(z: Tensor = z, y: Tensor = y) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(zip(z.split(32), y.split(32)))

        bound.epoch_start(Epoch(index, 5, features, seeded()))
        for c in range(K):
            own = z[y == c].flatten(1)
            torch.testing.assert_close(bound.mixture.means[c, 0], own.mean(0))
            variance = own.var(0, correction=0).mean()
            torch.testing.assert_close(bound.mixture.covariances[c, 0], variance)


def test_it_measures_the_clean_feature() -> None:
    bound = refreshed(CEM(schedule="constant", weight=1.0))
    z, y = sample(10)  # the context's sent feature is 77 everywhere
    expected = float(copy.deepcopy(bound).rate(z, y))
    assert float(bound.losses(context(z, y))["cem"]) == pytest.approx(expected)


def slow_theory(counts: Tensor, weights: Tensor, variances: Tensor, dim: int, noise: float) -> float:
    """R of theorem 2, component by component, with dense covariance matrices."""
    total = 0.0
    for c in range(len(counts)):
        for i in range(weights.shape[1]):
            pi = float(counts[c] / counts.sum() * weights[c, i])
            if pi == 0:
                continue
            eye = torch.eye(dim, dtype=torch.float64)
            growth = (
                torch.linalg.slogdet((float(variances[c, i]) + noise) * eye)[1] - torch.linalg.slogdet(noise * eye)[1]
            )
            total += pi * (-math.log(pi) + 0.5 * float(growth))
    return total


@pytest.mark.parametrize("components", [1, 4])
def test_theory_against_theorem_2(components: int) -> None:
    bound = refreshed(CEM(components=components), variance=0.3)
    bound.mixture.weights[0] = torch.tensor([1.0] + [0.0] * (components - 1))  # a component of weight 0
    mixture = bound.mixture
    expected = slow_theory(mixture.counts, mixture.weights, mixture.covariances, D, 0.3)
    assert bound.theory() == {
        "cem_rate_nats": pytest.approx(expected),
        "cem_rate_nats_per_dimension": pytest.approx(expected / D),
    }


def test_theory_of_one_gaussian_is_its_mutual_information() -> None:
    """One component: I(z; z + ε) = D/2·log(1 + v/σ²), exactly."""
    bound = bound_cem(CEM(components=1), variance=0.5)
    bound.mixture.counts.copy_(torch.tensor([10.0, 0, 0]))
    bound.mixture.weights.copy_(torch.tensor([[1.0], [0], [0]]))
    bound.mixture.covariances.fill_(1.5)
    bound.mixture.ready.fill_(True)
    assert bound.theory()["cem_rate_nats"] == pytest.approx(D / 2 * math.log(4))
    # Three classes of equal share: what tells the classes apart is added, log 3.
    bound.mixture.counts.fill_(10)
    bound.mixture.weights.fill_(1)
    assert bound.theory()["cem_rate_nats"] == pytest.approx(D / 2 * math.log(4) + math.log(3))


def test_theory_bounds_the_information_of_a_mixture() -> None:
    """R ≥ I(z; z') for two Gaussians on a line, whose I is known by quadrature."""
    variance, noise, gap = 0.5, 0.25, 2.0
    grid = torch.linspace(-15, 17, 200_001, dtype=torch.float64)

    def entropy(v: float) -> float:
        density = sum(torch.exp(-((grid - mean) ** 2) / 2 / v) / math.sqrt(2 * math.pi * v) for mean in (0, gap)) / 2
        return float(-torch.trapezoid(torch.special.xlogy(density, density), grid))

    exact = entropy(variance + noise) - 0.5 * math.log(2 * math.pi * math.e * noise)
    bound = bound_cem(CEM(components=1), variance=noise)
    bound.mixture = type(bound.mixture)(2, 1, 1)
    bound.mixture.counts.fill_(5)
    bound.mixture.covariances.fill_(variance)
    bound.mixture.ready.fill_(True)
    rate = bound.theory()["cem_rate_nats"]
    assert exact < rate < exact + math.log(2)
    assert rate == pytest.approx(math.log(2) + 0.5 * math.log(1 + variance / noise))


def test_class_that_is_absent_adds_nothing_to_the_theory() -> None:
    bound = refreshed(CEM(components=2))
    bound.mixture.counts[1], bound.mixture.weights[1] = 0, 0
    rate = bound.theory()["cem_rate_nats"]
    bound.mixture.covariances[1] = 1e6
    assert math.isfinite(rate)
    assert bound.theory()["cem_rate_nats"] == rate


def test_it_needs_noise_and_takes_its_size_from_the_split() -> None:
    with pytest.raises(
        InputError, match="defense cem: got 'a channel without Gaussian noise'; accepted: Gaussian noise"
    ):
        CEM().bind(noisy_split(0.0), generator=seeded())
    bound = bound_cem(CEM(components=7), variance=0.09)
    assert bound.mixture.means.shape == (K, 7, D)
    assert bound.noise_variance_sent == 0.09


def test_single_precision_agrees_with_double() -> None:
    bound = refreshed(CEM())
    z, y = sample(30, 4)
    single = copy.deepcopy(bound).float()
    assert float(single.rate(z.float(), y)) == pytest.approx(float(bound.rate(z, y)), rel=1e-4)


@pytest.mark.parametrize("variant", ["reference", "isotropic", "diagonal", "full"])
def test_no_theory_where_training_diverged(variant: str) -> None:
    bound = refreshed(CEM(variant=variant))  # type: ignore[arg-type]
    assert bound.theory()["cem_rate_nats"] > 0
    bound.mixture.covariances.view(-1)[0] = math.nan
    assert bound.theory() == {}
