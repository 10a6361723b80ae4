"""One row for every registered part and recipe; one without a row fails a test."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.defenses import PARTS, RECIPES, BoundDefense, Context, Defense, Epoch, build, chain, clean_features
from sfumato.defenses import bottleneck as bottleneck_file
from sfumato.errors import InputError
from sfumato.models import SplitModel, set_generator, split
from sfumato.models import build as build_backbone

SHAPE, CLASSES, CHANNELS = (3, 16, 16), 4, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Row:
    """How to try a part or recipe.

    Args:
        others: Arguments, each at a value other than its default.
        bad: Argument to values that are refused.
        before: Parts it needs before it.
        losses: Names of its losses from the second epoch on.
        state: Whether it tracks something itself (what it puts into the split is the split's).
        refuses: What :meth:`bind` says on the bare split, if anything.
    """

    others: dict[str, Any]
    bad: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    before: tuple[dict[str, Any], ...] = ()
    losses: tuple[str, ...] = ()
    state: bool = False
    refuses: str = ""
    changes: bool = False  # the architecture, in the last of three epochs


NAN, INF = float("nan"), float("inf")
FEW = {"part": "bottleneck", "channels": CHANNELS}
PART_ROWS = {
    "bottleneck": Row(
        {"channels": 5, "activation": "tanh"}, {"channels": (0, -1, 2.5, "many"), "activation": ("relu", None)}
    ),
    "noise": Row(
        {"sigma": 0.5, "kind": "laplace"},
        {"sigma": (-0.1, NAN, INF, "loud", None), "kind": ("uniform",)},
        before=(FEW,),
        refuses="put bottleneck before it",
    ),
    "dropout": Row({"p": 0.6}, {"p": (-0.1, 1, 1.5, NAN)}),
    "distance_correlation": Row({"alpha": 3.0}, {"alpha": (-1, NAN, INF)}, losses=("distance_correlation",)),
    "cem": Row(
        {
            "weight": 2.0,
            "components": 2,
            "schedule": "constant",
            "threshold": 0.0625,
            "variant": "full",
            "per_class": False,
            "shrinkage": 0.3,
            "per_dimension": False,
        },
        {
            "weight": (-1, NAN, INF),
            "components": (0, 1.5),
            "schedule": ("linear",),
            "threshold": (0, -1, NAN, INF),
            "variant": ("fuller",),
            "per_class": ("own",),
            "shrinkage": (-0.1, 1.1, NAN),
            "per_dimension": ("each",),
        },
        before=(FEW, {"part": "noise", "sigma": 0.1}),
        losses=("cem",),
        state=True,
        refuses="Gaussian noise in the same chain",
    ),
}
_SURROGATE = {
    "weight": 2.0, "hidden": 6, "gamma": 0.002, "threshold": 0.0625, "schedule": "constant", "momentum": 0.5,
    "attention_lr": 0.02,
}  # fmt: skip
_BAD_SURROGATE = {
    "weight": (-1, NAN, INF), "hidden": (0, 1.5), "gamma": (0, -1, NAN, INF), "threshold": (0, -1, NAN, INF),
    "schedule": ("linear",), "momentum": (-0.1, 1, NAN), "attention_lr": (0, -1, NAN, INF),
}  # fmt: skip
_GATE, _BAD_GATE = (
    {"uniform": 0.25, "objective": "joint"},
    {"uniform": (-0.1, 1.1, NAN), "objective": ("likelihood",)},
)
_SLOTS, _BAD_SLOTS = (
    {"slots": 2, "iterations": 2, "slot_noise": 0.1},
    {"slots": (0, 1.5), "iterations": (0, 1.5), "slot_noise": (-0.1, NAN, INF)},
)
for _name, _own, _bad in (
    ("gated_attention", _GATE, _BAD_GATE),
    ("slot_attention", _SLOTS, _BAD_SLOTS),
    ("fused_attention", _SLOTS | _GATE, _BAD_SLOTS | _BAD_GATE),
):
    PART_ROWS[_name] = Row(
        _SURROGATE | _own,
        _BAD_SURROGATE | _bad,
        before=(FEW, {"part": "noise", "sigma": 0.1}),
        losses=(_name,),
        state=True,
        refuses="Gaussian noise in the same chain",
    )
# The rates of features that no epoch has shaped yet: no pressure in the first.
FROM_THE_SECOND_EPOCH = ("cem", "gated_attention", "slot_attention", "fused_attention")
PART_ROWS |= {
    "adversary": Row(
        {
            "alpha": 2.0,
            "objective": "mse",
            "threshold": 0.1,
            "depth": 1,
            "width": 5,
            "lr": 0.01,
            "every": 2,
            "steps": 3,
            "pretrain_epochs": 1,
        },
        {
            "alpha": (-1, NAN, INF),
            "objective": ("psnr", None),
            "threshold": (1, -1.1, NAN),
            "depth": (-1, 1.5),
            "width": (0, -2),
            "lr": (0, -1, NAN, INF),
            "every": (0, 0.5),
            "steps": (0, -1),
            "pretrain_epochs": (-1, 1.5),
        },
        before=(FEW,),
        losses=("adversary",),
        state=True,
    ),
    "deeper_edge": Row({"layers": 1}, {"layers": (0, -1, 1.5, "many")}),
    "prune": Row(
        {"at": 0.6, "keep": 0.5},
        {"at": (-0.1, 1, NAN, "late"), "keep": (0, 1, -1.0, NAN, "half")},
        before=(FEW,),
        changes=True,
    ),
    "lipschitz": Row({"beta": 2.0}, {"beta": (-1, NAN, INF)}, losses=("lipschitz",)),
}
_SIGMA, _P, _ALPHA = {"sigma": 0.2}, {"p": 0.5}, {"alpha": 2.0}
_LEARNED = {"weight": 3.0, "schedule": "constant", "threshold": 0.0625}
_CEM = _LEARNED | {"components": 2, "variant": "diagonal", "per_class": False, "shrinkage": 0.3}
# What an argument's validity, or the defaults beside it, hang on.
_BESIDE = {"variant": {"weight": 2.0, "schedule": "authors"}, "per_class": {"variant": "isotropic"}}
_C = {"channels": CHANNELS}
_PATROL = _ALPHA | {"beta": 0.5, "layers": 1, "at": 0.6} | _C
_BAD_PATROL = {"alpha": (NAN,), "beta": (-1,), "layers": (0,), "at": (1,)}
_BAD_SIGMA, _BAD_CHANNELS = {"sigma": (-1, NAN)}, {"channels": (0,)}
RECIPE_ROWS = {
    "none": Row({}),
    "bottleneck": Row(_C, _BAD_CHANNELS),
    "noise": Row(_SIGMA | _C, _BAD_SIGMA | _BAD_CHANNELS),
    "laplace_noise": Row(_SIGMA | _C, _BAD_SIGMA | _BAD_CHANNELS),
    "dropout": Row(_P | _C, {"p": (1,)} | _BAD_CHANNELS),
    "dist_corr": Row(_ALPHA | _C, {"alpha": (-1,)} | _BAD_CHANNELS, losses=("distance_correlation",)),
    "noise_nopeek": Row(_ALPHA | _SIGMA | _C, {"alpha": (-1,)} | _BAD_SIGMA, losses=("distance_correlation",)),
    "noise_arl": Row(_ALPHA | _SIGMA | _C, {"alpha": (-1,)} | _BAD_SIGMA, losses=("adversary",), state=True),
    "res_sfl": Row(_ALPHA | _C, {"alpha": (-1,)} | _BAD_CHANNELS, losses=("adversary",), state=True),
    "patrol": Row(_PATROL, _BAD_PATROL, losses=("lipschitz", "adversary"), state=True, changes=True),
    "cem": Row(_CEM | _SIGMA | _C, {"weight": (-1,), "components": (0,)} | _BAD_SIGMA, losses=("cem",), state=True),
    "dropout_cem": Row(_CEM | _P | _SIGMA | _C, {"p": (1,)} | _BAD_SIGMA, losses=("cem",), state=True),
    "dist_corr_cem": Row(
        _CEM | _ALPHA | _SIGMA | _C, {"alpha": (NAN,)}, losses=("distance_correlation", "cem"), state=True
    ),
    "noise_nopeek_cem": Row(
        _CEM | _ALPHA | _SIGMA | _C, {"weight": (NAN,)}, losses=("distance_correlation", "cem"), state=True
    ),
    "noise_arl_cem": Row(
        _CEM | _ALPHA | _SIGMA | _C, {"schedule": ("linear",)}, losses=("adversary", "cem"), state=True
    ),
    "res_sfl_cem": Row(_CEM | _ALPHA | _SIGMA | _C, {"threshold": (0,)}, losses=("adversary", "cem"), state=True),
    "patrol_cem": Row(
        _CEM | _SIGMA | _PATROL,
        _BAD_SIGMA | _BAD_PATROL,
        losses=("lipschitz", "adversary", "cem"),
        state=True,
        changes=True,
    ),
}
# What a method does with CEM it does with the learned surrogates.
for _name in [name for name in RECIPE_ROWS if name == "cem" or name.endswith("_cem")]:
    for _kind, _part, _own in (
        ("gated", "gated_attention", _LEARNED | _GATE),
        ("slot", "slot_attention", _LEARNED | {"slots": 2}),
        ("fused", "fused_attention", _LEARNED | {"slots": 2} | _GATE),
    ):
        _row = RECIPE_ROWS[_name]
        RECIPE_ROWS[_name.removesuffix("cem") + _kind] = replace(
            _row,
            others={key: value for key, value in _row.others.items() if key not in _CEM} | _own,
            bad={key: value for key, value in _row.bad.items() if key in _own or key not in _CEM},
            losses=tuple(_part if loss == "cem" else loss for loss in _row.losses),
        )
TABLE = {("part", name): row for name, row in PART_ROWS.items()} | {
    ("recipe", name): row for name, row in RECIPE_ROWS.items()
}
every = pytest.mark.parametrize(("kind", "name"), TABLE)


def bare(seed: int = 0) -> SplitModel:
    model = build_backbone("cnn", CLASSES, SHAPE, width=0.04, generator=seeded(seed))
    return split(model, "block2", image_shape=SHAPE)


def defense_of(kind: str, name: str, *, default: bool = False) -> Defense:
    """The row's defense, behind what it needs."""
    row = TABLE[kind, name]
    alone = build({kind: name} if default else {kind: name, **row.others})
    return chain(*(build(part) for part in row.before), alone)


def bound_to(defense: Defense, seed: int = 0) -> tuple[BoundDefense, SplitModel]:
    before = bare()
    bound = defense.bind(before, generator=seeded(seed))
    model = bound.defend(before)
    set_generator(model, seeded(seed + 1))
    return bound, model


def images(n: int = 24, seed: int = 9) -> tuple[Tensor, Tensor]:
    return torch.rand(n, *SHAPE, generator=seeded(seed)), torch.arange(n) % CLASSES


def start_epoch(bound: BoundDefense, model: SplitModel, index: int) -> SplitModel:
    """The model as the start of an epoch leaves it, which is another one where a defense changes it."""
    x, y = images(40, seed=3)

    def batches() -> Any:
        return zip(x.split(16), y.split(16))

    epoch = Epoch(index, 3, partial(clean_features, model, batches), seeded(4), batches, model)
    change = bound.epoch_start(epoch)
    if change is None:
        return model.train()
    set_generator(change.split, seeded(6))
    return change.split.train()


def step_losses(bound: BoundDefense, model: SplitModel, epoch: int = 1, lr: float = 1e-3) -> dict[str, Tensor]:
    x, y = images()
    z_clean = model.edge(x)
    z_sent = model.channel(z_clean)
    logits = model.cloud(z_sent)
    ctx = Context(x, y, z_clean, z_sent, logits, epoch, 7, lr, seeded(5))
    return {"cross_entropy": F.cross_entropy(logits, y), **bound.losses(ctx)}


@pytest.mark.parametrize("registry", [PARTS, RECIPES], ids=["parts", "recipes"])
def test_everything_registered_has_a_row(registry: dict[str, Any]) -> None:
    rows = PART_ROWS if registry is PARTS else RECIPE_ROWS
    assert set(registry) == set(rows)


@pytest.mark.parametrize("name", PARTS)
def test_row_tries_every_argument_of_a_part_off_its_default(name: str) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(PARTS[name])}
    others = PART_ROWS[name].others
    assert others.keys() == defaults.keys() == PART_ROWS[name].bad.keys()
    assert all(others[argument] != default for argument, default in defaults.items())
    assert PARTS[name].name == name
    assert PARTS[name].source


