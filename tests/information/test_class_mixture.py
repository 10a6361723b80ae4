from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InputError
from sfumato.information import ClassMixture
from sfumato.information.mixture import Covariance

Pass = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Stream:
    """Passes over the same features in batches; counts passes and rows given out."""

    def __init__(self, z: Tensor, y: Tensor, batch: int = 16) -> None:
        self.z, self.y, self.batch = z, y, batch
        self.passes, self.rows = 0, 0

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        for z, y in zip(self.z.split(self.batch), self.y.split(self.batch)):
            self.rows += len(z)
            yield z, y


def sample(n: int = 90, k: int = 3, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return torch.randn(n, d, generator=generator), torch.randint(0, k, (n,), generator=generator)


def started(mixture: ClassMixture, means: Tensor) -> ClassMixture:
    mixture.means.copy_(means)
    mixture.ready.fill_(True)
    return mixture


def slow_assign(means: Tensor, z: Tensor, y: Tensor) -> list[int]:
    k, m, _ = means.shape
    found = []
    for row, label in zip(z, y.tolist()):
        distances = [float((row.double() - means[label, j].double()).square().sum()) for j in range(m)]
        found.append(label * m + distances.index(min(distances)))
    assert max(found) < k * m
    return found


def slow_lloyd(means: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One Lloyd pass, class by class and component by component, in double precision."""
    k, m, d = means.shape
    index = torch.tensor(slow_assign(means, z, y))
    new, variances, weights = means.double().clone(), torch.zeros(k, m).double(), torch.zeros(k, m).double()
    counts = torch.zeros(k)
    for c in range(k):
        of_class = z[y == c].double()
        counts[c] = len(of_class)
        for j in range(m):
            own = z[index == c * m + j].double()
            if len(own):
                new[c, j] = own.mean(0)
                variances[c, j] = (own - own.mean(0)).square().sum() / len(own) / d
                weights[c, j] = len(own) / len(of_class)
    for full, empty in slow_splits(index, k, m):
        own = z[index == full].double()
        old = means.flatten(0, 1)[full].double()
        stray = max(own, key=lambda row: float((row - old).square().sum()))
        center = new.flatten(0, 1)[full]
        new.view(k * m, d)[empty] = center + 0.01 * (stray - center)
        variances.view(-1)[empty] = variances.view(-1)[full]
    return new, variances, weights, counts


def slow_splits(index: Tensor, k: int, m: int) -> list[tuple[int, int]]:
    """Which component is split for which empty one: the fullest of a class for its last empty one, and so on."""
    found = []
    for c in range(k):
        sizes = {j: int((index == j).sum()) for j in range(c * m, (c + 1) * m)}
        empty = [j for j in reversed(sizes) if sizes[j] == 0]
        full = sorted((j for j in sizes if sizes[j]), key=lambda j: -sizes[j])
        found += [(a, b) for a, b in zip(full, empty) if sizes[a] >= 2]
    return found


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_assign_against_twin(k: int, m: int, d: int, seed: int) -> None:
    z, y = sample(25, k, d, seed)
    mixture = ClassMixture(k, m, d)
    mixture.means.copy_(torch.randn(k, m, d, generator=seeded(seed + 1)))
    assert mixture.assign(z, y).tolist() == slow_assign(mixture.means, z, y)


def test_assign_far_from_zero() -> None:
    """Centers a few units apart, 4,096 from zero: single precision must not drown the difference."""
    z, y = sample(200, 2, 32)
    mixture = ClassMixture(2, 5, 32)
    mixture.means.copy_(torch.randn(2, 5, 32, generator=seeded(1)))
    # Rounded so that the shifted features are the same numbers, exactly.
    z, mixture.means = (z * 256).round() / 256, (mixture.means * 256).round() / 256
    near = mixture.assign(z, y)
    mixture.means += 4096
    assert (mixture.assign(z + 4096, y) == near).float().mean() > 0.99


def test_assign_needs_no_gradient() -> None:
    z, y = sample(10)
    mixture = ClassMixture(3, 2, 4)
    index = mixture.assign(z.requires_grad_(), y)
    assert index.dtype == torch.int64
    assert not index.requires_grad


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_refresh_against_twin(k: int, m: int, seed: int) -> None:
    z, y = sample(40, k, 3, seed)
    y[y == k - 1] = 0 if seed % 3 == 0 else k - 1  # at times a class without a feature
    mixture = started(ClassMixture(k, m, 3), torch.randn(k, m, 3, generator=seeded(seed + 1)))
    means, variances, weights, counts = slow_lloyd(mixture.means, z, y)
    mixture.refresh(Stream(z, y, batch=7), generator=seeded())
    torch.testing.assert_close(mixture.means.double(), means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixture.covariances.double(), variances, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixture.weights.double(), weights, atol=1e-6, rtol=1e-5)
    assert torch.equal(mixture.counts, counts)


@pytest.mark.parametrize("form", ["diagonal", "full"])
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_covariances_of_a_refresh_against_twin(form: Covariance, k: int, m: int, seed: int) -> None:
    z, y = sample(40, k, 3, seed)
    mixture = started(ClassMixture(k, m, 3, form), torch.randn(k, m, 3, generator=seeded(seed + 1)))
    index = torch.tensor(slow_assign(mixture.means, z, y))
    expected = torch.zeros(k * m, 3, 3).double()
    for j in range(k * m):
        own = z[index == j].double()
        if form == "full" and len(own) < 2:  # no covariance of its own: the class's
            own = z[y == j // m].double()
        if len(own):
            expected[j] = (own - own.mean(0)).T @ (own - own.mean(0)) / len(own)
    for full, empty in slow_splits(index, k, m):
        expected[empty] = expected[full]
    mixture.refresh(Stream(z, y, batch=7), generator=seeded())
    found = mixture.covariances.flatten(0, 1).double()
    if form == "diagonal":
        expected = expected.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
def test_layout_of_the_state_does_not_matter(form: Covariance) -> None:
    """A network that is laid out for channels last takes the mixture's buffers of four dimensions with it."""
    z, y = sample(60, 2, 3)
    plain, laid_out = (started(ClassMixture(2, 3, 3, form), torch.randn(2, 3, 3, generator=seeded(1))) for _ in "ab")
    laid_out.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for mixture in (plain, laid_out):
        mixture.refresh(Stream(z, y), generator=seeded())
    assert plain.covariances.abs().sum() > 0
    torch.testing.assert_close(laid_out.covariances, plain.covariances)


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
def test_one_class_may_hold_nearly_all_features(form: Covariance) -> None:
    z, _ = sample(400, 1, 3)
    y = torch.where(torch.arange(400) < 380, 7, torch.arange(400) % 30)
    means = torch.randn(30, 2, 3, generator=seeded(1))
    whole, in_parts = (started(ClassMixture(30, 2, 3, form), means) for _ in "ab")
    whole.refresh(Stream(z, y, batch=400), generator=seeded())
    in_parts.refresh(Stream(z, y, batch=9), generator=seeded())
    expected, _, weights, counts = slow_lloyd(means, z, y)
    torch.testing.assert_close(whole.means.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.weights.double(), weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.covariances, in_parts.covariances, atol=1e-5, rtol=1e-4)
    assert torch.equal(whole.counts, counts)


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
def test_rate_of_the_forms_agrees_where_they_say_the_same(form: Covariance) -> None:
    """Independent dimensions of one variance: all forms give about the mutual information of the channel."""
    z, y = torch.randn(6000, 3, generator=seeded()), torch.arange(6000) % 2
    mixture = ClassMixture(2, 1, 3, form)
    mixture.refresh(Stream(z, y, 500), generator=seeded())
    assert mixture.rate(0.5) == pytest.approx(math.log(2) + 1.5 * math.log(3), rel=0.01)
    assert mixture.rate(0.5, shrinkage=1.0) == pytest.approx(mixture.rate(0.5), rel=0.01)
    assert mixture.shares.sum() == pytest.approx(1.0)


def test_means_of_classes_do_not_mix() -> None:
    """The same features in two classes: each class has mixture components of its own."""
    z = torch.randn(40, 2, generator=seeded())
    both, labels = torch.cat([z, z + 50]), torch.arange(2).repeat_interleave(40)
    mixture = ClassMixture(2, 1, 2)
    mixture.refresh(Stream(both, labels), generator=seeded())
    torch.testing.assert_close(mixture.means[0, 0], z.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixture.means[1, 0], z.mean(0) + 50, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_well_separated_blobs_are_recovered(seed: int) -> None:
    k, m, d, n = 3, 4, 6, 60
    centers = 100 * torch.randn(k, m, d, generator=seeded(seed))
    deviations = 0.5 + torch.arange(k * m).view(k, m) / 4
    noise = torch.randn(k, m, n, d, generator=seeded(seed + 1))
    z = (centers.unsqueeze(2) + deviations.view(k, m, 1, 1) * noise).reshape(-1, d)
    y = torch.arange(k).repeat_interleave(m * n)
    order = torch.randperm(len(z), generator=seeded(seed + 2))
    mixture = ClassMixture(k, m, d)
    mixture.refresh(Stream(z[order], y[order], batch=32), generator=seeded(seed + 3))
    for c in range(k):
        match = torch.cdist(centers[c], mixture.means[c]).argmin(1)
        assert sorted(match.tolist()) == list(range(m))  # each blob has a component of its own
        torch.testing.assert_close(mixture.means[c, match], centers[c], atol=2.0, rtol=0)
        torch.testing.assert_close(mixture.covariances[c, match], deviations[c].square(), rtol=0.35, atol=0)
        torch.testing.assert_close(mixture.weights[c], torch.full((m,), 1 / m))


def test_seeding_prefers_the_far_by_squared_distance() -> None:
    """Three places, 0 (300 features), 1 (300) and 20 (1): the share of second centers at 20 is that of d²."""
    z = torch.cat([torch.zeros(10, 1), torch.ones(9, 1), torch.full((1, 1), 20.0)])
    y = torch.zeros(20, dtype=torch.int64)
    hits = 0
    for seed in range(300):
        mixture = ClassMixture(1, 2, 1)
        mixture._start([(z, y)], seeded(seed))
        hits += bool((mixture.means == 20).any())
    first = [(10, 400 / (400 + 9)), (9, 361 / (361 + 10)), (1, 1.0)]  # place of the first center: chance of 20
    expected = sum(n * chance for n, chance in first) / 20
    assert abs(hits / 300 - expected) < 4 * math.sqrt(expected * (1 - expected) / 300)
    # The distance itself, not squared, would find it far less often.
    assert hits / 300 > sum(n * c for n, c in [(10, 20 / 29), (9, 19 / 29), (1, 1.0)]) / 20 + 0.1


def test_seeding_is_apart_for_every_class() -> None:
    """Labels in any order: each class starts on two places of its own, whatever the others have."""
    z = torch.tensor([[0.0], [100.0], [1.0], [101.0], [0.0], [100.0]])
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    for seed in range(20):
        mixture = ClassMixture(2, 2, 1)
        mixture._start([(z, y)], seeded(seed))
        assert mixture.means.flatten(1).sort(1).values.tolist() == [[0, 1], [100, 101]]


def test_variance_is_about_the_new_center_and_far_from_zero() -> None:
    z = 1000 + torch.randn(500, 8, generator=seeded()) * 0.5
    mixture = ClassMixture(1, 1, 8)
    mixture.refresh(Stream(z, torch.zeros(500, dtype=torch.int64)), generator=seeded())
    assert float(mixture.covariances) == pytest.approx(float(z.double().var(0, correction=0).mean()), rel=1e-3)
    assert float(mixture.covariances) == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
def test_empty_component_is_split_from_the_fullest_of_its_class(form: Covariance) -> None:
    z = torch.tensor([[0.0], [1.0], [9.0], [70.0]])
    y = torch.tensor([0, 0, 0, 1])
    starts = torch.tensor([[[0.0], [-100.0], [-200.0]], [[60.0], [50.0], [40.0]]])
    mixture = started(ClassMixture(2, 3, 1, form), starts)
    mixture.refresh(Stream(z, y, batch=1), generator=seeded())
    third = 10 / 3
    # One for one, and there is one. A class of one feature has nothing to split.
    assert mixture.means[0].flatten().tolist() == pytest.approx([third, -100, third + 0.01 * (9 - third)])
    assert mixture.means[1].flatten().tolist() == [70.0, 50.0, 40.0]
    assert mixture.weights.tolist() == [[1, 0, 0], [1, 0, 0]]
    variances = mixture.covariances[0].flatten().tolist()
    assert variances[0] == variances[2] == pytest.approx(146 / 9)
    mixture.refresh(Stream(z, y, batch=1), generator=seeded())
    assert mixture.means[0].flatten().tolist() == pytest.approx([0.5, 0.5 + 0.01 * (0 - 0.5), 9])
    assert mixture.weights[0].tolist() == pytest.approx([2 / 3, 0, 1 / 3])


@pytest.mark.parametrize("dim", [8, 512, 4096])
def test_components_lost_far_away_come_back(dim: int) -> None:
    """As many dimensions as there are, all alike: on its farthest feature a component would keep that one alone."""
    z, y = torch.randn(400, dim, generator=seeded()), torch.zeros(400, dtype=torch.int64)
    centers = torch.full((1, 5, dim), -1000.0)
    centers[0, 3] = 0
    mixture = started(ClassMixture(1, 5, dim), centers)
    mixture.weights.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]))
    for _ in range(4):
        mixture.refresh(Stream(z, y, 100), generator=seeded())
    assert mixture.assign(z, y).bincount(minlength=5).min() >= 20
    torch.testing.assert_close(mixture.weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("distinct", [1, 2])
def test_what_waits_to_be_used_is_not_in_the_rate(form: Covariance, distinct: int) -> None:
    """Five components of one or two different features: no rate but that of telling these apart."""
    z, y = torch.eye(2)[torch.arange(40) % distinct], torch.zeros(40, dtype=torch.int64)
    mixture = ClassMixture(1, 5, 2, form)
    for _ in range(4):
        mixture.refresh(Stream(z, y), generator=seeded())
    assert mixture.rate(1e-4) == pytest.approx(math.log(distinct), abs=1e-6)


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_full_covariance_of_a_component_without_a_second_feature_is_its_class_s(far: float) -> None:
    """Components of four features, of one, and of none: split from the first, and left where it was."""
    z = far + torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [2.0, 2.0], [9.0, 9.0], [50.0, 60.0]])
    y = torch.tensor([0, 0, 0, 0, 0, 1])
    starts = [[[1.0, 1.0], [9.0, 8.0], [-99.0, 0.0], [-99.0, 9.0]], [[50.0, 60.0]] * 4]
    mixture = started(ClassMixture(2, 4, 2, "full"), far + torch.tensor(starts))
    mixture.refresh(Stream(z, y, batch=2), generator=seeded())
    assert mixture.weights[0].tolist() == pytest.approx([0.8, 0.2, 0, 0])
    own, of_class = (torch.cov(rows.double().T, correction=0) for rows in (z[:4], z[:5]))
    close = {"atol": 0.1, "rtol": 0} if far else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(mixture.covariances[0, ::3].double(), own.expand(2, 2, 2), **close)
    torch.testing.assert_close(mixture.covariances[0, 1:3].double(), of_class.expand(2, 2, 2), **close)
    assert not mixture.covariances[1].any(), "a class of one feature has no variance"


