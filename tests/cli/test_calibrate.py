"""``sfumato calibrate``: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sfumato.attacks import DecoderAttack
from sfumato.audit import Attacked, Calibration, Sizes
from sfumato.cli import run
from sfumato.information import STANDARD_BEDS, Estimate, Fitting

CALIBRATE = ["calibrate", "--bed", "smooth", "--sigma", "0.05"]


@pytest.fixture
def few(monkeypatch):
    """A few images and samples in place of thousands."""
    from sfumato.cli import calibrate

    whole = calibrate.measure

    def measure(name: str, bed, **options) -> Calibration:
        return whole(name, bed, sizes=Sizes(128, 32, 400, 500), **options)

    monkeypatch.setattr(calibrate, "measure", measure)
    monkeypatch.setattr(calibrate, "CALIBRATION_ATTACK", DecoderAttack(depth=0, width=2, epochs=1, batch_size=64))


def told(capsys, *arguments: str) -> dict:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_beds_at_two_noise_levels(few, capsys):
    content = told(capsys, "calibrate", "--no-attack")
    assert content["holds"] is True
    found = [(row["bed"], row["figures"]["sigma"]) for row in content["rows"]]
    assert found == [(name, sigma) for name in STANDARD_BEDS for sigma in (0.03, 0.1)]
    for row in content["rows"]:
        assert row["attack"] is None
        assert row["verdict"] == "holds"
        assert row["broken"] == []
        figures = row["figures"]
        assert figures["bound"]["value"] <= figures["mmse"]["value"] * (1 + 1e-9)
        assert figures["information"]["value"] <= figures["rate"]
        assert row["measured"]["error"] > 0


def test_the_number_of_threads_is_left_alone(few, capsys):
    torch.set_num_threads(2)
    found = told(capsys, *CALIBRATE)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert told(capsys, *CALIBRATE) == found


def test_the_whole_range_of_noise_holds(few, capsys):
    content = told(capsys, "calibrate", "--no-attack", "--sigma", "1e-5", "1e-3", "1000")
    assert [row["verdict"] for row in content["rows"]] == ["holds"] * 12


def test_options(few, capsys):
    content = told(capsys, "calibrate", "--no-attack", "--bed", "moods", "white", "--sigma", "0.2", "0.5")
    assert [(row["bed"], row["figures"]["sigma"]) for row in content["rows"]] == [
        *(("moods", 0.2), ("moods", 0.5), ("white", 0.2), ("white", 0.5))
    ]
    first, again, other = (
        told(capsys, *CALIBRATE, "--no-attack", "--seed", seed)["rows"][0]["measured"] for seed in ("1", "1", "2")
    )
    assert first == again != other


@pytest.mark.parametrize("side", [12, 16])
def test_the_side_of_the_images(few, capsys, side):
    content = told(capsys, "calibrate", "--no-attack", "--side", str(side), "--sigma", "0.1")
    assert [row["figures"]["dim"] for row in content["rows"]] == [side**2] * 4
    assert [row["verdict"] for row in content["rows"]] == ["holds"] * 4
    # All pixels of `white` are sent: the same nats for each at any size.
    white = content["rows"][0]["figures"]
    assert white["information"]["value"] / side**2 == pytest.approx(49.91 / 144, rel=1e-3)


def test_the_attack_too_meets_images_of_that_side(few, capsys):
    row = told(capsys, *CALIBRATE, "--side", "16")["rows"][0]
    assert row["figures"]["dim"] == 256
    assert row["attack"]["mse"]["value"] > row["measured"]["value"]


def test_the_attack_is_trained_unless_told_not_to(few, capsys):
    row = told(capsys, *CALIBRATE)["rows"][0]
    assert row["attack"]["mse"]["value"] > row["measured"]["value"]
    assert row["attack"]["ratio"]["value"] > 1.03
    assert row["verdict"] == "holds; attack falls short"
    assert told(capsys, *CALIBRATE, "--attack")["rows"][0] == row
    assert run(CALIBRATE) == 0
    shown = capsys.readouterr()
    assert "The attack comes within 3% of the minimum on 0," in shown.out
    assert "smooth, σ = 0.05 (decoder)" in shown.err


def test_the_table_fits_a_terminal(few, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["calibrate", "--no-attack"]) == 0
    shown = capsys.readouterr().out
    for word in ("bed", "H(x|z)", "bound", "mmse", "best", "verdict", "moods", "All inequalities hold on all 8."):
        assert word in shown
    assert "attack" not in shown
    assert "…" not in shown
    attacked = [*CALIBRATE, "--bed", "white", "--sigma", "0.03"]
    assert run(attacked) == 0
    shown = capsys.readouterr().out
    assert "ratio" in shown
    assert "…" not in shown


def test_a_broken_inequality_is_exit_code_3(few, capsys, monkeypatch):
    from sfumato.cli import calibrate

    whole = calibrate.measure

    def better_than_best(name: str, bed, **options) -> Calibration:
        return replace(whole(name, bed, **options), attack=Attacked(Estimate(1e-5), Estimate(0.9, 0.001), False))

    monkeypatch.setattr(calibrate, "measure", better_than_best)
    assert run(CALIBRATE) == 3
    assert "1 of 1 do not hold." in capsys.readouterr().out
    assert run([*CALIBRATE, "--json"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert content["holds"] is False
    assert content["rows"][0]["broken"] == ["mmse ≤ attack", "best ≤ attack"]


def test_the_estimators_are_trained_where_asked_for(few, capsys, monkeypatch):
    from sfumato.cli import calibrate

    monkeypatch.setattr(calibrate, "CALIBRATION_FITTING", Fitting(steps=30, batch=64, learning_rate=5e-3))
    asked = [*CALIBRATE, "--no-attack", "--estimators"]
    row = told(capsys, *asked)["rows"][0]
    without = told(capsys, *CALIBRATE, "--no-attack")["rows"][0]
    assert without["bracket"] is None
    figures = row["figures"]["information"]["value"]
    assert row["bracket"]["mine"]["value"] < figures
    assert row["bracket"]["mine"]["error"] > 0
    assert row["bracket"]["club"]["error"] > 0
    assert {**row, "bracket": None, "verdict": ""} == {**without, "verdict": ""}, "nothing else is drawn otherwise"
    monkeypatch.setenv("COLUMNS", "80")
    assert run(asked) == 0
    shown = capsys.readouterr()
    assert f"{row['bracket']['mine']['value']:.2f} ± {row['bracket']['mine']['error']:.2f}" in shown.out
    assert "…" not in shown.out
    assert "smooth, σ = 0.05 (MINE, CLUB)" in shown.err


def test_interrupted(capsys, monkeypatch):
    def stopped(*_: object, **__: object) -> Calibration:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.cli.calibrate.measure", stopped)
    assert run(CALIBRATE) == 130
    shown = capsys.readouterr()
    assert shown.err == "sfumato: stopped; the same command starts anew\n"
    assert shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sigma", "0"], "sigma: got 0.0"),
        (["--sigma", "0.1", "-1"], "sigma: got -1.0"),
        (["--sigma", "1e-6"], "1e-05 to 1000"),
        (["--sigma", "1e4"], "1e-05 to 1000"),
        (["--sigma", "nan"], "sigma: got nan"),
        (["--sigma", "inf"], "sigma: got inf"),
        (["--sigma", "much"], "much"),
        (["--bed", "smoth"], "did you mean smooth?"),
        (["--seed", "-1"], "seed: got -1"),
        (["--seed", str(2**31)], "seed: got 2147483648"),
        (["--seeds", "1"], "--seed"),
        (["--side", "8"], "a multiple of 4 from 12 to 32"),
        (["--side", "14"], "side: got 14"),
        (["--side", "36"], "side: got 36"),
        (["--side", "-12"], "side: got -12"),
        (["--side", "wide"], "wide"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert run(["calibrate", "--no-attack", *arguments]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.out == ""


def test_everything_wrong_is_told_at_once(capsys):
    assert run(["calibrate", "--sigma", "0", "-2", "--bed", "x", "--side", "13", "--seed", "-1"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 5