@pytest.mark.parametrize("name", RECIPES)
def test_arguments_of_a_recipe_reach_its_parts(name: str) -> None:
    row, recipe = RECIPE_ROWS[name], RECIPES[name]
    assert recipe.summary
    assert recipe.source
    for argument, value in row.others.items():
        spec = {"recipe": name, **_BESIDE.get(argument, {})}
        default, changed = build(spec).describe(), build({**spec, argument: value}).describe()
        differing = [
            (key, before[key], after[key])
            for before, after in zip(default, changed, strict=True)
            for key in before
            if before[key] != after[key]
        ]
        assert [(key, after) for key, _, after in differing] == [(argument, value)]


def test_recipes_are_the_published_chains() -> None:
    learned = tuple(name for name in RECIPES if name.endswith(("gated", "slot", "fused")))  # see test_recipes.py
    parts = {name: [part["part"] for part in build(name).describe()] for name in RECIPES if name not in learned}
    assert parts == {
        "none": [],
        "bottleneck": ["bottleneck"],
        "noise": ["bottleneck", "noise"],
        "laplace_noise": ["bottleneck", "noise"],
        "dropout": ["bottleneck", "dropout"],
        "dist_corr": ["bottleneck", "distance_correlation"],
        "noise_nopeek": ["bottleneck", "noise", "distance_correlation"],
        "noise_arl": ["bottleneck", "noise", "adversary"],
        "res_sfl": ["bottleneck", "adversary"],
        "patrol": ["deeper_edge", "bottleneck", "prune", "lipschitz", "adversary"],
        "noise_arl_cem": ["bottleneck", "noise", "adversary", "cem"],
        "res_sfl_cem": ["bottleneck", "noise", "adversary", "cem"],
        "patrol_cem": ["deeper_edge", "bottleneck", "noise", "prune", "lipschitz", "adversary", "cem"],
        "cem": ["bottleneck", "noise", "cem"],
        "dropout_cem": ["bottleneck", "dropout", "noise", "cem"],
        "dist_corr_cem": ["bottleneck", "noise", "distance_correlation", "cem"],
        "noise_nopeek_cem": ["bottleneck", "noise", "distance_correlation", "cem"],
    }
    assert build("laplace_noise").describe()[1]["kind"] == "laplace"
    assert build("noise").describe() == [
        {"part": "bottleneck", "channels": 8, "activation": "sigmoid"},
        {"part": "noise", "sigma": 0.025, "kind": "gaussian"},
    ]
    assert build("cem").describe()[-1] == {
        "part": "cem", "weight": 16.0, "components": 5, "schedule": "authors", "threshold": 0.125,
        "variant": "reference", "per_class": True, "shrinkage": 0.1, "per_dimension": True,
    }  # fmt: skip
    assert build("dropout").describe()[1]["p"] == 0.2
    for recipe in ("noise_arl", "res_sfl", "patrol"):
        adversary = build(recipe).describe()[-1]
        assert adversary == {
            "part": "adversary", "alpha": 0.3, "objective": "ssim", "threshold": 0.5, "depth": 4, "width": 64,
            "lr": 1e-3, "every": 1, "steps": 1, "pretrain_epochs": 0,
        }  # fmt: skip