def test_class_without_a_feature() -> None:
    z, y = sample(60, 2)
    mixture = ClassMixture(3, 2, 4)
    mixture.refresh(Stream(z, y), generator=seeded())
    assert mixture.counts[2] == 0
    assert mixture.weights[2].tolist() == [0, 0]
    assert mixture.means.isfinite().all()
    torch.testing.assert_close(mixture.weights[:2].sum(1), torch.ones(2))
    # It comes back when its features do.
    y = torch.arange(60) % 3
    for _ in range(3):
        mixture.refresh(Stream(z, y), generator=seeded())
    assert mixture.counts.tolist() == [20, 20, 20]
    torch.testing.assert_close(mixture.weights.sum(1), torch.ones(3))
    assert torch.cdist(mixture.means[2], z[y == 2]).min(1).values.max() < 3


def test_fewer_features_than_components() -> None:
    z, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 0])
    mixture = ClassMixture(1, 5, 2)
    mixture.refresh(Stream(z, y), generator=seeded())
    assert mixture.means.isfinite().all()
    assert mixture.covariances.tolist() == [[0.0] * 5]
    assert float(mixture.weights.sum()) == pytest.approx(1)
    assert sorted(mixture.weights[mixture.weights > 0].tolist()) == [0.5, 0.5]


