"""What an attacker may spend: observations, images of its own, queries."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from attack_toys import (
    CONTRACT,
    SHAPE,
    Spy,
    generator,
    identity_split,
    make_images,
    make_knowledge,
    make_split,
    runtime,
    target_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.attacks import ATTACKS, THREAT_MODELS, Attack, BlackBox, Knowledge, Learned, base, build
from sfumato.attacks.observations import Observations, observe
from sfumato.defenses.dropout import FeatureDropout
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import BudgetError, InputError
from sfumato.models import SplitModel, Stochastic, expected, set_generator
from sfumato.training import Runtime

VICTIMS = {"test": make_images(40, seed=12)}


def noisy(sigma: float = 0.2) -> SplitModel:
    model = identity_split(AdditiveNoise(sigma, "gaussian"))
    set_generator(model, generator(1))
    return model


def reconstruct(attack: Attack, model: SplitModel) -> Any:
    return attack(target_of(model), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())


class Counting(nn.Module):
    """Counts its passes, those of its copies included."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.passes: list[int] = _Shared()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        return self.inner(x)  # type: ignore[no-any-return]


class Foreign(nn.Module):
    """Draws from the global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape)


class Rarely(Stochastic):
    """Adds 1 to one batch of ten."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.uniform(x[:1, :1, :1, :1]) < 0.1).to(x.dtype)


class _Shared(list[int]):
    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


