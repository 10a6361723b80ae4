from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from sfumato import metrics
from sfumato.attacks import DecoderAttack, RMLEAttack, auto, base
from sfumato.audit import Card, attack_run, audit, load_settings, reopen, train_all
from sfumato.audit.runs import load_data, train_run
from sfumato.errors import CorruptFileError, InputError, InputErrors, Interrupted
from sfumato.training import Runtime, make_fabric


@pytest.fixture
def runtime():
    return Runtime(fabric=make_fabric("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_settings):
    """One small audit, shared by the tests that only look at it."""
    root = tmp_path_factory.mktemp("runs")
    settings = load_settings([tiny_settings])
    cards = audit(settings, root=root, runtime=Runtime(fabric=make_fabric("cpu")))
    return root, settings, cards


def test_a_card_says_what_a_second_look_finds(finished, runtime):
    root, settings, cards = finished
    splits = load_data(settings.data, settings.seed)
    (label, defense), card = next(iter(settings.resolved_defenses().items())), cards[0]
    run = train_run(settings, label, defense, splits, root=root, runtime=runtime)
    for part in ("train", "validation", "test"):
        images = getattr(splits, part)
        found = metrics.accuracy(run.split, images, generator=torch.Generator().manual_seed(0))
        assert found == pytest.approx(getattr(card.utility, f"{part}_accuracy"))
        assert len(images) == getattr(card.data, part)
    assert card.cost.edge_parameters == sum(p.numel() for p in run.split.edge.parameters())
    assert card.cost.payload_bytes == 4 * int(np.prod(card.model.feature_shape))
    assert card.training.epochs_run == settings.training.epochs
    assert card.attacks[0].queries > 0


def test_figures_on_the_card_are_those_of_its_pictures(finished):
    _, settings, cards = finished
    for card in cards:
        attack = card.attacks[0]
        assert len(attack.test_mse) == len(attack.test_ssim) == settings.evaluation.victims
        assert attack.test.mse == pytest.approx(np.mean(attack.test_mse))
        assert card.worst_case.ssim == pytest.approx(np.mean(attack.test_ssim))
        ranks = {example.rank: example for example in attack.examples}
        assert ranks["best"].ssim == max(attack.test_ssim)
        assert ranks["worst"].ssim == min(attack.test_ssim)
        for example in attack.examples:
            original, made = (_pixels(text) for text in (example.original, example.reconstruction))
            # Rounding to 8 bits moves a pixel by at most half a gray level.
            assert np.mean((original - made) ** 2) == pytest.approx(example.mse, abs=4e-3)


def test_the_mean_image_is_the_best_constant_answer(finished):
    _, settings, cards = finished
    splits = load_data(settings.data, settings.seed)
    judged = splits.test.images[: settings.evaluation.victims].double() / 255
    mean = splits.train.images.double().mean(0) / 255
    assert cards[0].mean_image.mse == pytest.approx(float((judged - mean).square().mean()), rel=1e-5)


def test_all_defenses_start_from_the_same_backbone(finished, runtime):
    from sfumato.audit.runs import prepare

    _, settings, _ = finished
    splits = load_data(settings.data, settings.seed)
    plain, defended = (prepare(settings, d, splits)[0] for d in settings.resolved_defenses().values())
    weights = dict(plain.named_parameters())
    shared = {name.replace("edge.0.", "edge."): p for name, p in defended.named_parameters() if "block1" in name}
    assert shared
    for name, parameter in shared.items():
        assert torch.equal(parameter, weights[name])


def test_the_second_call_computes_nothing(finished, monkeypatch):
    root, settings, cards = finished

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("sfumato.audit.protocol._attack", forbidden)
    monkeypatch.setattr("sfumato.audit.runs.train", forbidden)
    assert audit(settings, root=root, runtime=Runtime(fabric=make_fabric("cpu"))) == cards


def test_another_label_is_the_same_run(finished, monkeypatch):
    root, settings, cards = finished
    monkeypatch.setattr("sfumato.audit.runs.train", None)
    renamed = settings.model_copy(update={"defenses": ({"recipe": "none", "label": "as it is"},)})
    again = audit(renamed, root=root, runtime=Runtime(fabric=make_fabric("cpu")))
    assert again[0].defense.label == "as it is"
    assert again[0].utility == cards[0].utility


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"training": {"lr": 0.01}},
        {"training": {"augment": "flip"}},
        {"training": {"augment": "preset"}},
        {"model": {"width": 0.05}},
        {"data": {"train_limit": 280}},
        {"defenses": [{"recipe": "noise", "sigma": 0.5}]},
        {"precision": "64-true"},
    ],
)
def test_whatever_determines_the_weights_is_in_the_address(finished, tiny_settings, change, runtime):
    from sfumato.audit.runs import address

    _, settings, _ = finished
    other = load_settings([tiny_settings, {"defenses": ["none"]}, change])
    found = [
        address(s, next(iter(s.resolved_defenses().values())), load_data(s.data, s.seed), runtime)
        for s in (settings, other)
    ]
    assert found[0] != found[1]