def test_coinciding_features() -> None:
    mixture = ClassMixture(1, 3, 2)
    mixture.refresh(Stream(torch.ones(10, 2), torch.zeros(10, dtype=torch.int64)), generator=seeded())
    assert torch.equal(mixture.means, torch.ones(1, 3, 2))
    assert not mixture.covariances.any()


def test_passes_over_the_features() -> None:
    """The beginning of one pass for k-means++, then a whole one; later one pass each."""
    z, y = sample(2000, 2)
    stream = Stream(z, y, batch=10)
    mixture = ClassMixture(2, 2, 4)
    assert not bool(mixture.ready)
    mixture.refresh(stream, generator=seeded())
    assert stream.passes == 2
    assert bool(mixture.ready)
    assert len(z) + 80 <= stream.rows <= len(z) + 150  # 20 for each of 4 components, and a little
    mixture.refresh(stream, generator=seeded())
    assert stream.passes == 3


def test_warm_start_draws_nothing_and_continues() -> None:
    z, y = sample()
    mixture = ClassMixture(3, 2, 4)
    mixture.refresh(Stream(z, y), generator=seeded())
    before, state = mixture.means.clone(), (generator := seeded(3)).get_state()
    expected = slow_lloyd(before, z, y)[0]
    mixture.refresh(Stream(z, y), generator=generator)
    assert torch.equal(generator.get_state(), state)
    torch.testing.assert_close(mixture.means.double(), expected, atol=1e-5, rtol=1e-4)