class TestObservations:
    @pytest.mark.parametrize("k", [1, 4, 16])
    def test_noise_averages_out_as_one_over_k(self, k: int) -> None:
        """An attacker that answers with the feature itself errs by the channel's variance."""
        dark = {"test": dataclasses.replace(VICTIMS["test"], images=VICTIMS["test"].images // 4 + 96)}
        attack = Spy(observations=k)
        made = attack(target_of(noisy(0.1)), make_knowledge(), dark, generator=generator(0), runtime=runtime())
        n = 40 * 256
        assert float(made.quality["test"].mse.mean()) == pytest.approx(0.01 / k, rel=5 * (2 / n) ** 0.5)
        assert (made.observations, made.queries) == (k, 0)

    def test_mean_of_single_sendings(self) -> None:
        x = make_images(6).images / 255
        one, many = target_of(make_split()), target_of(make_split())
        singles = torch.stack([one.query(x) for _ in range(5)])
        torch.testing.assert_close(many.under(observations=5).query(x), singles.mean(0))
        assert many.queries == one.queries == 30

    @pytest.mark.parametrize("sigma", [0.0, 0.1])
    def test_an_edge_that_answers_alike_is_not_asked_again(self, sigma: float) -> None:
        """The channel is asked as often as ever."""
        edge = Counting(nn.Identity())
        split = identity_split(AdditiveNoise(sigma, "gaussian")).with_parts(edge=edge)
        target, x = target_of(split).under(observations=16), make_images(6).images / 255
        edge.passes.clear()
        mean = target.query(x)
        assert (len(edge.passes), target.queries) == (2, 96)
        assert float((mean - x).std()) == pytest.approx(sigma / 4, rel=0.1)

    @pytest.mark.parametrize("layer", [AdditiveNoise(0.1, "gaussian"), FeatureDropout(0.5), Foreign()], ids=repr)
    def test_an_edge_that_draws_is_asked_each_time(self, layer: nn.Module) -> None:
        edge, x = Counting(layer), torch.full((200, *SHAPE), 0.5)
        set_generator(edge, generator(1))
        split = identity_split().with_parts(edge=edge)
        once, often = (target_of(split).under(observations=k) for k in (1, 16))
        deviation = float(once.query(x).std())
        edge.passes.clear()
        assert float(often.query(x).std()) == pytest.approx(deviation / 4, rel=0.05)
        assert len(edge.passes) == 16

    def test_an_edge_that_draws_rarely_is_asked_each_time(self) -> None:
        """That it answered alike twice says nothing."""
        edge, x = Rarely(), torch.full((1, *SHAPE), 0.5)
        set_generator(edge, generator(1))
        target = target_of(identity_split().with_parts(edge=edge)).under(observations=400)
        assert float(target.query(x).mean()) == pytest.approx(0.9 * 0.5 + 0.1 * 1.5, abs=0.06)

    def test_training_queries_are_averaged_and_counted_too(self) -> None:
        spy = Spy(asks=2, observations=3)
        made = reconstruct(spy, noisy())
        assert made.queries == 2 * 3 * 3

    def test_nothing_is_changed_where_nothing_is_random(self) -> None:
        once, often = (reconstruct(Spy(observations=k), identity_split()) for k in (1, 4))
        torch.testing.assert_close(once.images["test"], often.images["test"])


class TestQueries:
    def test_a_target_refuses_more(self) -> None:
        target = target_of(make_split()).under(queries=10)
        target.query(torch.zeros(8, *SHAPE))
        assert target.remaining == 2
        with pytest.raises(BudgetError, match="queries: got 3; accepted: at most 2"):
            target.query(torch.zeros(3, *SHAPE))
        assert (target.queries, target.remaining) == (8, 2)
        target.query(torch.zeros(2, *SHAPE))
        assert target.remaining == 0

    def test_a_view_cannot_widen_its_budget(self) -> None:
        target = target_of(make_split()).under(queries=10)
        assert target.under(queries=50).remaining == 10
        assert target.under().remaining == 10
        assert target.under(queries=4).remaining == 4

    def test_all_views_count_together(self) -> None:
        target = target_of(make_split())
        target.query(torch.zeros(2, *SHAPE))
        view = target.under(queries=5)
        view.query(torch.zeros(3, *SHAPE))
        assert (target.queries, view.queries, view.remaining, target.remaining) == (5, 5, 2, None)

    def test_interception_is_not_the_attackers(self) -> None:
        made = reconstruct(Spy(asks=1, queries=3), noisy())
        assert made.queries == 3
        with pytest.raises(BudgetError):
            reconstruct(Spy(asks=2, queries=3), noisy())

    def test_queries_while_inverting_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those of the attacker: that victims are intercepted before and between leaves its budget alone."""

        @dataclass(frozen=True)
        class Late(Spy):
            name: ClassVar[str] = "late"

            def run(
                self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime
            ) -> Learned:
                def invert(z: torch.Tensor) -> torch.Tensor:
                    target.query(knowledge.train.images[:3] / 255)
                    return z

                return Learned(invert)

        monkeypatch.setattr(base, "_BATCH", 16)  # of the 40 victims, three batches
        for queries in (None, 18):
            assert reconstruct(Late(queries=queries, observations=2), noisy()).queries == 18
        with pytest.raises(BudgetError, match="queries: got 6; accepted: at most 5"):
            reconstruct(Late(queries=17, observations=2), noisy())

    @pytest.mark.parametrize(("queries", "observations"), [(0, 1), (1, 1), (7, 4)])
    def test_too_few_queries_are_said_before_anything_runs(self, queries: int, observations: int) -> None:
        spy = Spy(queries=queries, observations=observations)
        with pytest.raises(BudgetError, match=rf"spy\.queries: got {queries}; accepted: at least {2 * observations}"):
            reconstruct(spy, noisy())
        assert not spy.seen
        assert reconstruct(Spy(queries=2 * observations, observations=observations), noisy()).queries == 0

    @pytest.mark.parametrize("name", ATTACKS)
    @pytest.mark.parametrize("threat_model", THREAT_MODELS)
    def test_every_attack_keeps_to_its_budget(self, name: str, threat_model: Any) -> None:
        attack = dataclasses.replace(CONTRACT[name], queries=21, observations=2, images=15)
        if threat_model not in attack.threat_models:
            return
        target = target_of(make_split(), threat_model)
        made = attack(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
        assert (made.observations, made.owned) == (2, 15)
        assert made.queries <= 21
        assert made.queries == target.queries
        assert build(attack.describe()) == attack


class TestObserve:
    def test_free_queries_are_sent_anew(self) -> None:
        target = target_of(noisy())
        own, selecting = observe(target, make_knowledge())
        assert target.queries == 0
        x, index = own.images.images[:4] / 255, own.images.labels[:4]
        assert index.tolist() == [0, 1, 2, 3]
        assert not torch.equal(own(x, index), own(x, index))
        assert not torch.equal(selecting(x, index), selecting(x, index))
        assert target.queries == 16

    @given(budget=st.integers(2, 60), k=st.integers(1, 3))
    @settings(max_examples=30, deadline=None)
    def test_within_any_budget(self, budget: int, k: int) -> None:
        target = target_of(noisy()).under(observations=k, queries=budget)
        if budget < 2 * k:
            with pytest.raises(BudgetError, match=f"at least {2 * k}"):
                observe(target, make_knowledge())
            return
        own, selecting = observe(target, make_knowledge())
        assert 1 <= len(selecting.images) <= max(1, budget // k // 10)
        assert len(own.images) == min(24, budget // k - len(selecting.images))
        for _ in range(3):
            for x, i in zip((own.images.images / 255).split(7), own.images.labels.split(7)):
                own(x, i)
                selecting(x[:1], i[:1] * 0)
        assert target.queries <= budget
        assert target.remaining is not None
        assert target.remaining < 7 * k or len(own.images) < 7

    def test_what_was_kept_comes_back(self) -> None:
        images = make_images(12)
        target = target_of(noisy()).under(queries=15)
        own = Observations(target, images)
        x, index = images.images / 255, own.images.labels
        assert target.remaining == 3
        kept = own(x, index)
        assert torch.equal(kept, own(x, index))
        assert torch.equal(own(x[5:9], index[5:9]), kept[5:9]), "four are more than what is left"
        assert not torch.equal(own(x[5:8], index[5:8]), kept[5:8])
        assert target.remaining == 0
        other = Observations(target_of(noisy(), seed=8).under(queries=12), images)
        other.load_state_dict(own.state_dict())
        assert torch.equal(other(x, index), kept)

    def test_nothing_is_sent_again_where_it_is_not_wanted(self) -> None:
        target = target_of(noisy()).under(queries=50)
        own = Observations(target, make_images(12), anew=False)
        own(own.images.images[:3] / 255, own.images.labels[:3])
        assert target.queries == 12


class TestImages:
    def test_as_many_as_it_may_have(self) -> None:
        spy = Spy(images=11)
        made = reconstruct(spy, noisy())
        _, knowledge, *_ = spy.seen[0]
        assert (len(knowledge.train), len(knowledge.validation), made.owned) == (10, 1, 11)
        everything = reconstruct(Spy(), noisy())
        assert everything.owned == 33

    def test_fewer_are_among_more(self) -> None:
        few, more = (make_knowledge().limited(n, generator(3)) for n in (5, 20))
        sets = [{bytes(x.numpy()) for x in k.train.images} for k in (few, more)]
        assert sets[0] < sets[1]
        assert (len(few), len(more)) == (5, 20)

    @given(st.integers(2, 33))
    @settings(max_examples=32, deadline=None)
    def test_any_number(self, count: int) -> None:
        knowledge = make_knowledge().limited(count, generator(0))
        assert len(knowledge) == count
        assert len(knowledge.validation) >= 1

    @pytest.mark.parametrize("count", [1, 34])
    def test_not_as_many(self, count: int) -> None:
        with pytest.raises(InputError, match=r"images: got .*2 to 33"):
            make_knowledge().limited(count, generator(0))

    def test_an_attack_says_so_before_it_runs(self) -> None:
        spy = Spy(images=34)
        with pytest.raises(InputError, match=r"spy\.images: got 34; accepted: up to 33"):
            reconstruct(spy, noisy())
        assert not spy.seen


@pytest.mark.parametrize(
    ("field", "value"), [("observations", 0), ("images", 1), ("queries", -1)], ids=["observations", "images", "queries"]
)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_bad_budget_is_refused_by_every_attack(name: str, field: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name}.{field}"):
        build({"attack": name, field: value})


def test_expected_feature_of_a_channel() -> None:
    z = torch.rand(3, 4, generator=generator(0), requires_grad=True)
    channel = nn.Sequential(nn.Sequential(AdditiveNoise(0.3, "laplace"), FeatureDropout(0.25)), nn.Identity())
    found = expected(channel, z)
    torch.testing.assert_close(found, 0.75 * z)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    torch.testing.assert_close(gradient, torch.full_like(z, 0.75))


def test_expected_feature_of_a_layer_that_does_not_say() -> None:
    class Flip(Stochastic):
        def forward(self, z: Tensor) -> Tensor:
            return z * (1 + 2 * (self.uniform(z) - 0.5))

    layer = Flip()
    set_generator(layer, generator(0))
    assert float((expected(layer, torch.ones(4000)) - 1).square().mean()) == pytest.approx(1 / 3 / 16, rel=0.1)


def test_expected_feature_of_noise_behind_which_the_channel_is_not_affine() -> None:
    """E[relu(n)] = σ/√(2π) where z is 0, and not relu(E[n]) = 0; the mean of 16 draws has σ²·(π − 1)/(2π·16)."""
    channel = nn.Sequential(nn.Identity(), AdditiveNoise(0.5, "gaussian"), nn.Sequential(nn.Flatten(), nn.ReLU()))
    set_generator(channel, generator(0))
    z = torch.zeros(200, 4, 5, requires_grad=True)
    found = expected(channel, z)
    assert float(found.detach().mean()) == pytest.approx(0.5 / math.sqrt(2 * math.pi), rel=0.02)
    assert float(found.detach().var()) == pytest.approx(0.25 * (math.pi - 1) / (2 * math.pi) / 16, rel=0.1)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert float(gradient.mean()) == pytest.approx(0.5, rel=0.05), "half of the draws are above 0"


@pytest.mark.parametrize("behind", [nn.Linear(4, 3), nn.Identity(), AdditiveNoise(0.1, "laplace"), nn.Flatten()])
def test_expected_feature_is_exact_where_what_stands_behind_is_affine(behind: nn.Module) -> None:
    channel, z = nn.Sequential(AdditiveNoise(0.5, "gaussian"), behind), torch.rand(7, 4, generator=generator(1))
    after = z if isinstance(behind, Stochastic) else behind(z)
    assert torch.equal(expected(channel, z), after)