def test_the_address_and_the_card_name_the_augmentation_and_not_where_it_came_from(tmp_path, tiny_settings, runtime):
    from sfumato.audit.runs import address
    from sfumato.data import Augment

    def at(augment, own):
        settings = load_settings([tiny_settings, {"defenses": ["none"], "training": {"augment": augment}}])
        splits = replace(load_data(settings.data, settings.seed), augment=own)
        return address(settings, settings.resolved_defenses()["none"], splits, runtime)

    flip = Augment(crop_padding=0, flip=True, rotation=0)
    assert at("preset", flip) == at("flip", None)
    assert at("preset", None) == at("none", flip)
    assert len({at("preset", own) for own in (None, flip, Augment(3, True, 0), Augment(0, True, 1))}) == 4
    settings = load_settings([tiny_settings, {"defenses": ["none"], "training": {"augment": "preset", "epochs": 1}}])
    told = audit(settings, root=tmp_path, runtime=runtime)[0].training.arguments["augment"]
    assert told == {"crop_padding": 4, "flip": False, "rotation": 0.0}


def test_a_damaged_card_is_made_anew_and_is_the_same(tmp_path, tiny_settings, runtime):
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    first = audit(settings, root=tmp_path, runtime=runtime)[0]
    path = next(tmp_path.rglob("card.json"))
    for damage in (
        lambda: path.write_text(path.read_text()[:-40]),
        lambda: path.with_name("card.sha256").write_bytes(b"\xff" * 64 + b"\n"),  # no text at all
    ):
        damage()
        again = audit(settings, root=tmp_path, runtime=runtime)[0]
        assert again.fingerprint() == first.fingerprint()
        assert Card.load(path) == again