def test_lloyd_passes_only_improve() -> None:
    z, y = sample(300, 2)
    mixture = ClassMixture(2, 3, 4)
    errors = []
    for _ in range(6):
        mixture.refresh(Stream(z, y), generator=seeded())
        share = mixture.counts / mixture.counts.sum()
        errors.append(float((share.unsqueeze(1) * mixture.weights * mixture.covariances).sum()))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


def test_batch_size_does_not_matter() -> None:
    z, y = sample(400, 3)
    states = []
    for batch in (1, 7, 64, 400):
        mixture = ClassMixture(3, 3, 4)
        mixture.refresh(Stream(z, y, batch), generator=seeded(2))
        states.append(mixture.state_dict())
    for state in states[1:]:
        for name, value in state.items():
            torch.testing.assert_close(value, states[0][name], atol=1e-5, rtol=1e-4, msg=name)


def test_order_within_a_warm_pass_does_not_matter() -> None:
    z, y = sample(200, 3)
    start = torch.randn(3, 2, 4, generator=seeded(5))
    order = torch.randperm(200, generator=seeded(6))
    first, second = started(ClassMixture(3, 2, 4), start), started(ClassMixture(3, 2, 4), start)
    first.refresh(Stream(z, y), generator=seeded())
    second.refresh(Stream(z[order], y[order]), generator=seeded())
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], atol=1e-5, rtol=1e-4, msg=name)


