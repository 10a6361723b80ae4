"""The sequence ``auto``: what it is made of, what it picks, and defenses that only look like some."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from attack_toys import (
    QUERY_FREE,
    Compared,
    Detached,
    generator,
    make_images,
    make_knowledge,
    make_split,
    runtime,
    target_of,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sfumato import attacks
from sfumato.attacks import (
    ATTACKS,
    THREAT_MODELS,
    Attack,
    Auto,
    DecoderAttack,
    Knowledge,
    Reconstruction,
    Scene,
    build,
    labels,
    make_target,
    scene_of,
    strongest,
)
from sfumato.attacks import auto as module
from sfumato.audit import card
from sfumato.audit.suspicions import Evidence, gradient_through, is_random, levels_of, suspicions
from sfumato.data import ImageSet
from sfumato.errors import BudgetError, InputError
from sfumato.metrics import Quality, quality
from sfumato.models import Feature, SplitModel, Stochastic, initialize, set_generator
from sfumato.training import Fit

LEVELS = ("quick", "standard", "thorough")
WHITE = Scene("white-box", True, 5000, (3, 32, 32), (8, 8, 8))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize("random", [False, True])
def test_members_are_of_use(level: Any, threat_model: Any, random: bool) -> None:
    members = Auto(level).members(replace(WHITE, threat_model=threat_model, random=random))
    assert all(threat_model in member.threat_models for member in members)
    assert any(member.observations > 1 for member in members) == random
    assert len(set(labels(members))) == len(members)
    assert members == Auto(level).members(replace(WHITE, threat_model=threat_model, random=random))


def test_a_higher_level_has_more_kinds_and_more_steps() -> None:
    kinds = [{(m.name, m.describe().get("architecture")) for m in Auto(level).members(WHITE)} for level in LEVELS]
    assert kinds[0] < kinds[1] < kinds[2]
    assert {name for name, _ in kinds[2]} == set(ATTACKS)
    decoders = [Auto(level).members(WHITE)[0] for level in LEVELS]
    steps = [decoder.epochs * (5000 // 128) for decoder in decoders]  # type: ignore[attr-defined]
    assert steps[0] < steps[1] < steps[2]
    for count, least in zip(steps, (500, 2_000, 10_000), strict=True):
        assert least <= count < least + 5000 // 128


@pytest.mark.parametrize("images", [40, 600, 5_000, 50_000])
@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize(("level", "steps"), [("quick", 500), ("standard", 2_000), ("thorough", 10_000)])
def test_every_network_takes_the_levels_steps(level: Any, steps: int, threat_model: Any, images: int) -> None:
    members = Auto(level).members(replace(WHITE, threat_model=threat_model, images=images))
    trained = [member for member in members if member.name not in QUERY_FREE]
    assert trained
    for member in trained:
        given = member.describe()
        pace = max(1, images // given["batch_size"])
        for epochs in (given["epochs"], given.get("pretrain_epochs", given["epochs"])):
            assert epochs == 2 or steps <= epochs * pace < steps + pace, given


def kinds_of(level: Any) -> dict[tuple[str, Any], dict[str, Any]]:
    """The first member of each kind, as it describes itself."""
    described = [member.describe() for member in Auto(level).members(WHITE)]
    return {(given["attack"], given.get("architecture")): given for given in reversed(described)}


def test_thorough_is_standard_larger_longer_and_with_restarts() -> None:
    standard, thorough = kinds_of("standard"), kinds_of("thorough")
    more = {
        "decoder": {"depth", "width", "epochs"},
        "generator": {"width", "epochs"},
        "latent_prior": {"width", "epochs", "restarts", "steps", "refine_steps"},
        "rmle": {"steps", "restarts"},
    }
    for kind, given in standard.items():
        for field in more[kind[0]]:
            assert thorough[kind][field] > given[field], (kind, field)
    assert thorough["gan", "residual"]["pretrain_epochs"] == thorough["decoder", "residual"]["epochs"]


def test_few_images_are_less_than_a_batch() -> None:
    (decoder, *_) = Auto("quick").members(replace(WHITE, images=50))
    assert decoder.epochs == 500  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("threat_model", "able"),
    [("white-box", {"rmle", "deep_prior", "generator", "latent_prior"}), ("gray-box", {"generator", "latent_prior"})],
)
def test_attacks_that_cannot_work_on_the_feature_are_left_out(threat_model: Any, able: set[str]) -> None:
    """A feature larger than the image cannot be enlarged; what knows the true edge goes on."""
    scene = replace(WHITE, threat_model=threat_model, feature_shape=(8, 64, 64))
    assert {member.name for member in Auto("thorough").members(scene)} == able


def test_without_its_structure_nobody_inverts_a_feature_larger_than_the_image() -> None:
    scene = replace(WHITE, threat_model="black-box", feature_shape=(8, 64, 64))
    with pytest.raises(InputError, match=r"attack auto: .*that one of its attacks can invert"):
        Auto("thorough").members(scene)


def test_nothing_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderAttack, "check", lambda *_: (_ for _ in ()).throw(InputError("f", 0, "other")))
    with pytest.raises(InputError, match=r"attack auto: .*that one of its attacks can invert"):
        Auto("quick").members(replace(WHITE, threat_model="black-box"))


def test_built_from_plain_data() -> None:
    assert build("auto") == Auto() == Auto("standard")
    assert build({"attack": "auto", "level": "quick"}) == Auto("quick")
    assert build(Auto("thorough").describe()) == Auto("thorough")
    with pytest.raises(InputError, match=r"auto\.level.*quick, standard, thorough"):
        Auto("fast")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean auto"):
        build("atuo")


@pytest.mark.parametrize("defended", [False, True])
def test_the_scene_is_found_out_by_queries(defended: bool) -> None:
    target = target_of(make_split(defended), "gray-box")
    scene = scene_of(target, make_knowledge())
    assert scene == Scene("gray-box", defended, 24, target.image_shape, target.feature_shape)
    assert target.queries == scene.queries == 2


@pytest.mark.parametrize("defended", [False, True])
def test_the_scene_is_free_where_the_device_is_known(defended: bool) -> None:
    target = target_of(make_split(defended).double(), "white-box").under(queries=0)
    scene = scene_of(target, make_knowledge())
    assert (scene.random, scene.queries, target.queries) == (defended, 0, 0)


@pytest.mark.parametrize("threat_model", ["gray-box", "black-box"])
def test_the_scene_costs_too_much(threat_model: Any) -> None:
    target = target_of(make_split(), threat_model)
    with pytest.raises(BudgetError, match="queries: got 1; accepted: at least 2, to see whether"):
        scene_of(target.under(queries=1), make_knowledge())
    assert target.queries == 0, "nothing is sent for nothing"
    with pytest.raises(BudgetError, match="at least 6"):
        scene_of(target.under(queries=5, observations=3), make_knowledge())
    assert scene_of(target.under(queries=2), make_knowledge()).random
    assert target.queries == 2


class TestBudget:
    def test_members_share_what_the_scene_leaves(self) -> None:
        black, gray = replace(WHITE, threat_model="black-box"), replace(WHITE, threat_model="gray-box")
        for scene, queries in ((WHITE, 100), (black, 98), (gray, 98)):
            free, limited = Auto("thorough").members(scene), Auto("thorough", queries=100).members(scene)
            assert [(m.name, m.observations) for m in limited] == [(m.name, m.observations) for m in free]
            assert {member.queries for member in limited} == {queries}

    @pytest.mark.parametrize(
        ("queries", "observations", "pace"),
        [(1_000, 1, 900 // 128), (1_000, 4, 225 // 128), (1_000, 16, 1), (10**6, 1, 5_000 // 128)],
    )
    def test_who_can_send_few_images_learns_as_long_from_them(self, queries: int, observations: int, pace: int) -> None:
        members = Auto("standard", queries=queries).members(WHITE)
        decoder = next(m.describe() for m in members if (m.name, m.observations) == ("decoder", observations))
        assert 2_000 <= decoder["epochs"] * pace < 2_000 + pace

    @pytest.mark.parametrize(
        ("queries", "observations"), [(4, {1}), (9, {1}), (10, {1, 4}), (33, {1, 4}), (34, {1, 4, 16})]
    )
    def test_what_cannot_be_afforded_is_left_out(self, queries: int, observations: set[int]) -> None:
        members = Auto("thorough", queries=queries).members(replace(WHITE, threat_model="black-box"))
        assert {member.observations for member in members} == observations

    @pytest.mark.parametrize("queries", [0, 1])
    def test_without_any_query_those_remain_that_need_none(self, queries: int) -> None:
        members = Auto("thorough", queries=queries).members(WHITE)
        assert {member.name for member in members} == QUERY_FREE
        assert {member.observations for member in members} == {1, 16}, "victims' sendings are no queries"

    @pytest.mark.parametrize("queries", [0, 1, 2, 3])
    def test_nothing_is_left(self, queries: int) -> None:
        with pytest.raises(BudgetError, match=rf"auto\.queries: got {queries}; accepted: at least 4: 2 to see"):
            Auto("thorough", queries=queries).members(replace(WHITE, threat_model="black-box"))

    def test_members_have_their_images_and_threat_model_from_it(self) -> None:
        auto = Auto("thorough", images=200, queries=3_202, threat_model="gray-box")
        members = auto.members(WHITE)
        assert {(m.images, m.queries, m.threat_model) for m in members} == {(200, 3_200, "gray-box")}
        free = Auto("thorough").members(replace(WHITE, threat_model="gray-box"))
        assert [(m.name, m.observations) for m in members] == [(m.name, m.observations) for m in free]
        for member in members:
            given = member.describe()
            pace = max(1, 180 // given["batch_size"])
            assert 10_000 <= given["epochs"] * pace < 10_000 + pace

    def test_owns_no_more_images_than_it_is_said_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(module._SIZES, "quick", module._Size(steps=3, depth=0, width=4))
        arguments = (make_knowledge(), {"test": make_images(5, seed=8)})
        target = target_of(make_split(), "gray-box")
        with pytest.raises(InputError, match=r"auto\.images: got 34; accepted: up to 33"):
            Auto("quick", images=34)(target, *arguments, generator=generator(0), runtime=runtime())
        with pytest.raises(InputError, match=r"auto\.threat_model: got 'gray-box'; accepted: black-box"):
            Auto("quick", threat_model="black-box")(target, *arguments, generator=generator(0), runtime=runtime())
        assert target.queries == 0
        auto = Auto("quick", images=12, threat_model="gray-box")
        made = auto(target, *arguments, generator=generator(0), runtime=runtime())
        assert {(one.owned, one.threat_model) for one in made.values()} == {(12, "gray-box")}

    def test_describes_itself(self) -> None:
        assert build({"attack": "auto", "queries": 40}) == Auto(queries=40) == build(Auto(queries=40).describe())
        everything = Auto("quick", images=40, queries=50, threat_model="black-box")
        assert build(everything.describe()) == everything
        with pytest.raises(InputError, match=r"auto\.queries: got -1"):
            Auto(queries=-1)
        with pytest.raises(InputError, match=r"auto\.images: got 1; accepted: 2 or more"):
            Auto(images=1)
        with pytest.raises(InputError, match=r"auto\.threat_model: .*did you mean gray-box"):
            Auto(threat_model="grey-box")  # type: ignore[arg-type]

    @pytest.mark.parametrize("queries", [None, 34])
    def test_each_member_is_charged(self, queries: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(module._SIZES, "quick", module._Size(steps=3, depth=0, width=4))
        victims = {"test": make_images(5, seed=8)}
        target = target_of(make_split())
        members = Auto("quick", queries=queries).members(scene_of(target, make_knowledge()))
        own = [
            attack(target, make_knowledge(), victims, generator=generator(0), runtime=runtime()).queries
            for attack in members
        ]
        target = target_of(make_split())
        made = Auto("quick", queries=queries)(
            target, make_knowledge(), victims, generator=generator(0), runtime=runtime()
        )
        assert [result.queries for result in made.values()] == [queries + 2 for queries in own]
        assert target.queries == 2 + sum(own)
        assert queries is None or max(result.queries for result in made.values()) <= queries

    @pytest.mark.parametrize("queries", [1, 3])
    def test_too_small_a_budget_is_said_before_anything_is_learned(self, queries: int) -> None:
        target = target_of(make_split())
        with pytest.raises(BudgetError, match="queries"):
            Auto("quick", queries=queries)(
                target, make_knowledge(), {"test": make_images(2)}, generator=generator(0), runtime=runtime()
            )
        assert target.queries == (0 if queries < 2 else 2)


def result(ssim: list[float], mse: list[float], shade: float) -> Reconstruction:
    figures = Quality(torch.tensor(mse), -torch.tensor(mse).log10(), torch.tensor(ssim))
    images = torch.full((len(ssim), 1, 2, 2), shade)
    return Reconstruction({"test": images}, {"test": figures}, "black-box", 1, 1, 1, 0.0, {}, False)


def test_strongest_of_each_victim() -> None:
    made = {
        "a": result([0.5, 0.9, 0.2, 0.4], [0.3, 0.1, 0.4, 0.2], 0.1),
        "b": result([0.6, 0.1, 0.2, 0.3], [0.2, 0.3, 0.5, 0.1], 0.2),
        "c": result([0.4, 0.2, 0.1, 0.5], [0.5, 0.2, 0.4, 0.1], 0.3),
    }
    found = strongest(made)
    assert found.by_ssim == ("b", "a", "a", "c")
    assert found.by_mse == ("b", "a", "a", "b")
    assert found.images[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.1, 0.1, 0.3])
    assert found.quality.ssim.tolist() == pytest.approx([0.6, 0.9, 0.2, 0.5])
    assert found.quality.mse.tolist() == pytest.approx([0.2, 0.1, 0.4, 0.1])
    for one in made.values():
        assert (found.quality.ssim >= one.quality["test"].ssim).all()
        assert (found.quality.mse <= one.quality["test"].mse).all()
        assert (found.quality.psnr >= one.quality["test"].psnr).all()


def digits(start: int, count: int) -> ImageSet:
    """Handwritten digits at 16×16."""
    pixels = torch.tensor(load_digits().images[start : start + count], dtype=torch.float32).unsqueeze(1) / 16
    large = nn.functional.interpolate(pixels, (16, 16), mode="bilinear", align_corners=False)
    return ImageSet((large * 255).round().to(torch.uint8), torch.zeros(count, dtype=torch.int64), ("digit",))


class Shattered(nn.Module):
    """Sends the feature, and no gradient."""

    def forward(self, z: Tensor) -> Tensor:
        return z.detach() + 0 * z


class Rounded(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z * 8).round() / 8


class Shaken(Stochastic):
    def forward(self, z: Tensor) -> Tensor:
        return z + 0.2 * self.normal(z)


class Rippled(nn.Module):
    """Hardly touches the feature, but its gradient is that times anything from -9 to 11."""

    def forward(self, z: Tensor) -> Tensor:
        return z + 0.02 * (500 * z).sin()


class Reversed(nn.Module):
    """Rounds, and passes back what leads away."""

    def forward(self, z: Tensor) -> Tensor:
        return (z * 8).round().detach() / 8 + (z.detach() - z)


def toy(channel: nn.Module) -> SplitModel:
    edge = initialize(nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Sigmoid()), generator(0))
    model = SplitModel(
        edge, channel, nn.Flatten(), image_shape=(1, 16, 16), feature=Feature((8, 8, 8), (0, 1)), cut="toy"
    )
    set_generator(model, generator(1))
    return model


def doubts(
    model: SplitModel, made: Mapping[str, Reconstruction], specs: tuple[Attack, ...], victims: ImageSet
) -> set[str]:
    """What an audit would say."""
    mean = victims.images.float().mean(0, keepdim=True) / 255
    error = float(quality(mean.expand(len(victims), -1, -1, -1), victims.images / 255).mse.mean())
    target = make_target(model, "white-box", generator=generator(9))
    assert isinstance(target, attacks.WhiteBox)
    x = victims.images / 255
    evidence = Evidence(
        *(Fit(), 0.9, 0.1, made, is_random(model.channel), card.Quality(mse=error, psnr=1.0, ssim=0.1)),
        *(gradient_through(target, x), levels_of(target, x)),
        specs=dict(zip(made, specs, strict=True)),
    )
    return {doubt.code for doubt in suspicions(evidence)}


@pytest.mark.slow
@pytest.mark.parametrize("level", ["quick", "standard"])
@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        (nn.Identity(), set()),
        (Shattered(), {"gradient-vanishes"}),
        (Detached(), {"gradient-vanishes"}),
        (Rounded(), {"gradient-vanishes", "quantized"}),
        (Compared(), {"gradient-vanishes", "quantized"}),
        (Shaken(), {"averages-out"}),
        (Rippled(), {"optimization-falls-behind"}),
        (Reversed(), {"quantized", "optimization-falls-behind"}),
    ],
    ids=["none", "shattered", "detached", "rounded", "compared", "shaken", "rippled", "reversed"],
)
def test_defenses_that_only_look_like_some_are_beaten(
    channel: nn.Module, expected: set[str], level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._SIZES, level, module._Size(steps=250, depth=1, width=16, search=60))
    knowledge, victims = Knowledge(digits(0, 600), digits(600, 60), "auxiliary"), digits(700, 40)
    model, auto = toy(channel), Auto(level)
    target = make_target(model, "white-box", generator=generator(2))
    made = auto(target, knowledge, {"test": victims}, generator=generator(3), runtime=runtime())
    best = strongest(made).quality
    for one in made.values():
        assert (best.ssim >= one.quality["test"].ssim).all()
        assert (best.mse <= one.quality["test"].mse).all()
    assert float(best.ssim.mean()) > 0.65
    assert float(best.mse.mean()) < 0.35 * float((victims.images / 255).var(0).mean())
    specs = auto.members(scene_of(target, knowledge))
    found = doubts(model, made, specs, victims)
    assert expected <= found
    blind = {"gradient-vanishes", "quantized", "averages-out", "not-averaged"}
    assert found & blind == expected & blind


@pytest.mark.slow
def test_noise_averages_out_where_queries_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._SIZES, "quick", module._Size(steps=250, depth=1, width=16))
    knowledge, victims, model = Knowledge(digits(0, 600), digits(600, 60), "auxiliary"), digits(700, 40), toy(Shaken())
    auto, target = Auto("quick", queries=8_000), make_target(model, "black-box", generator=generator(2))
    specs = auto.members(scene_of(target, knowledge))
    made = auto(target, knowledge, {"test": victims}, generator=generator(3), runtime=runtime())
    once, often = specs
    assert (once.observations, often.observations) == (1, 16)
    assert once.epochs < often.epochs, "it learns from fewer images"  # type: ignore[attr-defined]
    assert "averages-out" in doubts(model, made, specs, victims)


def test_members_resume_from_folders_of_their_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._SIZES, "quick", module._Size(steps=3, depth=0, width=4))
    victims = {"test": make_images(5, seed=8)}
    outcomes = []
    for _ in range(2):
        target = target_of(make_split(), "black-box")
        outcomes.append(
            Auto("quick")(target, make_knowledge(), victims, generator=generator(0), runtime=runtime(folder=tmp_path))
        )
    assert set(outcomes[0]) == {path.name for path in tmp_path.iterdir()} == {"decoder", "decoder (observations=16)"}
    for one, other in itertools.pairwise(outcomes):
        for label in one:
            assert torch.equal(one[label].images["test"], other[label].images["test"])