def test_a_card_that_somebody_altered_is_made_anew(tmp_path, tiny_settings, runtime):
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    first = audit(settings, root=tmp_path, runtime=runtime)[0]
    path = next(tmp_path.rglob("card.json"))
    for damage in (
        lambda: path.write_text(path.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 0.9')),
        lambda: path.with_name("card.sha256").unlink(),
    ):
        damage()
        assert audit(settings, root=tmp_path, runtime=runtime)[0].fingerprint() == first.fingerprint()
        assert Card.load(path).fingerprint() == first.fingerprint()


@pytest.mark.parametrize("name", ["model.safetensors", "run.json"])
def test_a_damaged_run_is_refused(tmp_path, tiny_settings, runtime, name):
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    audit(settings, root=tmp_path, runtime=runtime)
    path = next(tmp_path.rglob(name))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    next(tmp_path.rglob("card.json")).unlink()
    with pytest.raises(CorruptFileError, match=r"train-.*; remove the folder to train again"):
        audit(settings, root=tmp_path, runtime=runtime)


def test_an_audit_stopped_at_any_step_goes_on_to_the_same_cards(tmp_path, tiny_settings):
    settings = load_settings(
        [
            tiny_settings,
            {
                "training": {"epochs": 1},
                "defenses": ["none", "noise"],
                "attacks": [{"attack": "decoder", "depth": 0, "width": 2, "epochs": 1, "batch_size": 64}],
            },
        ]
    )
    whole = audit(settings, root=tmp_path / "whole", runtime=Runtime(fabric=make_fabric("cpu")))
    stops = 0
    for _ in range(100):
        steps = iter(range(1))
        runtime = Runtime(fabric=make_fabric("cpu"), should_stop=lambda steps=steps: next(steps, None) is None)
        try:
            resumed = audit(settings, root=tmp_path / "stopped", runtime=runtime)
            break
        except Interrupted:
            stops += 1
    assert stops > 3
    assert [card.fingerprint() for card in resumed] == [card.fingerprint() for card in whole]
    assert _weights(tmp_path / "whole") == _weights(tmp_path / "stopped")


@pytest.mark.slow
def test_an_audit_killed_in_the_middle_goes_on_to_the_same_cards(tmp_path, tiny_settings):
    longer = {"training": {"epochs": 12}, "defenses": ["cem"]}
    config = tmp_path / "audit.yaml"
    config.write_text(
        yaml.safe_dump({**tiny_settings, "training": {**tiny_settings["training"], "epochs": 12}, "defenses": ["cem"]})
    )
    whole = audit(
        load_settings([tiny_settings, longer]), root=tmp_path / "whole", runtime=Runtime(fabric=make_fabric("cpu"))
    )
    command = [
        sys.executable,
        "-m",
        "sfumato",
        "audit",
        "--config",
        str(config),
        "--runs",
        str(tmp_path / "killed"),
        "--out",
        str(tmp_path / "page"),
        "--checkpoint-seconds",
        "0",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    victim = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (log := list((tmp_path / "killed").rglob("metrics.jsonl"))) or log[0].read_text().count("\n") < 2:
        assert victim.poll() is None, victim.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not list((tmp_path / "killed").rglob("run.json")), "killed too late to show anything"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    resumed = Card.load(next((tmp_path / "killed").rglob("card.json")))
    assert resumed.fingerprint() == whole[0].fingerprint()
    assert _weights(tmp_path / "whole") == _weights(tmp_path / "killed")


def test_a_description_that_somebody_changed_is_refused(tmp_path, tiny_settings, runtime):
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    train_all(settings, root=tmp_path, runtime=runtime)
    path = next(tmp_path.rglob("run.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 0.0}))
    with pytest.raises(CorruptFileError, match="does not match its checksum"):
        train_all(settings, root=tmp_path, runtime=runtime)


def test_an_attacker_without_auxiliary_images_is_told_so_before_anything_is_trained(tmp_path, tiny_settings, runtime):
    settings = load_settings([tiny_settings, {"evaluation": {"knowledge": "auxiliary"}}])
    with pytest.raises(InputError, match=r"data\.auxiliary"):
        audit(settings, root=tmp_path, runtime=runtime)
    assert not list(tmp_path.iterdir())


def test_an_attacker_with_images_of_its_own(tmp_path, tiny_settings, runtime):
    change = {
        "evaluation": {"knowledge": "auxiliary", "threat_model": "black-box", "victims": 10},
        "data": {"auxiliary": 0.3},
        "defenses": ["none"],
    }
    card = audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)[0]
    attack = card.attacks[0]
    assert (attack.trained_on, attack.threat_model, len(attack.test_mse)) == ("auxiliary", "black-box", 10)
    assert card.data.auxiliary == 90


def test_fewer_images_of_an_attacker_are_among_more(tmp_path, tiny_settings, runtime, monkeypatch):
    """Whatever stands between the attacks of a curve, and in whatever order they come."""
    weak, had, run = {**tiny_settings["attacks"][0], "epochs": 1}, {}, DecoderAttack.run

    def watched(self, target, knowledge, **kwargs):
        parts = (knowledge.train.images, knowledge.validation.images)
        had[self.images] = [{image.numpy().tobytes() for image in part} for part in parts]
        return run(self, target, knowledge, **kwargs)

    monkeypatch.setattr(DecoderAttack, "run", watched)
    counts = (90, 20, 45)
    attacks = [weak, *({**weak, "images": count} for count in counts)]
    change = {
        "data": {"auxiliary": 0.4},
        "evaluation": {"knowledge": "auxiliary"},
        "defenses": ["none"],
        "attacks": attacks,
    }
    (card,) = audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)
    assert [attack.images for attack in card.attacks] == [120, *counts]
    assert {count: len(train) + len(held) for count, (train, held) in had.items()} == {
        count: count or 120 for count in had
    }
    for few, more in itertools.pairwise((20, 45, 90, None)):
        for part, among in zip(had[few], had[more], strict=True):
            assert part < among


def test_a_defense_that_cannot_be_set_up_stops_before_the_first_is_trained(tmp_path, tiny_settings, runtime):
    settings = load_settings([tiny_settings, {"defenses": ["none", {"label": "bare", "chain": [{"part": "noise"}]}]}])
    with pytest.raises(InputError, match=r"bare: defense noise: .* put bottleneck before it"):
        audit(settings, root=tmp_path, runtime=runtime)
    assert not list(tmp_path.iterdir())


def test_two_attacks_of_one_kind_are_told_apart_and_the_worst_case_is_of_both(tmp_path, tiny_settings, runtime):
    weak = tiny_settings["attacks"][0]
    change = {"defenses": ["none"], "attacks": [weak, {**weak, "epochs": 4, "lr": 0.01}]}
    card = audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)[0]
    assert [a.attack.name for a in card.attacks] == ["decoder (epochs=2)", "decoder (epochs=4, lr=0.01)"]
    both = np.array([a.test_mse for a in card.attacks])
    assert card.worst_case.mse == pytest.approx(both.min(0).mean(), rel=1e-6)
    assert card.worst_case.mse <= min(a.test.mse for a in card.attacks) + 1e-9


def test_one_audit_faces_a_model_with_attackers_of_every_kind(tmp_path, tiny_settings, runtime):
    weak = tiny_settings["attacks"][0]
    attacks = [weak, {**weak, "threat_model": "gray-box"}, {"attack": "rmle", "steps": 4, "threat_model": "white-box"}]
    change = {"defenses": ["none"], "attacks": attacks, "evaluation": {"victims": 12, "threat_model": "black-box"}}
    card = audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)[0]
    assert [(attack.attack.name, attack.threat_model) for attack in card.attacks] == [
        ("decoder", "black-box"), ("decoder (threat_model=gray-box)", "gray-box"), ("rmle", "white-box"),
    ]  # fmt: skip


