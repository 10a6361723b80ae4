from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from sfumato.audit import Card, load_settings, preset, read_yaml
from sfumato.audit.settings import PRESETS as AUDITS
from sfumato.audit.settings import Settings
from sfumato.cli import run
from sfumato.cli.catalogue import CATALOGUE, as_blocks
from sfumato.data import PRESETS
from sfumato.errors import StorageError
from sfumato.models import BACKBONES, build, split


@pytest.fixture
def config(tmp_path, tiny_settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "audit.yaml"
    path.write_text(yaml.safe_dump(dict(tiny_settings)))
    return str(path)


def test_audit_report_attack_and_train_hang_together(config, tmp_path, capsys):
    assert run(["audit", "--config", config, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["defense"] for row in told["rows"]] == ["none", "cem"]
    assert [(row["defense"], row["attack"]) for row in told["attacks"]] == [("none", "decoder"), ("cem", "decoder")]
    assert (tmp_path / "sfumato-page" / "page.html").read_text().startswith("<!doctype html>")

    assert run(["report", told["cards"], "--out", "again", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == told["rows"]
    assert (tmp_path / "again" / "page.html").read_bytes() == (tmp_path / "sfumato-page" / "page.html").read_bytes()

    assert run(["train", "--config", config, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [r["defense"] for r in runs] == ["none", "cem"]

    weaker = '{"attack": "decoder", "depth": 0, "width": 2, "epochs": 1}'
    assert run(["attack", runs[1]["run"], "--attacks", weaker, "--evaluation.threat-model", "black-box", "--json"]) == 0
    capsys.readouterr()
    card = Card.load(next((tmp_path / "sfumato-attack" / "cards").iterdir()))
    assert (card.defense.label, card.attacks[0].threat_model) == ("cem", "black-box")
    assert card.attacks[0].attack.arguments["width"] == 2
    blind = ["--attacks", "rmle", "--evaluation.threat-model", "black-box"]
    assert run(["attack", runs[1]["run"], *blind, "--out", "none"]) == 2
    assert "attacks[0].rmle.threat_model: got 'black-box'; accepted: one of white-box" in capsys.readouterr().err

    cards = [str(tmp_path / folder / "cards") for folder in ("sfumato-page", "sfumato-attack")]
    assert run(["report", *cards, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 3
    assert len(list((tmp_path / "sfumato-report" / "cards").iterdir())) == 3
    _report_of_two_attacks_has_a_table_by_attack(card, tmp_path, capsys)
    kept = tmp_path / "sfumato-page"
    assert (kept / "page.html").read_bytes() == (tmp_path / "again" / "page.html").read_bytes(), (
        "the audit's page stays"
    )
    assert len(list((kept / "cards").iterdir())) == 2


def _report_of_two_attacks_has_a_table_by_attack(card, tmp_path, capsys):
    one = card.attacks[0]
    other = one.model_copy(update={"attack": one.attack.model_copy(update={"name": "other"})})
    for name, attacks in (("one", [one]), ("two", [one, other])):
        card.model_copy(update={"attacks": attacks}).save(tmp_path / f"{name}.json")
        assert run(["report", str(tmp_path / f"{name}.json"), "--out", f"of-{name}"]) == 0
        assert ("Wins" in capsys.readouterr().out) == (name == "two")


def test_images_of_an_ordinary_size_are_audited(config, tmp_path, capsys):
    """50 pixels: 48 is what doubling the feature's 12 comes to."""
    flags = ["--data.image_size", "50", "--defenses", "none", "noise", "--training.epochs", "1"]
    assert run(["audit", "--config", config, *flags]) == 0
    card = Card.load(tmp_path / "sfumato-page" / "cards" / "01-noise.json")
    assert (card.data.image_shape, card.model.feature_shape[1:]) == ((1, 50, 50), (12, 12))
    assert card.attacks[0].test.mse > 0


def test_what_is_not_ours_in_the_folder_of_cards_stays(config, tmp_path, capsys):
    (tmp_path / "out" / "cards").mkdir(parents=True)
    (tmp_path / "out" / "cards" / "thesis.txt").write_text("mine")
    assert run(["audit", "--config", config, "--out", "out"]) == 0
    assert run(["audit", "--config", config, "--out", "out", "--defenses", "none"]) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "cards").iterdir())
    assert names == ["00-none.json", "thesis.txt"]


def test_an_unknown_flag_beside_a_value_that_cannot_be_read(capsys):
    assert run(["attack", ".", "--nonsense=3", "--attacks", "{bad"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "sfumato: Unknown option: --nonsense"
    assert second.startswith("sfumato: attacks: got '{bad'; accepted: ")


def test_a_table_without_both_columns_names_both(tmp_path, capsys):
    table = pyarrow.table({"picture": [b""], "kind": [0]})
    pyarrow.parquet.write_table(table, tmp_path / "odd.parquet")
    assert run(["audit", "--data.source", str(tmp_path / "odd.parquet")]) == 2
    err = capsys.readouterr().err
    assert "data.image_column" in err
    assert "data.label_column" in err


def test_old_cards_go_when_the_new_page_is_there_and_not_before(config, tmp_path, monkeypatch, capsys):
    assert run(["audit", "--config", config, "--out", "out"]) == 0
    before = sorted((tmp_path / "out").rglob("*.json"))

    def full(*_: object) -> None:
        raise StorageError("no space left on the disk")

    monkeypatch.setattr("sfumato.cli.commands.write_page", full)
    assert run(["audit", "--config", config, "--out", "out", "--defenses", "none"]) == 2
    assert sorted((tmp_path / "out").rglob("*.json")) == before


@pytest.mark.parametrize("flag", ["--runs", "--out"])
def test_a_folder_that_cannot_be_is_found_out_before_anything_runs(config, tmp_path, capsys, flag):
    (tmp_path / "taken").write_text("a file")
    assert run(["audit", "--config", config, flag, "taken/deeper"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sfumato: cannot write taken/deeper: ")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


@pytest.mark.parametrize(
    ("label", "shown"), [("0.1", "0.1"), ("3", "3"), ("true", None), ("[a]", None), ("''", None), ("{a: 1}", None)]
)
def test_labels_are_text_or_numbers(config, tmp_path, capsys, label, shown):
    settings = yaml.safe_load(Path(config).read_text())
    settings["defenses"] = [{"recipe": "none", "label": yaml.safe_load(label)}]
    Path("labels.yaml").write_text(yaml.safe_dump(settings))
    assert run(["audit", "--config", "labels.yaml", "--json"]) == (0 if shown else 2)
    told = capsys.readouterr()
    if shown:
        assert json.loads(told.out)["rows"][0]["defense"] == shown
    else:
        assert told.err.startswith("sfumato: defenses[0].label: got ")
        assert not (tmp_path / "runs").exists()


def test_the_terminal_shows_table_verdict_and_page(config, capsys):
    assert run(["audit", "--config", config, "--defenses", "none"]) == 0
    shown = capsys.readouterr().out
    assert "Defense" in shown
    assert "page.html" in shown
    assert "certificate" in shown


def test_a_bar_shows_how_far_the_images_are_decoded(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    photos(tmp_path / "photos", each=40)
    flags = ["--data.source", "photos", "--defenses", "none", "--training.batch_size", "16"]
    assert run(["train", "--config", config, *flags]) == 0
    assert "decode photos" in capsys.readouterr().err
    assert run(["train", "--config", config, *flags, "--seed", "1"]) == 0
    assert "decode photos" not in capsys.readouterr().err


def test_flags_override_the_file(config, capsys):
    flags = ["--defenses", "none", "noise", '{"recipe": "noise", "sigma": 0.5}', "--training.epochs", "1", "--seed=3"]
    assert run(["train", "--config", config, *flags, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [r["defense"] for r in runs] == ["none", "noise", "noise (sigma=0.5)"]
    assert all(r["epoch_kept"] == 0 for r in runs)


@pytest.mark.parametrize("kind", list(CATALOGUE))
def test_list(kind, capsys):
    assert run(["list", kind, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [kind]
    assert all(row["name"] for row in told[kind])
    assert run(["list", kind]) == 0
    assert told[kind][0]["name"] in capsys.readouterr().out


def listed(kind, capsys, monkeypatch):
    """Rows by name as JSON, and the text on 80 columns without spaces and line ends."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["list", kind, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)[kind]}
    assert run(["list", kind]) == 0
    return rows, "".join(capsys.readouterr().out.split())


def words_in(value):
    if isinstance(value, dict):
        return [word for pair in value.items() for part in pair for word in words_in(part)]
    text = " ".join(value) if isinstance(value, list) else str(value)
    return [word for word in re.split(r"[\s:,]+", text) if word]


@pytest.mark.parametrize("kind", list(CATALOGUE))
@pytest.mark.parametrize("width", [80, 50])
def test_list_is_a_block_per_entry_with_every_word_whole(kind, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    rows = CATALOGUE[kind]()
    assert [line.split("  ")[0] for line in lines[1:] if line[:1].strip()] == [row["name"] for row in rows]
    for row, block in zip(rows, "\n".join(lines[1:]).split("\n\n"), strict=True):
        head, *rest = block.strip("\n").splitlines()
        assert head.startswith(f"{row['name']}  {row['what'].split()[0]}")
        fields = [line.strip().partition(":")[0] for line in rest if re.match(r"  \S", line)]
        assert fields == [name for name, value in row.items() if name not in ("name", "what") and value != ""]
        shown = re.split(r"[\s:,]+", block)
        cells = {name: value for name, value in row.items() if name not in ("name", "sets") and value != ""}
        told = {word for cell in cells.items() for part in cell for word in words_in(part)}
        assert told <= {*shown, "what"}


def test_list_breaks_a_word_only_where_it_is_wider_than_the_terminal():
    console = Console(width=20, file=io.StringIO())
    hub_id = "somebody/a-data-set-of-faces"
    console.print(as_blocks("data", [{"name": "faces", "what": "[faces]", "hub": hub_id[:16], "long": hub_id}]))
    text = console.file.getvalue()
    lines = [line.rstrip() for line in text.splitlines()[1:]]
    assert lines == ["faces  [faces]", "  hub:", f"    {hub_id[:16]}", f"  long: {hub_id[:12]}", f"    {hub_id[12:]}"]


def test_runs_are_listed_by_their_first_column_and_an_empty_mapping_is_none():
    console = Console(width=80, file=io.StringIO())
    console.print(as_blocks("runs", [{"defense": "cem", "run": "runs/1", "epoch": 0, "set": {}, "why": ""}]))
    assert console.file.getvalue().splitlines()[1:] == ["cem", "  run: runs/1", "  epoch: 0", "  set: none"]


def test_list_data_says_where_from_on_what_terms_and_what_is_done_to_it(capsys, monkeypatch):
    rows, table = listed("data", capsys, monkeypatch)
    for name, images in PRESETS.items():
        told = [images.hub_id or images.layout or "nothing to download", images.license_note]
        told += map(str, [*(images.mean or ()), *([images.top_classes] if images.top_classes else [])])
        for words in told:
            assert words in json.dumps(rows[name], ensure_ascii=False)
            assert words.replace(" ", "") in table
    cifar = rows["cifar10"]["what is done to it"]
    assert cifar["training images"] == "cropped with a padding of 4, flipped, rotated by up to 15°"
    assert cifar["shares of train set aside"] == "validation 0.1"
    assert rows["digits"]["what is done to it"]["training images"] == "cropped with a padding of 4"
    assert "training images" not in rows["celeba"]["what is done to it"]
    assert rows["celeba"]["what is done to it"]["shares of train set aside"] == "validation 0.1, test 0.1"


def test_list_models_says_where_they_can_be_cut(capsys, monkeypatch):
    rows, table = listed("models", capsys, monkeypatch)
    for name, info in BACKBONES.items():
        network = build(name, 10, (3, info.minimum_size, info.minimum_size), width=0.1, generator=torch.Generator())
        assert rows[name]["default cut"] == network.default_cut
        for cut in rows[name]["cuts"]:
            split(network, cut, image_shape=network.image_shape)
        assert len(rows[name]["cuts"]) == len(network) - 1
        assert ",".join(rows[name]["cuts"]) in table


def test_list_presets_says_what_they_set(capsys, monkeypatch):
    rows, table = listed("presets", capsys, monkeypatch)
    assert {name: row["sets"] for name, row in rows.items()} == {name: preset(name) for name in AUDITS}
    for words in (
        "training:{epochs:16,batch_size:64,",
        ":[none,bottleneck,",
        "{recipe:cem,sigma:0.25,label:cem}",
        "victims:50000",
    ):
        assert words in table


def test_list_everything(capsys):
    assert run(["list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(CATALOGUE)


def test_help_names_every_setting(capsys):
    assert run(["audit", "--help"]) == 0
    text = capsys.readouterr().out
    for section, field in Settings.model_fields.items():
        names = getattr(field.annotation, "model_fields", None)
        for name in names or [section]:
            assert f"--{section}.{name}" if names else f"--{name}" in text


@pytest.mark.parametrize("command", ["audit", "train"])
def test_help_shows_what_holds_without_a_flag(command, capsys):
    assert run([command, "--help"]) == 0
    # However wide the terminal is: what belongs to a flag, on one line.
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    lines = {entry.split()[0]: entry for entry in re.split(r" (?=--[a-z._-]+ [A-Z])", text)}
    expected = {
        "--training.epochs": "[default: 16; 240 with --config]",
        "--training.momentum": "[default: 0.9]",
        "--model.width": "[default: 0.25; 1.0 with --config]",
        "--model.dropout": "[default: 0.0; unset with --config]",
        "--defenses": "[default: none noise dist_corr cem with the preset's arguments; with their own with --config]",
        "--attacks": "[default: decoder with the preset's arguments; with their own with --config]",
        "--data.source": "[default: digits]",
        "--seed": "[default: 0]",
    }
    for name, text in expected.items():
        assert text in lines[name]
    assert "default:" not in lines["--model.cut"]


def test_every_default_of_the_help_is_the_one_that_is_used():
    """Against a twin that reads both ends and not the flags."""
    from sfumato.audit import preset
    from sfumato.cli.commands import _settings, app

    used, plain = _settings(None, None, {}).model_dump(), Settings().model_dump()
    shown = {a.name: a.parameter.help for a in app["audit"].assemble_argument_collection()}
    assert used == Settings.model_validate(preset("digits")).model_dump()
    for section, fields in plain.items():
        for name in fields if isinstance(fields, dict) else ():
            text, own, preset_ = shown[f"--{section}.{name}"], fields[name], used[section][name]
            assert ("with --config]" in text) == (own != preset_), name
            if own == preset_ and own is not None:
                assert text.endswith(f"[default: {own}]"), name


def test_attack_has_flags_for_what_it_reads_alone(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["attack", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--attacks" in text
    assert "--evaluation.victims" in text
    assert "--training.epochs" not in text
    assert "--seed" not in text
    settings = [line for line in text.splitlines() if "--attacks" in line or "--evaluation" in line]
    assert len(settings) == 5
    assert not [line for line in settings if "default" in line], "they are the run's own"


BAD = {
    "nothing to read": (["audit", "--config", "nowhere.yaml"], "nowhere.yaml"),
    "unknown command": (["audti"], "Did you mean"),
    "unknown flag": (["audit", "--data.sorce", "x"], "--data.source"),
    "unknown preset": (["audit", "--preset", "digit"], "did you mean digits?"),
    "unknown defense": (["audit", "--defenses", "cme"], "did you mean cem?"),
    "unknown part": (["audit", "--defenses", '{"part": "nosie"}'], "did you mean noise?"),
    "unknown argument": (["audit", "--defenses", '{"recipe": "noise", "sgma": 1}'], "did you mean sigma?"),
    "negative sigma": (
        ["audit", "--defenses", '{"recipe": "noise", "sigma": -1}'],
        "sfumato: defenses[0].noise.sigma: got -1.0",
    ),
    "no JSON": (["audit", "--defenses", "{recipe: noise}"], "JSON"),
    "label twice": (["audit", "--defenses", "cem", "cem"], "a label that occurs once"),
    "chain and more": (["audit", "--defenses", '{"chain": ["noise"], "sigma": 1}'], "nothing but label beside chain"),
    "chain no list": (["audit", "--defenses", '{"chain": "noise"}'], "a list of recipes"),
    "neither": (["audit", "--defenses", "{}"], "recipe or part"),
    "unknown attack": (["audit", "--attacks", "decodr"], "did you mean decoder?"),
    "attack argument": (["audit", "--attacks", '{"attack": "decoder", "widht": 2}'], "did you mean width?"),
    "attack value": (
        ["audit", "--attacks", '{"attack": "decoder", "epochs": 0}'],
        "sfumato: attacks[0].decoder.epochs: got 0",
    ),
    "unknown backbone": (["audit", "--model.backbone", "vgg12"], "did you mean"),
    "unknown cut": (
        ["audit", "--model.cut", "conv99"],
        "sfumato: model.cut: got 'conv99'; accepted: did you mean conv8? one of conv1",
    ),
    "width": (["audit", "--model.width", "0"], "model.width"),
    "epochs": (["audit", "--training.epochs", "0"], "training.epochs: got '0'"),
    "epochs of cem": (
        ["train", "--training.epochs", "1", "--defenses", "cem"],
        "training.epochs: got 1; accepted: 2 or more with cem, which is not at work before epoch 2",
    ),
    "not a number": (["audit", "--training.lr", "fast"], "training.lr: got 'fast'"),
    "schedule": (["audit", "--training.schedule", "stepp"], "accepted: did you mean step? one of "),
    "channels": (["audit", "--data.channels", "2"], "data.channels: got '2'; accepted: one of 1, 3"),
    "data path": (["audit", "--data.source", "./nowhere/at/all"], "data.source: got './nowhere/at/all'"),
    "no card": (["report", "nothing.json"], "nothing.json"),
    "no cards": (["report", "."], "a folder that holds some"),
    "no run": (["attack", "."], "run.json"),
    "attack reads no training": (["attack", ".", "--training.epochs", "3"], "attack reads attacks and evaluation"),
    "attack has no seed": (["attack", ".", "--seed=3"], "--seed. Of the settings, attack reads attacks and eval"),
    "checkpoint seconds": (["audit", "--checkpoint-seconds", "-4"], '"-4.0" for --checkpoint-seconds. Must be >= 0'),
    "no number of seconds": (["attack", ".", "--checkpoint-seconds=nan"], '"nan" for --checkpoint-seconds. Must be'),
    "image too small to judge": (
        ["audit", "--data.image_size", "8", "--model.backbone", "resnet20"],
        "sfumato: data.image_size: got (8, 8); accepted: at least 11×11, the window of SSIM",
    ),
    "image too small for the network": (
        ["train", "--data.image_size", "16", "--model.backbone", "vgg16"],
        "sfumato: data.image_size: got (16, 16); accepted: at least 32×32 for vgg16",
    ),
    "attacker with one image": (
        ["audit", "--evaluation.knowledge", "auxiliary", "--data.auxiliary", "0.0006"],
        "sfumato: data.auxiliary: got 0.0006; accepted: a share of two images or more",
    ),
    "nothing left to train on": (
        ["train", "--data.validation", "0.6", "--data.test", "0.6"],
        "sfumato: data.validation + data.auxiliary + data.test: got 1.2; accepted: less than 1",
    ),
    "second of two defenses": (
        ["audit", "--defenses", "noise", '{"recipe": "noise_arl", "sigma": -1}'],
        "sfumato: defenses[1].noise.sigma: got -1.0",
    ),
    "list what": (["list", "cats"], "Choose from"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[case]
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert "Traceback" not in err + out
    assert err.startswith("sfumato: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was left behind"


def photos(folder: Path, each: int = 4) -> Path:
    """A folder of gray images of two classes, each of another shade."""
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            Image.new("L", (32, 32), 3 * i).save(folder / label / f"{i}.png")
    return folder


def truncated(folder: Path) -> list[str]:
    image = photos(folder / "photos") / "cat" / "1.png"
    image.write_bytes(image.read_bytes()[:50])
    return ["audit", "--data.source", str(folder / "photos")]


def empty_class(folder: Path) -> list[str]:
    (photos(folder / "photos") / "owl").mkdir()
    return ["audit", "--data.source", str(folder / "photos")]


def empty_class_of_a_copy(folder: Path) -> list[str]:
    (photos(folder / "photos") / "owl").mkdir()
    return ["train", "--data.source", "facescrub", "--data.path", str(folder / "photos")]


def label_out_of_range(folder: Path) -> list[str]:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    table = pyarrow.table({"image": [b""] * 2, "label": [1, 5]})
    file = folder / "odd.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(names).encode()}), file)
    return ["train", "--data.source", str(file)]


def newer_card(folder: Path) -> list[str]:
    (folder / "card.json").write_text('{"schema_version": 99}')
    return ["report", str(folder)]


def damaged_run(folder: Path) -> list[str]:
    (folder / "run.json").write_text('{"label": "none"')
    return ["attack", str(folder)]


BAD_FILES = [
    (truncated, "sfumato: image: got 'photos/cat/1.png'; accepted: a whole image that Pillow can read"),
    (empty_class, "sfumato: data.source: got 'photos/owl'; accepted: at least one image in each class folder"),
    (empty_class_of_a_copy, "sfumato: data.path: got 'facescrub/owl'; accepted: at least one image in each class"),
    (label_out_of_range, "sfumato: data.label_column: got '5 in odd.parquet row 1'; accepted: 0 to 1 (there are 2"),
    (newer_card, "schema_version: got 99; accepted: up to 1; a newer sfumato wrote this card"),
    (damaged_run, "remove the folder to train again"),
]


@pytest.mark.parametrize(("make", "expected"), BAD_FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_file_is_one_line_and_exit_code_2(make, expected, tmp_path, monkeypatch, capsys):
    for name in ("files", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    assert run(make(tmp_path / "files")) == 2
    out, err = capsys.readouterr()
    *bars, line = err.splitlines()  # decoding shows its progress
    assert line.startswith("sfumato: ")
    assert expected in line
    assert all(bar.startswith("decode photos") for bar in bars)
    assert "Traceback" not in err + out
    assert not list((tmp_path / "here").iterdir()), "something was left behind"
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_never_used(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    source = str(photos(tmp_path / "photos", each=40))
    call = ["train", "--config", config, "--data.source", source, "--defenses", "none", "--json"]
    assert run([*call, "--training.batch_size", "16"]) == 0
    told = capsys.readouterr().out
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    good = file.read_bytes()
    file.unlink()  # its pages are still mapped
    file.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    assert run([*call, "--training.batch_size", "16"]) == 0
    assert capsys.readouterr().out == told, "the run of the same pixels"
    assert file.read_bytes() == good


@pytest.mark.parametrize("beside", [[], ["none"]])
@pytest.mark.parametrize("flag", ["defenses", "attacks"])
def test_a_mapping_that_is_no_json_is_told_by_its_field_alone(flag, beside, capsys):
    assert run(["audit", f"--{flag}", *beside, "{recipe: noise}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"sfumato: {flag}: got '{{recipe: noise}}'; accepted: a name, or JSON such as ")
    assert err.count("\n") == err.count(flag) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {epochs: 0, lr: -1}\ndefenses: [cme]", ["training.epochs", "training.lr", "defenses[0]"]),
        ("training: {epochs: 0}\ndefenses: [cme]\nattacks: 3", ["training.epochs", "mean cem?", "attacks"]),
        ("defenses: [cme, noies]\nattacks: [dcoder]", ["defenses[0]", "defenses[1]", "attacks[0]"]),
        (
            "training: {epochs: 1, lr: -1}\ndefenses: [noise, cem, cme]",
            ["training.lr", "mean cem?"],  # how long the training would be is not known yet
        ),
        (
            "training: {epochs: 1}\ndefenses: [none, noise_arl_cem, slot, {recipe: cem, weight: 1}]",
            [
                "training.epochs: got 1; accepted: 2 or more with cem, ",
                "training.epochs: got 1; accepted: 2 or more with slot_attention, ",
            ],
        ),
        ("trainin: {epochs: 1}", ["did you mean training?"]),
        ("training: {epoch: 1}", ["did you mean epochs?"]),
        ("defenses: []", ["at least one"]),
        ("defenses: 3", ["defenses: got 3; accepted: a name, a mapping, or a list of these"]),
        ("attacks:", ["attacks: got None; accepted: a name, a mapping, or a list of these"]),
        ("defenses: [none, 3, [cem]]", ["defenses[1]: got 3; accepted: a name, or a mapping", "defenses[2]"]),
        ("attacks: []", ["at least one"]),
        (
            "data: {train_splits: 3}\nmodel: vgg11\ntraining: 3",
            [
                "data.train_splits: got 3; accepted: a list",
                "model: got 'vgg11'; accepted: a mapping of fields",
                "training: got 3; accepted: a mapping of fields",
            ],
        ),
        ("- a list", ["a mapping of fields, not a list"]),
        ("a: [", ["YAML"]),
    ],
)
def test_everything_wrong_in_a_file_is_told_at_once(text, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    assert run(["audit", "--config", "bad.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == len(expected)
    for words in expected:
        assert words in err


def test_everything_wrong_in_flags_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = ["--data.sorce", "x", "--nonsense=3", "--training.schedule", "stepp", "--training.lr", "fast", "--seed=-1"]
    assert run(["audit", *bad, "--defenses", "cme"]) == 2
    lines = capsys.readouterr().err.splitlines()
    told = ("--data.sorce. Did you mean --data.source?", "--nonsense", "step?", "lr: got 'fast'", "seed:", "mean cem?")
    for words in told:
        assert len([line for line in lines if words in line]) == 1, words
    assert len(lines) == len(told)
    assert all(line.startswith("sfumato: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("report --bogus", ["Unknown option: --bogus", "CARD requires an argument"]),
        ("report nothing.json --bogus --fail_iff x", ["--bogus", "Did you mean --fail_if?"]),
        ("attack . --bogus --checkpoint-seconds abc", ["--bogus", "--checkpoint-seconds: unable"]),
        ("attack . --attacks decodr --bogus 3", ["--bogus", "attacks[0].attack: got 'decodr'"]),
        ("attack . .. --checkpoint-seconds=-1 --attacks {bad", ['"-1.0" for --checkpoint-seconds', "got '{bad'"]),
        ("attack . --attacks decodr --evaluation.victims 0", ["evaluation.victims: got '0'", "did you mean decoder?"]),
        ("bench --size foo --bogus", ["--bogus", '"foo" for --size']),
        ("bench --bogus --size foo", ["--bogus", '"foo" for --size']),
        ("bench --seeds 1 x 2 --bogus", ["--bogus", "--seeds: unable"]),
        ("calibrate --side x --bogus", ["--bogus", "--side: unable"]),
        ("calibrate --sigma x --side=y --seed 1", ["--sigma: unable", "--side: unable"]),
        ("list cats --bogus", ["--bogus", '"cats" for KIND']),
        ("audit --bogus 1 --checkpoint-seconds abc", ["--bogus", "--checkpoint-seconds: unable"]),
        ("audit --checkpoint-seconds abc --seed -2", ["--checkpoint-seconds: unable", "seed: got '-2'"]),
        ("audit --checkpoint-seconds -1 --seed -2", ['"-1.0" for --checkpoint-seconds', "seed: got '-2'"]),
        ("train --preset nope --seed -2", ["preset: got 'nope'", "seed: got '-2'"]),
        ("train --config nowhere.yaml --preset nope", ["preset: got 'nope'", "config: got 'nowhere.yaml'"]),
        ("audit a b --seed -2", ["['a', 'b']", "seed: got '-2'"]),
        (
            "audit --defenses none {bad --attacks {worse --training.augment none --training.lr fast",
            ["defenses: got '{bad'", "attacks: got '{worse'", "training.lr: got 'fast'"],
        ),
        ("audit --bogus --seed", ["--bogus", "--seed requires an argument"]),
    ],
)
def test_everything_wrong_on_a_command_line_is_told_at_once(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(words.split()) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert all(text in line for text, line in zip(expected, lines, strict=True)), err
    assert all(line.startswith("sfumato: ") for line in lines)
    assert not out


def test_a_choice_that_is_a_number_is_read_as_one(capsys):
    assert run(["audit", "--data.channels", "3", "--data.source", "./nowhere"]) == 2
    assert capsys.readouterr().err.startswith("sfumato: data.source")


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ({"defenses": "cem"}, {"defenses": ["cem"]}),
        ({"defenses": {"recipe": "noise", "sigma": 0.5}}, {"defenses": [{"recipe": "noise", "sigma": 0.5}]}),
        ({"attacks": "decoder"}, {"attacks": ["decoder"]}),
        ({"attacks": {"attack": "decoder", "depth": 1}}, {"attacks": [{"attack": "decoder", "depth": 1}]}),
        (
            {"data": {"train_splits": "train", "test_splits": "valid"}},
            {"data": {"train_splits": ["train"], "test_splits": ["valid"]}},
        ),
    ],
)
def test_one_entry_is_a_list_of_one(one, several):
    assert load_settings([preset("digits"), one]) == load_settings([preset("digits"), several])


def test_one_entry_replaces_another_whole():
    first, second = {"defenses": {"recipe": "noise", "sigma": 0.5}}, {"defenses": {"recipe": "dropout"}}
    assert list(load_settings([first, second]).resolved_defenses()) == ["dropout"]


def test_an_empty_file_is_the_defaults_of_the_fields(tmp_path, monkeypatch, capsys):
    from sfumato.cli.commands import _settings

    (tmp_path / "empty.yaml").write_text("")
    assert _settings(None, tmp_path / "empty.yaml", {}) == Settings()
    assert _settings(None, None, {}).model.width == 0.25
    assert _settings("digits", tmp_path / "empty.yaml", {"seed": "4"}).seed == 4


def test_an_empty_section_says_nothing(tmp_path):
    (tmp_path / "audit.yaml").write_text("data:\nmodel:\ntraining:\nevaluation:\nseed: 3\n")
    told = read_yaml(tmp_path / "audit.yaml")
    assert load_settings([told]) == Settings(seed=3)
    assert load_settings([preset("digits"), told]) == load_settings([preset("digits"), {"seed": 3}])


def test_presets_are_valid():
    from sfumato.audit.settings import PRESETS, load_settings, preset

    for name in PRESETS:
        assert load_settings([preset(name)]).resolved_defenses()


def test_a_full_disk_is_one_line(config, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run(["train", "--config", config]) == 2
    assert "no space left on the disk" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused(config, tmp_path, capsys):
    from sfumato.audit import train_all
    from sfumato.errors import Interrupted
    from sfumato.training import Runtime, make_fabric

    settings = load_settings([read_yaml(config)])
    steps = iter(range(2))
    with pytest.raises(Interrupted):
        train_all(
            settings,
            root=tmp_path / "runs",
            runtime=Runtime(fabric=make_fabric("cpu"), should_stop=lambda: next(steps, None) is None),
        )
    path = next((tmp_path / "runs").rglob("checkpoint.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    assert run(["train", "--config", config]) == 2
    err = capsys.readouterr().err
    assert "does not match its checksum" in err
    assert "checkpoint.safetensors" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_resumable_run_and_says_how_to_resume(config, tmp_path, number):
    command = [
        sys.executable,
        "-m",
        "sfumato",
        "train",
        "--config",
        config,
        "--defenses",
        "none",
        "--training.epochs",
        "400",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").rglob("metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"To go on: {sys.executable} -m sfumato train --config" in err
    assert "Traceback" not in err
    assert list((tmp_path / "runs").rglob("checkpoint.safetensors"))
    assert not list((tmp_path / "runs").rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_images_are_read_stops_at_once(config, tmp_path, monkeypatch, capsys, number):
    from sfumato.cli.interrupt import NOTHING_YET

    def endless(*_: object, **__: object) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        time.sleep(30)

    monkeypatch.setattr("sfumato.data.load", endless)
    before, started = signal.getsignal(number), time.monotonic()
    assert run(["audit", "--config", config]) == 130
    assert time.monotonic() - started < 10
    assert capsys.readouterr().err == (
        f"sfumato: stopped at once; {NOTHING_YET}; to go on: sfumato audit --config {config}\n"
    )
    assert not (tmp_path / "runs").exists()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_training_waits_for_the_step(config, tmp_path, monkeypatch, capsys, number):
    from sfumato.training.split_job import SplitJob

    whole, steps = SplitJob.step, []

    def step(self, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 3:  # in the middle of a step: it is finished all the same, and asked about afterwards
            os.kill(os.getpid(), number)
        return whole(self, *arguments)

    monkeypatch.setattr(SplitJob, "step", step)
    assert run(["train", "--config", config]) == 130
    assert len(steps) == 3
    assert "nothing is lost. To go on: sfumato train --config" in capsys.readouterr().err
    assert list((tmp_path / "runs").rglob("checkpoint.safetensors"))


def test_a_second_ctrl_c_stops_at_once_and_says_what_is_kept(monkeypatch, capsys):
    from sfumato.cli.interrupt import stop_on_interrupt

    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt, match="the last checkpoint is kept"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with stop_on_interrupt(), pytest.raises(KeyboardInterrupt, match="trained nothing yet"):
        os.kill(os.getpid(), signal.SIGINT)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.cli.commands.CATALOGUE", {"data": stopped})
    assert run(["list"]) == 130
    assert capsys.readouterr().err == "sfumato: stopped at once; to go on: sfumato list\n"


def test_the_hint_calls_the_program_as_it_was_called(tmp_path, monkeypatch):
    from sfumato.cli.interrupt import program

    script = tmp_path / ".venv" / "bin" / "sfumato"
    script.parent.mkdir(parents=True)
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [".venv/bin/sfumato", "audit"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == [".venv/bin/sfumato"]
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == ["sfumato"]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sfumato" / "__main__.py")])
    assert program() == [sys.executable, "-m", "sfumato"]
    monkeypatch.setattr(sys, "argv", ["a notebook"])
    assert program() == ["sfumato"]


@pytest.mark.slow
def test_ctrl_c_while_the_program_itself_is_loading(monkeypatch, capsys):
    from sfumato.__main__ import main

    def stopped(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.cli.commands.run", stopped)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "sfumato: stopped at once\n"
    # Nothing heavy is imported before somebody listens.
    code = "import sys, sfumato.__main__; sys.exit(any(name in sys.modules for name in ('torch', 'sfumato.cli')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_of_the_program_is_not_dressed_up(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sfumato.cli.commands.CATALOGUE", {"data": broken})
    with pytest.raises(ZeroDivisionError):
        run(["list"])
