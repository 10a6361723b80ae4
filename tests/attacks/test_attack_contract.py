"""What ``Attack.__call__`` does for every attack; one row of the contract table an attack."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attack_toys import (
    CONTRACT,
    FABRIC,
    QUERY_FREE,
    SHAPE,
    Compared,
    Detached,
    GrayOnly,
    Spy,
    generator,
    identity_split,
    make_images,
    make_knowledge,
    make_split,
    runtime,
    target_of,
)

from sfumato.attacks import (
    ATTACKS,
    THREAT_MODELS,
    Attack,
    BlackBox,
    Knowledge,
    Learned,
    Reconstruction,
    ThreatModel,
    build,
)
from sfumato.attacks.threat import wire
from sfumato.defenses.noise import AdditiveNoise
from sfumato.errors import InputError, InputErrors
from sfumato.metrics import quality
from sfumato.training import Runtime

VICTIMS = {"train": make_images(5, seed=11), "test": make_images(7, seed=12)}


@dataclasses.dataclass(frozen=True)
class Brief(Spy):
    """Answers with a gray picture."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        learned = super().run(*args, **kwargs)

        def gray(z: torch.Tensor) -> torch.Tensor:
            learned.invert(z)
            return torch.full((len(z), *SHAPE), 0.5)

        return dataclasses.replace(learned, invert=gray)


def test_every_attack_has_a_row() -> None:
    assert set(CONTRACT) == set(ATTACKS)
    for name, attack in CONTRACT.items():
        assert type(attack) is ATTACKS[name]
        changed = [f.name for f in dataclasses.fields(attack) if getattr(attack, f.name) != f.default]
        assert changed, "a row's arguments make it quick"