@every
def test_frozen_and_printable(kind: str, name: str) -> None:
    alone = build({kind: name, **TABLE[kind, name].others})
    for part in alone.parts():
        for attribute in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, attribute.name, 1)
            assert f"{attribute.name}={getattr(part, attribute.name)!r}" in repr(alone)
    assert hash(alone) == hash(build({kind: name, **TABLE[kind, name].others}))


@every
@pytest.mark.parametrize("default", [True, False])
def test_description_round_trip(kind: str, name: str, default: bool) -> None:
    defense = defense_of(kind, name, default=default)
    text = json.dumps(defense.describe(), allow_nan=False)
    again = build(json.loads(text))
    assert again == defense
    assert again.describe() == defense.describe()


@every
def test_defended_split_works_and_is_settled(kind: str, name: str) -> None:
    bound, model = bound_to(defense_of(kind, name))
    x, _ = images(5)
    assert model.send(x).shape == (5, *model.feature.shape)
    assert model(x).shape == (5, CLASSES)
    sent = model.edge(x).detach()
    if model.feature.bounds is not None:
        assert model.feature.bounds[0] <= float(sent.min()) < float(sent.max()) <= model.feature.bounds[1]
    again = bound.defend(bare())
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    own = {id(p) for p in model.parameters()} - {id(p) for p in again.parameters()}
    backbone = sum(1 for _ in bare().parameters())
    assert len(own) == backbone  # only the backbone differs: what the defense adds are the same modules
    assert bare().state_dict().keys().isdisjoint(bound.state_dict())


