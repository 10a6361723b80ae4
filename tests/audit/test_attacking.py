from __future__ import annotations

import dataclasses

import pytest
import torch

from sfumato.attacks import Auto, DecoderAttack, Reconstruction, Scene
from sfumato.audit import attacking
from sfumato.audit.settings import load_settings
from sfumato.errors import InputError
from sfumato.metrics import Quality


def test_the_same_attack_twice_is_refused():
    with pytest.raises(InputError, match=r"attacks\[1\].*something else than attacks\[0\]"):
        load_settings([{"attacks": ["decoder", {"attack": "decoder", "depth": 8}]}])


def result() -> Reconstruction:
    figures = torch.rand(5, generator=torch.Generator().manual_seed(1))
    return Reconstruction(
        images={"test": torch.rand(5, 1, 4, 4), "train": torch.zeros(2, 1, 4, 4)},
        quality={name: Quality(figures, torch.full((5,), torch.inf), -figures) for name in ("train", "test")},
        threat_model="gray-box",
        queries=7,
        owned=9,
        observations=3,
        seconds=1.25,
        figures={"mse_before": 0.5},
        diverged=True,
    )


def test_what_an_attack_made_comes_back(tmp_path):
    made = result()
    assert attacking.kept(tmp_path) is None
    attacking.keep(made, tmp_path)
    again = attacking.kept(tmp_path)
    for field in dataclasses.fields(Reconstruction):
        if field.name not in ("images", "quality"):
            assert getattr(again, field.name) == getattr(made, field.name)
    for group in ("train", "test"):
        assert torch.equal(again.images[group], made.images[group])
        for name in ("mse", "psnr", "ssim"):
            assert torch.equal(getattr(again.quality[group], name), getattr(made.quality[group], name))


def test_what_is_damaged_is_made_again(tmp_path):
    attacking.keep(result(), tmp_path)
    path = tmp_path / attacking.KEPT
    path.write_bytes(path.read_bytes()[:-3])
    assert attacking.kept(tmp_path) is None


def test_what_auto_stands_for_is_run_once():
    scene = Scene("black-box", True, 500, (1, 16, 16), (2, 4, 4))
    members = Auto("quick").members(scene)
    other = DecoderAttack(width=3)
    assert attacking.expanded([members[1], other, Auto("quick")], scene) == (members[1], other, members[0])
    assert attacking.expanded([Auto("quick"), Auto("standard")], scene)[:2] == members


@pytest.mark.parametrize(("threat_model", "cost"), [("white-box", 0), ("gray-box", 2), ("black-box", 2)])
def test_what_auto_alone_brings_in_is_charged(threat_model, cost):
    scene = Scene(threat_model, True, 500, (1, 16, 16), (2, 4, 4))
    first, *others = Auto("quick").members(scene)
    entries = [DecoderAttack(width=3), first, Auto("quick")]
    found = attacking.expanded(entries, scene)
    assert attacking.charges(entries, found, scene) == (0, 0, *[cost] * len(others))


def test_each_auto_is_charged_for_what_it_may_touch():
    scene = Scene("white-box", True, 500, (1, 16, 16), (2, 4, 4))
    entries = [Auto("quick"), Auto("quick", threat_model="black-box")]
    found = attacking.expanded(entries, scene)
    charged = dict(zip(found, attacking.charges(entries, found, scene), strict=True))
    assert {attack.threat_model: queries for attack, queries in charged.items()} == {None: 0, "black-box": 2}
    assert [attack.name for attack in found] == ["decoder", "rmle", "decoder", "decoder", "decoder"]