def test_auto_is_what_each_model_calls_for(tmp_path, tiny_settings, runtime, monkeypatch):
    monkeypatch.setitem(auto._SIZES, "quick", auto._Size(steps=4, depth=0, width=4))
    change = {
        "defenses": ["none", "noise"],
        "attacks": [{"attack": "auto", "level": "quick"}],
        "evaluation": {"victims": 12, "threat_model": "black-box"},
    }
    settings = load_settings([tiny_settings, change])
    bare, noisy = audit(settings, root=tmp_path, runtime=runtime)
    assert [attack.attack.name for attack in bare.attacks] == ["decoder"], "nothing to average"
    assert [attack.attack.name for attack in noisy.attacks] == ["decoder", "decoder (observations=16)"]
    assert {attack.kind for attack in noisy.attacks} == {"decoder"}
    once, often = noisy.attacks
    assert (once.observations, often.observations) == (1, 16)
    assert often.queries - 2 == 16 * (once.queries - 2), "two by which both were chosen"
    # The same attacks by name have another card, for they owe nothing to a choice.
    named = [{"attack": attack.kind, **attack.attack.arguments} for attack in noisy.attacks]
    (same,) = audit(
        load_settings([tiny_settings, {**change, "defenses": ["noise"], "attacks": named}]),
        root=tmp_path,
        runtime=runtime,
    )
    assert [attack.queries + 2 for attack in same.attacks] == [once.queries, often.queries]
    assert [attack.test for attack in same.attacks] == [once.test, often.test]
    assert "not-averaged" not in {doubt.code for doubt in noisy.suspicions}
    assert noisy.worst_case.ssim == pytest.approx(np.maximum(once.test_ssim, often.test_ssim).mean())
    assert not list(tmp_path.rglob("reconstruction.safetensors"))
    assert audit(settings, root=tmp_path, runtime=runtime) == [bare, noisy], "taken from where they are"