@pytest.mark.parametrize("name", ATTACKS)
class TestContract:
    def test_describes_itself(self, name: str) -> None:
        kind, attack = ATTACKS[name], CONTRACT[name]
        assert kind.name == name
        assert kind.source
        assert kind.cost
        assert kind.__doc__
        assert kind.threat_models
        assert kind.threat_models <= set(THREAT_MODELS)
        described = json.loads(json.dumps(attack.describe()))
        assert build(described) == attack
        assert str(attack).startswith(f"{kind.__name__}(")
        with pytest.raises(dataclasses.FrozenInstanceError):
            attack.epochs = 3  # type: ignore[attr-defined]

    def test_leaves_call_alone(self, name: str) -> None:
        assert all("__call__" not in vars(kind) for kind in ATTACKS[name].__mro__ if kind is not Attack)

    @pytest.mark.parametrize("threat_model", THREAT_MODELS)
    def test_reconstructs(self, name: str, threat_model: ThreatModel) -> None:
        attack, target = CONTRACT[name], target_of(make_split(), threat_model)
        if threat_model not in attack.threat_models:
            with pytest.raises(InputError, match="threat_model"):
                attack(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
            return
        made = attack(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
        for group, images in VICTIMS.items():
            assert made.images[group].shape == (len(images), *SHAPE)
            assert made.images[group].min() >= 0
            assert made.images[group].max() <= 1
            assert torch.equal(made.quality[group].mse, quality(made.images[group], images.images / 255).mse)
        assert (made.threat_model, made.diverged) == (threat_model, False)
        assert made.queries == target.queries
        assert (made.queries == 0) == (name in QUERY_FREE) == attack.query_free
        assert made.seconds > 0
        again = attack(
            target_of(make_split(), threat_model), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime()
        )
        assert all(torch.equal(again.images[group], made.images[group]) for group in VICTIMS), "seeded"
        other = attack(
            target_of(make_split(), threat_model), make_knowledge(), VICTIMS, generator=generator(1), runtime=runtime()
        )
        assert not torch.equal(other.images["test"], made.images["test"])

    @pytest.mark.parametrize("channel", [Detached(), Compared()], ids=["detached", "compared"])
    def test_runs_where_nothing_leads_back_to_the_image(self, name: str, channel: torch.nn.Module) -> None:
        attack = CONTRACT[name]
        target = target_of(make_split(defended=False).with_parts(channel=channel), max(attack.threat_models))
        made = attack(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
        assert not made.diverged
        assert all(math.isfinite(figure) for figure in made.figures.values())

    @pytest.mark.parametrize("threat_model", THREAT_MODELS)
    def test_runs_where_the_edge_itself_keeps_no_graph(self, name: str, threat_model: ThreatModel) -> None:
        attack, plain = CONTRACT[name], make_split(defended=False)
        if threat_model not in attack.threat_models:
            return
        model = plain.with_parts(edge=torch.nn.Sequential(plain.edge, Compared()))
        made = attack(
            target_of(model, threat_model), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime()
        )
        assert not made.diverged

    @pytest.mark.parametrize("flat", [False, True], ids=["place", "vector"])
    def test_one_image_to_learn_from_and_one_number_a_channel(self, name: str, flat: bool) -> None:
        attack = dataclasses.replace(CONTRACT[name], images=2)
        edge = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 16), torch.nn.Flatten() if flat else torch.nn.Identity())
        model = make_split(defended=False).with_parts(edge=edge)
        made = attack(
            target_of(model, max(attack.threat_models)),
            make_knowledge(),
            VICTIMS,
            generator=generator(0),
            runtime=runtime(),
        )
        assert made.owned == 2
        assert not made.diverged
        assert made.images["test"].isfinite().all()

    def test_checks_what_it_may_touch(self, name: str) -> None:
        """Also where it has more to check."""
        attack, target = CONTRACT[name], target_of(make_split())
        for threat_model in THREAT_MODELS:
            if threat_model in attack.threat_models:
                attack.check(target.image_shape, target.feature_shape, threat_model)
                continue
            with pytest.raises(InputError, match=f"{name}.threat_model: got '{threat_model}'"):
                attack.check(target.image_shape, target.feature_shape, threat_model)

    def test_draws_nothing_that_matters_from_the_global_generator(self, name: str) -> None:
        made = []
        for seed in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                target = target_of(make_split(), min(CONTRACT[name].threat_models))
                made.append(
                    CONTRACT[name](target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
                )
        assert torch.equal(made[0].images["test"], made[1].images["test"])


def test_call_is_final() -> None:
    assert getattr(Attack.__call__, "__final__", False)


def test_per_image_quality_of_a_known_inverter() -> None:
    """An edge that sends the image: shifted by s, the error is s² where nothing is clipped."""
    dim = {name: dataclasses.replace(g, images=g.images // 2) for name, g in VICTIMS.items()}
    exact = Spy()(target_of(identity_split()), make_knowledge(), dim, generator=generator(0), runtime=runtime())
    shifted = Spy(0.1)(target_of(identity_split()), make_knowledge(), dim, generator=generator(0), runtime=runtime())
    clipped = Spy(2.0)(target_of(identity_split()), make_knowledge(), dim, generator=generator(0), runtime=runtime())
    for name, group in dim.items():
        assert exact.quality[name].mse.tolist() == [0.0] * len(group)
        assert torch.isinf(exact.quality[name].psnr).all()
        torch.testing.assert_close(exact.quality[name].ssim, torch.ones(len(group)))
        torch.testing.assert_close(shifted.quality[name].mse, torch.full((len(group),), 0.01), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shifted.quality[name].psnr, torch.full((len(group),), 20.0), rtol=1e-4, atol=1e-3)
        assert torch.equal(clipped.images[name], torch.ones(len(group), *SHAPE))
        torch.testing.assert_close(clipped.quality[name].mse, (1 - group.images / 255).square().mean((1, 2, 3)))


def test_the_attack_is_given_its_part_and_never_a_victims_image() -> None:
    spy, mine, drawn, where = Brief(), make_knowledge(), generator(4), runtime()
    target = target_of(make_split())
    spy(target, mine, VICTIMS, generator=drawn, runtime=where)
    (got, knowledge, given, place), *features = spy.seen
    assert type(got) is type(target)
    assert (given is drawn, place is where) == (True, True)
    assert knowledge.train.checksum() == mine.train.checksum()
    assert knowledge.origin == "auxiliary"
    assert [tuple(z.shape) for z in features] == [(5, 2, 4, 4), (7, 2, 4, 4)]
    # An identity edge would send the image; here all that arrives is the deployed channel's output.
    sent = wire(target_of(make_split()), 1)
    for z, group in zip(features, VICTIMS.values(), strict=True):
        assert torch.equal(z, sent.query(group.images / 255))


def test_many_victims_come_in_batches_and_in_order() -> None:
    many = {"test": make_images(600)}
    spy = Spy()
    made = spy(target_of(identity_split()), make_knowledge(), many, generator=generator(0), runtime=runtime())
    assert torch.equal(made.images["test"], many["test"].images / 255)
    assert [len(z) for z in spy.seen[1:]] == [256, 256, 88]


def restored(target: BlackBox) -> torch.Generator:
    found = torch.Generator()
    found.set_state(target.state_dict()["generator"])
    return found


def rewound(target: BlackBox) -> torch.Generator:
    return torch.Generator().manual_seed(restored(target).initial_seed())


@dataclasses.dataclass(frozen=True)
class Redrawing(Attack):
    """Guesses from what a target exposes what draws the noise of what it intercepts, and subtracts it."""

    name: ClassVar[str] = "redrawing"
    source: ClassVar[str] = "test"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "nothing"
    guess: Any = None

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        guessed = self.guess(target)
        return Learned(lambda z: z - 0.1 * torch.randn(z.shape, generator=guessed))


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize("guess", [restored, rewound])
def test_noise_of_what_is_intercepted_cannot_be_redrawn(guess: Any, threat_model: ThreatModel) -> None:
    victims = {"test": dataclasses.replace(VICTIMS["test"], images=VICTIMS["test"].images.clamp(120, 130))}
    target = target_of(identity_split(AdditiveNoise(0.1, "gaussian")), threat_model)
    made = Redrawing(guess=guess)(target, make_knowledge(), victims, generator=generator(0), runtime=runtime())
    assert float(made.quality["test"].mse.mean()) == pytest.approx(2 * 0.1**2, rel=0.1)


def test_what_an_attack_meets_does_not_depend_on_what_was_asked_before() -> None:
    target = target_of(make_split())
    features = []
    for asks in (0, 3):
        spy = Brief(asks=asks)
        spy(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
        features.append(torch.cat(spy.seen[1:]))
    assert torch.equal(*features)


def test_queries_are_the_attackers_own() -> None:
    """Neither interception nor what another attack asked of the same target counts."""
    target = target_of(make_split(defended=False))
    first = Brief(asks=2)(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
    second = Brief(asks=5)(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
    assert (first.queries, second.queries) == (6, 15)
    assert target.queries == 6 + 15


def test_what_the_attack_says_of_itself_is_passed_on() -> None:
    arguments = (target_of(identity_split()), make_knowledge(), VICTIMS)
    for diverged in (False, True):
        made = Spy(diverged=diverged)(*arguments, generator=generator(0), runtime=runtime())
        assert made.diverged is diverged
        assert made.figures == {"figure": 1.5}


def test_reconstructions_that_are_not_finite_are_black_and_do_not_poison_the_figures() -> None:
    made = Spy(float("nan"))(
        target_of(identity_split()), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime()
    )
    assert float(made.images["test"].abs().sum()) == 0
    assert torch.isfinite(made.quality["test"].mse).all()


@dataclasses.dataclass(frozen=True)
class Answers(Attack):
    """Answers the first victim with one number, the others with their features."""

    name: ClassVar[str] = "answers"
    source: ClassVar[str] = "test"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "nothing"
    number: str = "nan"

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        def invert(z: torch.Tensor) -> torch.Tensor:
            answer = z.clone()
            answer[0] = float(self.number)
            return answer

        return Learned(invert)


@pytest.mark.parametrize(("number", "expected"), [("nan", True), ("inf", True), ("-inf", True), ("2", False)])
def test_a_reconstruction_that_is_not_finite_is_told_and_still_told_by_a_call_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, expected: bool
) -> None:
    def made() -> Reconstruction:
        target, where = target_of(identity_split()), runtime(folder=tmp_path)
        return Answers(number)(target, make_knowledge(), VICTIMS, generator=generator(0), runtime=where)

    first = made()
    assert first.diverged is expected
    monkeypatch.setattr(Answers, "run", lambda *_, **__: Learned(torch.zeros_like))
    again = made()
    assert again.diverged is expected, "told of what was kept"
    for group, images in first.images.items():
        assert bool(images.isfinite().all())
        assert torch.equal(again.images[group], images)


class TestValidation:
    def refused(self, match: str, attack: Attack, knowledge: Knowledge, victims: Any) -> None:
        spied = len(attack.seen) if isinstance(attack, Spy) else 0
        with pytest.raises(InputError, match=match):
            attack(target_of(make_split()), knowledge, victims, generator=generator(0), runtime=runtime())
        assert not isinstance(attack, Spy) or len(attack.seen) == spied, "nothing must have run"

    def test_threat_model(self) -> None:
        self.refused("gray-box, white-box", GrayOnly(), make_knowledge(), VICTIMS)

    def test_threat_model_of_its_own(self) -> None:
        self.refused("one of white-box", Spy(threat_model="white-box"), make_knowledge(), VICTIMS)
        spy = Spy(threat_model="black-box")
        spy(target_of(identity_split()), make_knowledge(), VICTIMS, generator=generator(0), runtime=runtime())
        assert spy.describe()["threat_model"] == "black-box"
        assert Spy().describe()["threat_model"] is None
        with pytest.raises(InputError, match=r"spy\.threat_model.*white-box, gray-box, or none"):
            GrayOnly(threat_model="black-box")

    def test_victims_of_another_shape(self) -> None:
        wrong = {"train": make_images(), "test": make_images(shape=(3, 16, 16))}
        self.refused(r"victims\.test \(image shape\)", Spy(), make_knowledge(), wrong)

    @pytest.mark.parametrize("part", ["train", "validation"])
    def test_knowledge_of_another_shape(self, part: str) -> None:
        wrong = dataclasses.replace(make_knowledge(), **{part: make_images(shape=(1, 32, 32))})
        self.refused(rf"knowledge\.{part} \(image shape\)", Spy(), wrong, VICTIMS)


def test_default_runtime() -> None:
    spy = Spy()
    spy(target_of(identity_split()), make_knowledge(), VICTIMS, generator=generator(0))
    assert isinstance(spy.seen[0][3], Runtime)
    assert spy.seen[0][3].fabric is not FABRIC


class TestBuild:
    def test_by_name_and_by_arguments(self) -> None:
        assert build("decoder") == ATTACKS["decoder"]()
        assert build({"attack": "decoder", "epochs": "3"}).describe()["epochs"] == 3

    @pytest.mark.parametrize(
        ("spec", "match"),
        [
            ("decodr", r"attack\.attack.*did you mean decoder"),
            ({}, r"attack\.attack"),
            ({"attack": ["decoder"]}, r"attack\.attack"),
            ({"attack": "decoder", "widht": 3}, r"attack\.decoder\.widht.*did you mean width"),
            ({"attack": "decoder", "epochs": "many"}, r"attack\.decoder\.epochs"),
            ({"attack": "decoder", "epochs": 0}, r"decoder\.epochs"),
        ],
    )
    def test_refuses(self, spec: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            build(spec)

    def test_says_where_it_was_written_and_everything_at_once(self) -> None:
        with pytest.raises(InputErrors) as caught:
            build({"attack": "decoder", "widht": 3, "epoch": 1}, field="attacks[1]")
        assert [error.field for error in caught.value.errors] == [
            "attacks[1].decoder.widht",
            "attacks[1].decoder.epoch",
        ]