@every
def test_players_and_hooks_have_their_form(kind: str, name: str) -> None:
    bound, model = bound_to(defense_of(kind, name))
    assert isinstance(bound.players(), tuple)
    assert bound.epoch_start(Epoch(0, 2, lambda: iter(()), seeded())) is None
    assert bound.epoch_end(Epoch(0, 2, lambda: iter(()), seeded())) is None
    probabilities = torch.full((2, CLASSES), 1 / CLASSES)
    assert torch.equal(bound.shield(probabilities), probabilities)
    assert bound.restore(model, model.state_dict()) is model
    assert all(isinstance(value, float) for value in bound.theory().values())


@every
def test_step_gives_finite_gradients_and_named_losses(kind: str, name: str) -> None:
    bound, model = bound_to(defense_of(kind, name))
    late = set(FROM_THE_SECOND_EPOCH) & set(TABLE[kind, name].losses)
    assert max((part.least_epochs for part in defense_of(kind, name).parts()), default=1) == (2 if late else 1)
    for epoch in (0, 1, 2):
        before, model = model, start_epoch(bound, model, epoch)
        assert (model is not before) == (TABLE[kind, name].changes and epoch == 2)
        losses = step_losses(bound, model, epoch)
        expected = tuple(loss for loss in TABLE[kind, name].losses if loss not in FROM_THE_SECOND_EPOCH or epoch > 0)
        assert tuple(losses)[1:] == expected
        assert all(value.shape == () for value in losses.values())
        model.zero_grad()
        sum(losses.values()).backward()
        for label, weight in model.named_parameters():
            assert weight.grad is not None, label
            assert weight.grad.isfinite().all(), label
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.01 * weight.grad


