from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from sfumato.defenses import (
    CEM,
    Bottleneck,
    BoundDefense,
    Change,
    Context,
    Defense,
    DistanceCorrelation,
    Dropout,
    Epoch,
    Noise,
    Player,
    chain,
)
from sfumato.errors import InputError
from sfumato.models import SplitModel, build, set_generator, split

SHAPE = (3, 16, 16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bare() -> SplitModel:
    return split(build("cnn", 4, SHAPE, width=0.04, generator=seeded()), "block2", image_shape=SHAPE)


def context(n: int = 4) -> Context:
    x = torch.rand(n, *SHAPE, generator=seeded(1))
    return Context(x, torch.arange(n) % 4, x, x + 1, torch.zeros(n, 4), 1, 2, 0.1, seeded(2))


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@dataclass(frozen=True)
class Toy(Defense):
    """A defense with something in every hook, so that each can be told from another's."""

    name: ClassVar[str] = "toy"
    source: ClassVar[str] = "here"
    factor: float = 2.0
    label: str = "toy"
    changes_at: int = -1

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return BoundToy(self, split.feature.shape)


class BoundToy(BoundDefense):
    def __init__(self, spec: Toy, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.spec, self.seen_shape = spec, shape
        self.net = nn.Linear(1, 1)
        self.register_buffer("ended", torch.zeros(()))
        self.layers = (Scale(spec.factor), Scale(1 / spec.factor))

    def channel(self) -> nn.Module:
        return self.layers[0]

    def wrap_cloud(self, cloud: nn.Module) -> nn.Module:
        return nn.Sequential(self.layers[1], cloud)

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        return {self.spec.label: ctx.x.mean() * self.spec.factor}

    def players(self) -> tuple[Player, ...]:
        return (Player(self.spec.label, self.net, torch.optim.SGD, lambda ctx: ctx.x.mean(), every=3, steps=2),)

    def epoch_start(self, epoch: Epoch) -> Change | None:
        return Change(self.spec.label, bare()) if epoch.index == self.spec.changes_at else None

    def epoch_end(self, epoch: Epoch) -> None:
        self.ended += 1 + epoch.index

    def restore(self, split: SplitModel, weights: Mapping[str, Tensor]) -> SplitModel:
        return split.with_parts(channel=nn.Sequential(split.channel, self.layers[0]))

    def shield(self, probabilities: Tensor) -> Tensor:
        return probabilities * self.spec.factor + self.spec.factor

    def theory(self) -> dict[str, float]:
        return {f"{self.spec.label}_figure": self.spec.factor}


def epoch(index: int = 0) -> Epoch:
    return Epoch(index, 3, lambda: iter(()), seeded())


A, B, C = Bottleneck(3), Noise(0.5), Dropout(0.4)


def test_chain_of_none_and_of_one() -> None:
    assert chain().parts() == ()
    assert chain().describe() == []
    assert chain(A) is A
    assert chain(chain(), A, chain()) is A
    assert chain(chain()) == chain()
    before = bare()
    bound = chain().bind(before, generator=(generator := seeded()))
    assert torch.equal(generator.get_state(), seeded().get_state())
    after = bound.defend(before)
    assert (after.edge, after.channel, after.cloud) == (before.edge, before.channel, before.cloud)
    assert bound.losses(context()) == {}
    assert bound.players() == ()
    assert bound.epoch_start(epoch()) is None
    assert bound.theory() == {}


def test_no_defense_leaves_outputs_alone() -> None:
    x = torch.rand(3, *SHAPE, generator=seeded(3))
    plain, defended = bare(), chain().bind(bare(), generator=seeded()).defend(bare())
    assert torch.equal(plain.eval()(x), defended.eval()(x))
    assert plain.state_dict().keys() == defended.state_dict().keys()


def test_identity_and_associativity_as_descriptions() -> None:
    left, right = chain(chain(A, B), C), chain(A, chain(B, C))
    assert left == right == chain(A, B, C) == chain(A, chain(), B, C)
    assert left.parts() == (A, B, C)
    assert chain(A, B) != chain(B, A)
    assert hash(left) == hash(right)


def test_associativity_to_the_last_bit() -> None:
    defenses = (A, B, DistanceCorrelation(2.0), C, CEM(3.0, components=2))
    a, b, c, d, e = defenses
    groupings = [
        chain(*defenses),
        chain(chain(chain(chain(a, b), c), d), e),
        chain(a, chain(b, chain(c, chain(d, e)))),
        chain(chain(a, b), chain(c, d, e)),
    ]
    x = torch.rand(3, *SHAPE, generator=seeded(3))
    outcomes = []
    for grouping in groupings:
        before = bare()
        bound = grouping.bind(before, generator=seeded(4))
        model = bound.defend(before)
        set_generator(model, seeded(5))
        outcomes.append((model.state_dict(), bound.state_dict(), model.eval().send(x), model(x)))
    for other in outcomes[1:]:
        for i in (0, 1):
            assert list(other[i]) == list(outcomes[0][i])
            assert all(torch.equal(other[i][name], value) for name, value in outcomes[0][i].items())
        assert torch.equal(other[2], outcomes[0][2])
        assert torch.equal(other[3], outcomes[0][3])


def test_channels_and_clouds_fold_left_to_right() -> None:
    before = bare()
    bound = chain(Toy(2.0), Toy(5.0)).bind(before, generator=seeded())
    model = bound.defend(before)
    x = torch.rand(3, *SHAPE, generator=seeded(3))
    torch.testing.assert_close(model.eval().send(x), before.eval().edge(x) * 10)
    torch.testing.assert_close(model(x), before(x))
    # What was done last to the feature is undone first.
    assert [layer.factor for layer in model.channel] == [2.0, 5.0]
    assert model.cloud[0].factor == 1 / 5
    assert model.cloud[1][0].factor == 1 / 2


def test_each_part_sees_what_those_before_it_left() -> None:
    bound = chain(Toy(), Bottleneck(3), Toy(), Bottleneck(2)).bind(bare(), generator=seeded())
    shapes = [member.seen_shape for member in bound.members if isinstance(member, BoundToy)]
    assert shapes == [bare().feature.shape, (3, 4, 4)]


def test_watchers_see_the_finished_split() -> None:
    """CEM measures the feature that leaves the edge, also where a bottleneck or the noise comes after it."""
    defense = chain(Bottleneck(3), CEM(components=2), Noise(0.5), Bottleneck(2))
    bound = defense.bind(before := bare(), generator=seeded())
    mixture = bound.members[1].mixture
    assert mixture.means.shape == (4, 2, 2 * 4 * 4)
    assert bound.members[1].noise_variance_sent == 0.25
    assert bound.defend(before).feature.shape == (2, 4, 4)
    assert [part["part"] for part in defense.describe()] == ["bottleneck", "cem", "noise", "bottleneck"]


def test_noise_variances_add_up() -> None:
    bound = chain(A, Noise(0.3), Noise(0.4)).bind(before := bare(), generator=seeded())
    assert bound.defend(before).feature.noise_variance == pytest.approx(0.25)


def test_losses_keep_names_and_repeated_ones_get_positions() -> None:
    ctx = context()
    mean = float(ctx.x.mean())

    def named(*toys: Toy) -> dict[str, float]:
        bound = chain(*toys).bind(bare(), generator=seeded())
        return {name: float(value) / mean for name, value in bound.losses(ctx).items()}

    assert named(Toy(1.0, "a"), Toy(2.0, "b")) == pytest.approx({"a": 1, "b": 2})
    assert named(Toy(1.0, "a"), Toy(2.0, "b"), Toy(3.0, "a"), Toy(4.0, "a")) == pytest.approx(
        {"a": 1, "b": 2, "a_2": 3, "a_3": 4}
    )


def test_figures_keep_names_and_repeated_ones_get_positions() -> None:
    bound = chain(Toy(1.0, "a"), A, Toy(2.0, "b"), Toy(3.0, "a")).bind(bare(), generator=seeded())
    assert bound.theory() == {"a_figure": 1.0, "b_figure": 2.0, "a_figure_3": 3.0}


def test_players_add_up() -> None:
    bound = chain(Toy(1.0, "a"), A, Toy(2.0, "b")).bind(bare(), generator=seeded())
    players = bound.players()
    assert [(p.name, p.every, p.steps) for p in players] == [("a", 3, 2), ("b", 3, 2)]
    assert [p.module for p in players] == [bound.members[0].net, bound.members[2].net]
    assert {"members.0.net.weight", "members.2.net.bias"} <= set(bound.state_dict())


@pytest.mark.parametrize(("index", "reason"), [(0, None), (1, "first"), (2, "second"), (3, None)])
def test_changes_come_through(index: int, reason: str | None) -> None:
    toys = chain(A, Toy(1.0, "first", changes_at=1), Toy(1.0, "second", changes_at=2), C)
    change = toys.bind(bare(), generator=seeded()).epoch_start(epoch(index))
    assert (change.reason if change else None) == reason


def test_last_of_several_changes_stands() -> None:
    toys = chain(Toy(1.0, "first", changes_at=1), A, Toy(1.0, "second", changes_at=1))
    change = toys.bind(bare(), generator=seeded()).epoch_start(epoch(1))
    assert change is not None
    assert change.reason == "second"


def test_every_part_ends_its_epoch_and_restores() -> None:
    bound = chain(Toy(2.0), A, Toy(3.0)).bind(before := bare(), generator=seeded())
    bound.epoch_end(epoch(0))
    bound.epoch_end(epoch(4))
    assert [float(bound.members[i].ended) for i in (0, 2)] == [6, 6]
    x = torch.rand(2, *SHAPE, generator=seeded(3))
    restored = bound.restore(before, {})
    torch.testing.assert_close(restored.eval().send(x), before.eval().send(x) * 6)


def test_shields_compose_left_to_right() -> None:
    bound = chain(Toy(2.0), A, Toy(10.0)).bind(bare(), generator=seeded())
    answers = torch.tensor([[0.25, 0.75]])
    assert torch.equal(bound.shield(answers), (answers * 2 + 2) * 10 + 10)


def test_defaults_of_a_bound_defense_do_nothing() -> None:
    bound, before = BoundDefense(), bare()
    after = bound.defend(before)
    assert (after.edge, after.channel, after.cloud) == (before.edge, before.channel, before.cloud)
    assert after.feature == before.feature
    assert bound.losses(context()) == {}
    assert bound.players() == ()
    assert bound.channel() is None
    assert bound.noise_variance() == 0
    assert bound.bounds((1.0, 2.0)) == (1.0, 2.0)
    assert bound.epoch_start(epoch()) is None
    assert bound.epoch_end(epoch()) is None
    assert bound.restore(before, {}) is before
    assert bound.theory() == {}


def test_context_for_players_is_cut_off() -> None:
    ctx = context()
    leaf = torch.ones(4, 2, requires_grad=True)
    attached = Context(ctx.x, ctx.y, leaf * 1, leaf * 2, leaf * 3, 5, 6, 0.7, ctx.generator)
    cut = attached.detached()
    for name, factor in (("z_clean", 1), ("z_sent", 2), ("logits", 3)):
        assert not getattr(cut, name).requires_grad
        assert torch.equal(getattr(cut, name), torch.full((4, 2), float(factor)))
        assert getattr(attached, name).requires_grad
    assert (cut.epoch, cut.step, cut.lr, cut.generator) == (5, 6, 0.7, ctx.generator)
    assert cut.x is ctx.x
    assert cut.y is ctx.y


def test_part_inside_a_chain_says_what_it_misses() -> None:
    with pytest.raises(InputError, match=r"defense noise: got .a feature without bounds"):
        chain(C, B).bind(bare(), generator=seeded())