class Restless(nn.Module):
    """An edge that is random, and none of the layers that are known to be."""

    def __init__(self, edge):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        z = self.edge(x)
        return z + 0.01 * torch.rand_like(z)


@pytest.mark.parametrize("restless", [False, True])
def test_randomness_in_the_edge_is_not_overlooked(tmp_path, tiny_settings, runtime, restless):
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    splits = load_data(settings.data, settings.seed)
    run = train_run(settings, "none", settings.resolved_defenses()["none"], splits, root=tmp_path, runtime=runtime)
    if restless:
        run = replace(run, split=run.split.with_parts(edge=Restless(run.split.edge)))
    card = attack_run(run, settings, splits, runtime=runtime)
    assert ("not-averaged" in {doubt.code for doubt in card.suspicions}) is restless


class Detached(nn.Module):
    """Sends the feature, and no gradient."""

    def forward(self, z):
        return z.detach()


class Rounded(nn.Module):
    """Eight levels; rounding has no gradient but 0."""

    def forward(self, z):
        return (z * 8).round().clamp(0, 7) / 8


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        (None, set()),
        (Detached(), {"gradient-vanishes"}),
        (Rounded(), {"gradient-vanishes", "quantized"}),
        (Restless(nn.Identity()), {"not-averaged"}),
    ],
)
def test_the_card_of_a_device_that_only_looks_private_says_so(tmp_path, tiny_settings, runtime, channel, expected):
    settings = load_settings([tiny_settings, {"defenses": ["none"]}])
    splits = load_data(settings.data, settings.seed)
    run = train_run(settings, "none", settings.resolved_defenses()["none"], splits, root=tmp_path, runtime=runtime)
    if channel is not None:
        run = replace(run, split=run.split.with_parts(channel=channel))
    card = attack_run(run, settings, splits, runtime=runtime)
    reasons = {"gradient-vanishes", "quantized", "not-averaged", "averages-out"}
    assert {doubt.code for doubt in card.suspicions} & reasons == expected


def test_auto_under_every_threat_model_and_with_few_images(tmp_path, tiny_settings, runtime, monkeypatch):
    monkeypatch.setitem(auto._SIZES, "quick", auto._Size(steps=4, depth=0, width=4, search=4))
    quick = {"attack": "auto", "level": "quick"}
    change = {
        "defenses": ["none"],
        "attacks": [quick, {**quick, "threat_model": "gray-box", "images": 40}],
        "evaluation": {"victims": 12, "threat_model": "black-box"},
    }
    (card,) = audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)
    assert [(attack.kind, attack.threat_model) for attack in card.attacks] == [
        ("decoder", "black-box"), ("decoder", "gray-box"),
    ]  # fmt: skip
    everything, few = card.attacks
    assert few.images == 40 < everything.images
    change["attacks"] = [{**quick, "images": 100_000}]
    with pytest.raises(InputError, match=r"attacks\[0\]\.auto\.images: got 100000; accepted: up to"):
        audit(load_settings([tiny_settings, change]), root=tmp_path / "other", runtime=runtime)
    assert not (tmp_path / "other").exists()