@every
def test_losses_carry_their_weights(kind: str, name: str) -> None:
    """Each loss is proportional to its weight, and at weight 0 there is no pressure."""
    weights = {"distance_correlation": "alpha", "adversary": "alpha", "lipschitz": "beta"}
    weights |= dict.fromkeys(FROM_THE_SECOND_EPOCH, "weight")
    row = TABLE[kind, name]
    for loss in row.losses:
        values = []
        for weight in (0.0, 1.0, 4.0):
            parts = defense_of(kind, name).describe()
            (own,) = (part for part in parts if part["part"] == loss)
            own[weights[loss]] = weight
            if loss == "adversary":
                own["objective"] = "mse"  # a decoder that has learned nothing is below the threshold of SSIM
            bound, model = bound_to(build(parts))
            start_epoch(bound, model, 1)
            values.append(float(step_losses(bound, model)[loss].detach()))
        assert values[0] == 0
        assert values[1] != 0
        assert values[2] == pytest.approx(4 * values[1], rel=1e-5)


@every
def test_state_round_trip(kind: str, name: str) -> None:
    defense = defense_of(kind, name)
    bound, model = bound_to(defense, seed=1)
    start_epoch(bound, model, 1)
    step_losses(bound, model)
    other, other_model = bound_to(defense, seed=2)
    other.load_state_dict(bound.state_dict())
    other_model.load_state_dict(model.state_dict())
    assert bool(bound.state_dict()) == TABLE[kind, name].state
    results = []
    for b, m in ((bound, model), (other, other_model)):
        set_generator(m, seeded(6))
        results.append((step_losses(b, m), b.theory(), m.eval()(images()[0])))
        m.train()
    assert all(torch.equal(results[0][0][loss], results[1][0][loss]) for loss in results[0][0])
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][2], results[1][2])


