"""Resistance transfer: an edge that starts from another run's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.audit import attack_run, audit, load_settings, reopen, train_run
from sfumato.audit.runs import MODEL, address, edge_weights, load_data, prepare
from sfumato.cli import run
from sfumato.data import ImageSet, Splits
from sfumato.errors import CorruptFileError, InputError
from sfumato.report.provenance import facts
from sfumato.storage import load_state, state_digest
from sfumato.training import Runtime, make_fabric

RES_SFL = {
    "chain": [
        {"part": "bottleneck", "channels": 4},
        {"part": "adversary", "objective": "mse", "alpha": 1.0, "depth": 0, "width": 4, "pretrain_epochs": 1},
    ],
    "label": "small ResSFL",
}
PATROL = {
    "chain": [
        {"part": "deeper_edge", "layers": 1},
        {"part": "bottleneck", "channels": 4},
        {"part": "prune", "at": 0.5},
        {"part": "adversary", "depth": 0, "width": 4},
    ],
    "label": "small PATROL",
}


@pytest.fixture(scope="module")
def runtime():
    return Runtime(fabric=make_fabric("cpu"))


def only(splits: Splits, classes: range) -> Splits:
    """The images of some classes, as a task of their own."""

    def part(images: ImageSet) -> ImageSet:
        mine = images.select(torch.isin(images.labels, torch.tensor(classes)).nonzero().squeeze(1))
        return replace(mine, labels=mine.labels - classes[0], classes=mine.classes[classes[0] : classes[-1] + 1])

    return Splits(part(splits.train), part(splits.validation), part(splits.test))


@pytest.fixture(scope="module", params=[RES_SFL, PATROL], ids=["res_sfl", "patrol"])
def transferred(request, tmp_path_factory, tiny_settings, runtime):
    """A run on digits 0 to 5, and the settings of one on 6 to 9 that starts from its edge."""
    root = tmp_path_factory.mktemp("runs")
    settings = load_settings([tiny_settings, {"defenses": [request.param]}])
    splits = load_data(settings.data, settings.seed)
    (label, defense) = next(iter(settings.resolved_defenses().items()))
    source = train_run(settings, label, defense, only(splits, range(6)), root=root, runtime=runtime)
    after = settings.model_copy(
        update={"model": settings.model.model_copy(update={"edge_from": str(source.folder)}), "seed": 5}
    )
    return source, after, only(splits, range(6, 10)), root


def test_the_edge_starts_from_the_other_runs_and_learns_on(transferred, runtime):
    source, settings, splits, root = transferred
    split, bound = prepare(settings, source.defense, splits)
    start = {name: value.clone() for name, value in split.edge.state_dict().items()}
    trained = source.split.edge.state_dict()
    assert list(start) == list(trained)
    assert all(torch.equal(start[name], trained[name].cpu()) for name in start)
    plain = settings.model_copy(update={"model": settings.model.model_copy(update={"edge_from": None})})
    untransferred, _ = prepare(plain, source.defense, splits)
    # The rest is as it would be without: drawn from the seed, with the new task's classes, an adversary that is new.
    assert all(torch.equal(a, b) for a, b in zip(split.cloud.parameters(), untransferred.cloud.parameters()))
    assert split.eval()(splits.test.images[:3] / 255).shape == (3, 4)
    assert source.split.eval()(splits.test.images[:3] / 255).shape == (3, 6)
    assert bound.state_dict().keys() == source.bound.state_dict().keys()

    tuned = train_run(settings, "tuned", source.defense, splits, root=root, runtime=runtime)
    weights = tuned.split.edge.state_dict()
    moved = [name for name in weights if name.endswith("weight") and not torch.equal(weights[name], start[name])]
    assert len(moved) == len([name for name in weights if name.endswith("weight")])
    assert {name: value.shape for name, value in weights.items()} == {name: v.shape for name, v in start.items()}
    assert any("adversary" in name for name in tuned.fit.history[-1]), "the adversary is on"
    # Found again, not trained again.
    again = train_run(settings, "tuned", source.defense, splits, root=root, runtime=runtime)
    assert again.folder == tuned.folder
    assert all(torch.equal(again.split.edge.state_dict()[name], weights[name]) for name in weights)


def test_the_address_has_the_weights_and_not_the_path(transferred, tmp_path, runtime):
    source, settings, splits, _ = transferred

    def at(edge_from: str | None) -> str:
        model = settings.model.model_copy(update={"edge_from": edge_from})
        return address(settings.model_copy(update={"model": model}), source.defense, splits, runtime)

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("run.json", MODEL):
        (moved / name).write_bytes((source.folder / name).read_bytes())
    assert at(str(moved)) == at(str(source.folder))
    assert at(None) != at(str(source.folder))
    assert set(edge_weights(moved)) == {name for name in load_state(moved / MODEL)["split"] if name.startswith("edge.")}


def test_the_card_and_the_page_say_where_the_edge_began(transferred, runtime):
    source, settings, splits, root = transferred
    tuned = train_run(settings, "tuned", source.defense, splits, root=root, runtime=runtime)
    cards = [
        attack_run(made, made.settings, images, runtime=runtime)
        for made, images in ((source, only(load_data(settings.data, settings.seed), range(6))), (tuned, splits))
    ]
    digest = state_digest("", edge_weights(source.folder))
    assert [card.model.edge_from for card in cards] == [None, digest]
    assert [any(digest in fact.value for fact in facts(card)) for card in cards] == [False, True]


def test_other_weights_have_another_address(transferred, runtime):
    source, settings, splits, root = transferred
    other = train_run(
        source.settings.model_copy(update={"seed": 9}), "other", source.defense, splits, root=root, runtime=runtime
    )
    model = settings.model.model_copy(update={"edge_from": str(other.folder)})
    addresses = {
        address(s, source.defense, splits, runtime) for s in (settings, settings.model_copy(update={"model": model}))
    }
    assert len(addresses) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"cut": "block1"}}, "here, absent there|absent here|is .* here, .* there"),
        ({"model": {"backbone": "resnet20", "width": 0.25}}, "absent"),
        ({"data": {"channels": 3}}, r"\(\d+, 3, 3, 3\) here, \(\d+, 1, 3, 3\) there"),
        ({"defenses": ["bottleneck"]}, r"here, .* there"),
        ({"defenses": ["none"]}, "same layers on the edge"),
    ],
)
def test_an_edge_that_does_not_fit_is_refused_before_training(transferred, change, says, tmp_path, runtime):
    source, settings, _, _ = transferred
    other = load_settings([settings.model_dump(), change])
    with pytest.raises(InputError, match=says) as caught:
        audit(other, root=tmp_path / "none", runtime=runtime)
    assert "model.edge_from" in caught.value.field
    assert str(source.folder) == caught.value.value
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_no_run_there(transferred, tmp_path):
    source, settings, splits, _ = transferred

    def there(folder: Path) -> None:
        model = settings.model.model_copy(update={"edge_from": str(folder)})
        prepare(settings.model_copy(update={"model": model}), source.defense, splits)

    with pytest.raises(InputError, match=r"model.edge_from: got .*; accepted: the folder of a finished training"):
        there(tmp_path)
    (tmp_path / "run.json").write_bytes((source.folder / "run.json").read_bytes())
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is missing"):
        there(tmp_path)
    content = bytearray((source.folder / MODEL).read_bytes())
    content[-3] ^= 1
    (tmp_path / MODEL).write_bytes(content)
    with pytest.raises(CorruptFileError, match="checksum"):
        there(tmp_path)


def test_another_width_is_refused(transferred, runtime):
    """But where the edge is pruned: then its widths are the other run's."""
    source, settings, splits, _ = transferred
    model = settings.model.model_copy(update={"width": 0.1})
    wider = settings.model_copy(update={"model": model})
    if any(part.name == "prune" for part in source.defense.parts()):
        split, _ = prepare(wider, source.defense, splits)
        assert {name: value.shape for name, value in split.edge.state_dict().items()} == {
            name: value.shape for name, value in source.split.edge.state_dict().items()
        }
        return
    with pytest.raises(InputError, match=r"0\.block1\.0\.weight is \(13, 1, 3, 3\) here, \(8, 1, 3, 3\) there"):
        prepare(wider, source.defense, splits)