BEYOND = {
    "weights": ("rmle", "black-box", r"rmle\.threat_model: got 'black-box'; accepted: one of white-box"),
    "structure": (
        {"attack": "generator", "structure": "mirror"},
        "black-box",
        r"generator\.structure: got 'mirror'; accepted: guess or auto",
    ),
    "queries": ({"attack": "decoder", "queries": 1}, "gray-box", r"decoder\.queries: got 1; accepted: at least 2"),
    "means": (
        {"attack": "latent_prior", "queries": 7, "observations": 4},
        "white-box",
        r"latent_prior\.queries: got 7; accepted: at least 8",
    ),
    "images": ({"attack": "gan", "images": 99_999}, "white-box", r"gan\.images: got 99999; accepted: up to"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_what_an_attacker_may_not_do_is_said_before_anything_runs(case, finished, tiny_settings, tmp_path, runtime):
    attack, threat_model, message = BEYOND[case]
    decoder = {"attack": "decoder", "queries": 0}
    change = {"attacks": [attack, "decoder", decoder], "evaluation": {"threat_model": threat_model}}
    settings = load_settings([tiny_settings, change])
    both = rf"(?s)attacks\[0\]\.{message}.*attacks\[2\]\.decoder\.queries: got 0; accepted: at least 2"
    with pytest.raises(InputError, match=both):
        audit(settings, root=tmp_path, runtime=runtime)
    assert not list(tmp_path.iterdir())

    root, trained, _ = finished
    splits = load_data(trained.data, trained.seed)
    label, defense = next(iter(trained.resolved_defenses().items()))
    run = train_run(trained, label, defense, splits, root=root, runtime=runtime)
    before = sorted(run.folder.iterdir())
    with pytest.raises(InputError, match=both):
        attack_run(run, settings, splits, runtime=runtime)
    assert sorted(run.folder.iterdir()) == before


def test_a_budget_that_auto_cannot_do_with_is_said_before_training(tmp_path, tiny_settings, runtime):
    change = {"attacks": [{"attack": "auto", "queries": 3}], "evaluation": {"threat_model": "gray-box"}}
    with pytest.raises(InputError, match=r"^attacks\[0\]\.auto\.queries: got 3; accepted: at least 4"):
        audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)
    assert not list(tmp_path.iterdir())


def test_trained_in_double_precision_deployed_and_attacked_in_single(tmp_path, tiny_settings):
    """Fresh from training and taken from disk."""
    rmle = {"attack": "rmle", "steps": 4, "tv": 0.1, "stages": 2}
    layer = {"precision": "64-true", "defenses": ["cem"], "attacks": [*tiny_settings["attacks"], rmle]}
    settings, runtime = load_settings([tiny_settings, layer]), Runtime(fabric=make_fabric("cpu", "64-true"))
    made = []
    for _ in range(2):
        made += audit(settings, root=tmp_path, runtime=runtime)
        (folder,) = tmp_path.glob("train-*/attack-*")
        shutil.rmtree(folder)
    first, again = (card.model_copy(update={"timing": None}) for card in made)
    assert first == again
    assert first.run.startswith("train-")
    single = load_settings([tiny_settings, layer, {"precision": "32-true"}])
    (other,) = audit(single, root=tmp_path, runtime=Runtime(fabric=make_fabric("cpu")))
    assert other.training.losses != first.training.losses, "it was trained in double precision"


def test_a_fresh_card_is_the_one_that_is_read_again(tmp_path, tiny_settings, runtime):
    """Also where an attack's argument is a tuple, which JSON does not know."""
    ensemble = {"attack": "ensemble", "architectures": ["residual", "transformer"], "depth": 0, "width": 8, "epochs": 1}
    settings = load_settings([tiny_settings, {"defenses": ["none"], "attacks": [ensemble]}])
    (fresh,) = audit(settings, root=tmp_path, runtime=runtime)
    (kept,) = audit(settings, root=tmp_path, runtime=runtime)
    assert fresh == kept
    assert fresh.attacks[0].attack.arguments["architectures"] == ["residual", "transformer"]


def test_attacks_that_images_or_features_do_not_bear_are_said_at_once_and_by_name(tmp_path, tiny_settings, runtime):
    deep, often = {"attack": "deep_prior", "depth": 9}, {"attack": "latent_prior", "halvings": 9}
    change = {"defenses": ["none", "noise"], "attacks": [deep, "decoder", often]}
    with pytest.raises(InputErrors) as caught:
        audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)
    told = [(error.field, error.value, error.accepted.rpartition(" (")[2]) for error in caught.value.errors]
    expected = [("attacks[0].deep_prior.depth", 9), ("attacks[2].latent_prior.halvings", 9)]
    assert told == [(*one, f"defense {label})") for label in ("none", "noise") for one in expected]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("patience", [19, 31])
