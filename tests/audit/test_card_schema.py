from __future__ import annotations

import json
import re

import pytest
from pydantic import ValidationError

from sfumato.audit import Card, audit, load_settings
from sfumato.errors import CorruptFileError, InputError, StorageError
from sfumato.training import Runtime, make_fabric


@pytest.fixture(scope="module")
def card(tmp_path_factory, tiny_settings):
    settings = load_settings([tiny_settings, {"defenses": ["noise"]}])
    runtime = Runtime(fabric=make_fabric("cpu"))
    return audit(settings, root=tmp_path_factory.mktemp("runs"), runtime=runtime)[0]


def test_a_card_is_read_back_as_it_was_written(card, tmp_path):
    card.save(tmp_path / "card.json")
    assert Card.load(tmp_path / "card.json") == card


def test_the_fingerprint_is_blind_to_the_clock_and_to_nothing_else(card):
    later = card.model_copy(update={"timing": card.timing.model_copy(update={"train_seconds": 1e6})})
    assert later.fingerprint() == card.fingerprint()
    better = card.model_copy(update={"utility": card.utility.model_copy(update={"test_accuracy": 1.0})})
    assert better.fingerprint() != card.fingerprint()


def test_a_card_of_a_newer_schema_is_refused_in_one_line(card, tmp_path):
    content = json.loads(card.model_dump_json()) | {"schema_version": 2, "something": "new"}
    (tmp_path / "card.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"schema_version: got 2; accepted: up to 1; a newer sfumato"):
        Card.load(tmp_path / "card.json")


def test_a_card_says_its_version(card, tmp_path):
    content = json.loads(card.model_dump_json())
    del content["schema_version"]
    for wrong in (content, [content], "card"):
        (tmp_path / "card.json").write_text(json.dumps(wrong))
        with pytest.raises(CorruptFileError, match="is not a card: it has no schema_version"):
            Card.load(tmp_path / "card.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not a card"),
        (lambda text: "[]", "no schema_version"),
        (lambda text: text.replace('"test_accuracy"', '"test_acuracy"'), "utility.test_accuracy"),
        (lambda text: re.sub(r'"queries": (?=\d)', '"queries": -', text), "queries"),
    ],
)
def test_a_damaged_card_is_refused_and_the_field_named(card, tmp_path, damage, message):
    path = tmp_path / "card.json"
    path.write_text(damage(card.model_dump_json(indent=1)))
    with pytest.raises(CorruptFileError, match=message) as caught:
        Card.load(path)
    assert "\n" not in str(caught.value)


def test_no_card_at_all(tmp_path):
    with pytest.raises(InputError, match="a readable card"):
        Card.load(tmp_path / "nothing.json")


def test_a_figure_that_is_no_number_is_refused_when_the_card_is_made(card):
    content = card.model_dump()
    content["worst_case"]["ssim"] = float("nan")
    with pytest.raises(ValidationError, match="finite number"):
        Card.model_validate(content)


def test_an_attack_that_judged_no_image_is_refused(card):
    content = card.model_dump()
    content["attacks"][0]["test_ssim"] = []
    with pytest.raises(ValidationError, match="at least 1 item"):
        Card.model_validate(content)


def test_figures_of_different_numbers_of_images_are_refused(card, tmp_path):
    content = json.loads(card.model_dump_json())
    content["attacks"][0]["test_ssim"].pop()
    with pytest.raises(ValidationError, match="test_mse is of 24 images, test_ssim of 23"):
        Card.model_validate(content)
    (tmp_path / "card.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match=r"attacks\.0: .*test_ssim of 23"):
        Card.load(tmp_path / "card.json")


def test_a_full_disk_leaves_the_old_card(card, tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    card.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        card.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