def write_folder(root: Path, classes: range) -> None:
    """Some classes of the digits as an image folder."""
    splits = only(load_data(load_settings([]).data, 0), classes)
    for name in splits.train.classes:
        (root / name).mkdir(parents=True)
    for i in range(240):
        pixels = splits.train.images[i, 0].numpy()
        Image.fromarray(pixels).save(root / splits.train.classes[int(splits.train.labels[i])] / f"{i}.png")


@pytest.mark.slow
def test_on_the_command_line(tmp_path, tiny_settings, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, classes in (("first", range(6)), ("second", range(6, 10))):
        write_folder(tmp_path / name, classes)
    common = [
        *("train", "--json", "--model.backbone", "cnn", "--model.width", "0.06", "--data.image_size", "32"),
        *("--data.channels", "1", "--training.epochs", "2", "--training.batch_size", "32"),
        *("--defenses", '{"recipe": "res_sfl", "channels": 4}'),
    ]
    assert run([*common, "--data.source", "first"]) == 0
    (first,) = json.loads(capsys.readouterr().out)["runs"]
    assert run([*common, "--data.source", "second", "--model.edge_from", first["run"]]) == 0
    (second,) = json.loads(capsys.readouterr().out)["runs"]
    assert reopen.settings_of(Path(second["run"]))["model"]["edge_from"] == first["run"]
    assert second["run"] != first["run"]
    assert run([*common, "--data.source", "second", "--model.edge_from", "nowhere"]) == 2
    assert "model.edge_from: got 'nowhere'; accepted: the folder of a finished training" in capsys.readouterr().err
    # A run that started elsewhere is opened again and attacked like any other.
    attack = '{"attack": "decoder", "depth": 0, "width": 2, "epochs": 1}'
    assert run(["attack", second["run"], "--attacks", attack, "--evaluation.victims", "20", "--json"]) == 0