def test_auto_stopped_between_and_inside_members_ends_in_the_same_card(
    patience, tmp_path, tiny_settings, runtime, monkeypatch
):
    """Every call is stopped after so many steps, wherever that is."""
    monkeypatch.setattr(base, "_BATCH", 5)
    monkeypatch.setitem(auto._SIZES, "quick", auto._Size(steps=20, depth=0, width=4, search=6))
    monkeypatch.setattr(auto, "RMLEAttack", partial(RMLEAttack, stages=2))
    change = {
        "training": {"epochs": 1},
        "defenses": ["noise"],
        "attacks": [{"attack": "auto", "level": "quick", "queries": 4000}],
        "evaluation": {"victims": 12, "threat_model": "white-box"},
    }
    settings = load_settings([tiny_settings, change])
    (whole,) = audit(settings, root=tmp_path / "whole", runtime=runtime)
    assert [attack.kind for attack in whole.attacks] == ["decoder", "rmle", "decoder"]
    places, kept = set(), 0
    for _ in range(60):
        steps = itertools.count(1)
        asked = replace(runtime, should_stop=lambda steps=steps: next(steps) >= patience)
        try:
            (card,) = audit(settings, root=tmp_path / "stopped", runtime=asked)
            break
        except Interrupted as stop:
            places.add(str(stop).split()[1])
            kept = max(kept, len(list(tmp_path.rglob("victims*.safetensors"))))
    assert card.fingerprint() == whole.fingerprint()
    assert len(places) > 1, "inside of trainings, of searches, and after batches of victims"
    assert kept > 6, "batches of several members"
    assert not list(tmp_path.rglob("attack-*/**/*.safetensors"))


def test_an_audit_goes_on_behind_the_attacks_that_are_done(tmp_path, tiny_settings, runtime, monkeypatch):
    """Stopped in its second attack; called again it does not run the first anew."""
    weak = tiny_settings["attacks"][0]
    change = {"defenses": ["none"], "attacks": [weak, {**weak, "width": 5}]}
    settings, ran, run = load_settings([tiny_settings, change]), [], DecoderAttack.run

    def watched(self, *args, **kwargs):
        ran.append(self.width)
        if len(ran) == 2:
            raise Interrupted("stopped")
        return run(self, *args, **kwargs)

    monkeypatch.setattr(DecoderAttack, "run", watched)
    with pytest.raises(Interrupted):
        audit(settings, root=tmp_path, runtime=runtime)
    (card,) = audit(settings, root=tmp_path, runtime=runtime)
    assert ran == [4, 5, 5]
    (whole,) = audit(settings, root=tmp_path / "whole", runtime=runtime)
    assert card.fingerprint() == whole.fingerprint()


def test_a_run_is_opened_again_and_refused_if_its_data_changed(finished, tiny_settings, runtime):
    root, _, _ = finished
    folder = next(root.glob("train-*"))
    settings = load_settings([reopen.settings_of(folder), {"attacks": [{**tiny_settings["attacks"][0], "width": 3}]}])
    run, splits = reopen.run_of(folder, settings, runtime=runtime)
    assert run.folder.resolve() == folder.resolve()
    assert len(splits.test) > 0
    changed = load_settings([reopen.settings_of(folder), {"data": {"train_limit": 250}}])
    with pytest.raises(InputError, match="images, version and device"):
        reopen.run_of(folder, changed, runtime=runtime)


def test_real_photographs(shared_data, tmp_path, tiny_settings, runtime):
    change = {
        "data": {
            "source": "cifar10",
            "path": str(shared_data / "cifar10-small"),
            "train_limit": 200,
            "test": None,
            "test_limit": 50,
        },
        "defenses": ["dist_corr"],
    }
    card = audit(load_settings([tiny_settings, change]), root=tmp_path, runtime=runtime)[0]
    assert card.data.image_shape == (3, 32, 32)
    assert "airplane" in card.data.classes
    assert _pixels(card.attacks[0].examples[0].original).shape == (32, 32, 3)


def _pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), dtype=float) / 255


def _weights(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("model.safetensors"))}