@every
def test_only_the_generator_decides(kind: str, name: str) -> None:
    defense = defense_of(kind, name)
    x, _ = images(6)

    def outcome(seed: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        bound, model = bound_to(defense, seed)
        start_epoch(bound, model, 1)
        losses = step_losses(bound, model)
        return list(model.state_dict().values()), model.eval().send(x), list(losses.values())

    before = torch.get_rng_state()
    first = outcome(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    for a, b in zip(first, outcome(1)):
        assert all(torch.equal(p, q) for p, q in zip(a, b))
    draws = any(part.name in ("bottleneck", "noise", "dropout", "deeper_edge") for part in defense.parts())
    assert torch.equal(first[1], outcome(2)[1]) != draws


@every
def test_bad_arguments_are_one_line(kind: str, name: str) -> None:
    row = TABLE[kind, name]
    assert bool(row.bad) == bool(row.others)
    for argument, values in row.bad.items():
        for value in values:
            with pytest.raises(InputError, match=rf"{argument}: got .*; accepted: .") as caught:
                build({kind: name, argument: value})
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=rf"^defense.{name}.colour: got 1; accepted: "):
        build({kind: name, "colour": 1})


@pytest.mark.parametrize("name", PARTS)
def test_bad_values_are_refused_by_the_class_too(name: str) -> None:
    """All but wrong types, which are the type checker's business there."""
    for argument, values in PART_ROWS[name].bad.items():
        for value in values:
            if not isinstance(value, type(PART_ROWS[name].others[argument]) | int):
                continue
            with pytest.raises(InputError, match=rf"^{name}.{argument}: got "):
                PARTS[name](**{argument: value})


@every
def test_bind_says_what_is_missing(kind: str, name: str) -> None:
    row = TABLE[kind, name]
    alone = build({kind: name, **row.others})
    if not row.refuses:
        alone.bind(bare(), generator=seeded())
        return
    with pytest.raises(InputError, match=row.refuses) as caught:
        alone.bind(bare(), generator=seeded())
    assert "\n" not in str(caught.value)
    assert caught.value.field == f"defense {name}"


def test_noise_is_refused_where_only_an_earlier_feature_was_bounded() -> None:
    with pytest.raises(InputError, match="a feature without bounds"):
        build([{"part": "noise"}, FEW]).bind(bare(), generator=seeded())
    with pytest.raises(InputError, match="a channel without Gaussian noise"):
        build([FEW, {"part": "noise", "sigma": 0}, {"part": "cem"}]).bind(bare(), generator=seeded())


PAIRS = [(a, b) for a in PARTS for b in PARTS]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_every_ordered_pair_behind_a_bottleneck_trains_a_step(a: str, b: str) -> None:
    noise = {"part": "noise", "sigma": 0.1}
    parts = [{"part": part, **PART_ROWS[part].others} for part in (a, b)]
    # More layers behind a bottleneck would undo its bound, and are refused there.
    first = [part for part in parts if part["part"] == "deeper_edge"]
    bound, model = bound_to(build([*first, FEW, noise, *(part for part in parts if part not in first)]))
    model = start_epoch(bound, start_epoch(bound, model, 1), 2)
    losses = step_losses(bound, model)
    assert len(losses) == 1 + len(PART_ROWS[a].losses) + len(PART_ROWS[b].losses)
    sum(losses.values()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    assert model.eval()(images(3)[0]).shape == (3, CLASSES)


def test_bottleneck_wants_a_map() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 5), nn.ReLU(), nn.Linear(5, CLASSES))
    with pytest.raises(InputError, match=r"a map .*cut earlier"):
        bottleneck_file.Bottleneck().bind(split(flat, "2", image_shape=SHAPE), generator=seeded())