def test_only_the_generator_decides() -> None:
    z, y = sample(200)

    def fitted(seed: int) -> Tensor:
        mixture = ClassMixture(3, 2, 4)
        mixture.refresh(Stream(z, y), generator=seeded(seed))
        return mixture.means

    before = torch.get_rng_state()
    first = fitted(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(fitted(1), first)
    assert not torch.equal(fitted(2), first)


def test_state_round_trip() -> None:
    z, y = sample()
    mixture, other = ClassMixture(3, 2, 4), ClassMixture(3, 2, 4)
    mixture.refresh(Stream(z, y), generator=seeded())
    other.load_state_dict(mixture.state_dict())
    for each in (mixture, other):
        each.refresh(Stream(z, y), generator=seeded(8))
    assert all(torch.equal(a, b) for a, b in zip(mixture.state_dict().values(), other.state_dict().values()))
    assert set(mixture.state_dict()) == {"means", "covariances", "weights", "counts", "ready"}


def test_features_with_a_gradient_leave_none_in_the_state() -> None:
    z, y = sample()
    mixture = ClassMixture(3, 2, 4)
    mixture.refresh(Stream(z.requires_grad_(), y), generator=seeded())
    assert not any(value.requires_grad for value in mixture.buffers())


def test_new_mixture_has_equal_weights() -> None:
    mixture = ClassMixture(3, 4, 5)
    assert torch.equal(mixture.weights, torch.full((3, 4), 0.25))
    assert mixture.means.shape == (3, 4, 5)
    assert mixture.covariances.shape == (3, 4)
    assert mixture.counts.shape == (3,)


def test_unknown_form_of_covariance() -> None:
    with pytest.raises(InputError, match=r"covariance: got 'diag'; accepted: did you mean diagonal\? one of "):
        ClassMixture(2, 1, 3, "diag")  # type: ignore[arg-type]


def test_no_component() -> None:
    with pytest.raises(InputError, match="components: got 0; accepted: 1 or more"):
        ClassMixture(2, 0, 3)
