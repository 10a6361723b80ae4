"""``--fail-if``: the gate of continuous integration, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sfumato.audit import Card
from sfumato.cli import run
from sfumato.cli.gate import FAILED


@pytest.fixture(scope="module")
def audited(tmp_path_factory, tiny_settings):
    """A folder with an audit of no defense and CEM, with a judge; run again, it computes nothing."""
    folder = tmp_path_factory.mktemp("audited")
    (folder / "audit.yaml").write_text(yaml.safe_dump({**tiny_settings, "evaluation": {"victims": 24, "judge": True}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["audit", "--config", "audit.yaml"]) == 0
    return folder


@pytest.fixture
def audit(audited, monkeypatch, capsys):
    """Runs the audit again with more flags: exit code, output and error lines."""
    monkeypatch.chdir(audited)
    monkeypatch.setattr("sfumato.audit.runs.train", None)
    monkeypatch.setattr("sfumato.audit.protocol._attack", None)
    capsys.readouterr()

    def again(*flags, command=("audit", "--config", "audit.yaml")):
        words = [*command, *flags]
        code = run(words if "--out" in words else [*words, "--out", "again"])
        told = capsys.readouterr()
        return code, told.out, told.err

    return again


@pytest.fixture
def cem(audited):
    return Card.load(audited / "sfumato-page" / "cards" / "01-cem.json")


def test_a_defense_that_leaks_too_much_fails_and_the_page_is_written(audit, cem, tmp_path):
    code, out, err = audit("--fail-if", "ssim>-1", "--fail-if", "mse<0", "--out", str(tmp_path / "page"))
    assert code == FAILED == 4
    assert err == f"sfumato: cem: ssim is {sum(cem.attacks[0].test_ssim) / 24:.4g}, and must not be above -1\n"
    assert "Gate: failed. Held against cem: ssim>-1, mse<0. Undefended and not checked: none.\n" in out
    assert (tmp_path / "page" / "page.html").is_file()
    assert len(list((tmp_path / "page" / "cards").iterdir())) == 2


def test_a_defense_that_keeps_within_its_budget_passes(audit):
    code, out, err = audit("--fail-if", "ssim>0.99", "mse<0")
    assert (code, err) == (0, "")
    assert "Gate: passed. Held against cem: ssim>0.99, mse<0. Undefended and not checked: none.\n" in out


def test_without_conditions_nothing_is_held_against_anybody(audit):
    code, out, _ = audit()
    assert code == 0
    assert "Gate" not in out
    code, out, _ = audit("--json")
    assert (code, json.loads(out)["gate"]) == (0, None)


def test_an_undefended_model_alone_is_checked(audit):
    code, out, err = audit("--defenses", "none", "--fail-if", "mse<9")
    assert code == FAILED
    assert err.startswith("sfumato: none: mse is ")
    assert "Held against none: mse<9.\n" in out


def test_json_carries_the_violations(audit, cem):
    code, out, err = audit("--json", "--fail-if", "decoder:ssim.p90>=-1", "mse<0", "identity>=0")
    assert code == FAILED
    gate = json.loads(out)["gate"]
    assert gate["conditions"] == ["decoder:ssim.p90>=-1", "mse<0", "identity>=0"]
    assert (gate["checked"], gate["not_checked"]) == (["cem"], ["none"])
    first, second = gate["violations"]
    measured = sorted(cem.attacks[0].test_ssim)[21]  # 22 of 24 images are 90 % or more
    assert first == {
        "defense": "cem",
        "run": cem.run,
        "condition": "decoder:ssim.p90>=-1",
        "attack": "decoder",
        "metric": "ssim",
        "statistic": "p90",
        "operator": ">=",
        "limit": -1.0,
        "measured": measured,
        "message": f"cem: decoder:ssim.p90 is {measured:.4g}, and must not be -1 or above",
    }
    assert (second["metric"], second["measured"]) == ("identity", cem.attacks[0].identity)
    assert err.splitlines() == [f"sfumato: {one['message']}" for one in (first, second)]
    code, out, _ = audit("--json", "--fail-if", "mse<0")
    assert (code, json.loads(out)["gate"]["violations"]) == (0, [])


def test_a_file_says_it_and_flags_override_it(audit, audited, tmp_path):
    content = yaml.safe_load((audited / "audit.yaml").read_text())
    for fail_if, code in (("mse<9", FAILED), (["ssim>0.99", "mse<9"], FAILED), (["ssim>0.99"], 0), ([], 0)):
        (tmp_path / "gated.yaml").write_text(yaml.safe_dump({**content, "fail_if": fail_if}))
        command = ("audit", "--config", str(tmp_path / "gated.yaml"))
        assert audit(command=command)[0] == code
        assert audit("--fail_if", "ssim>0.99", command=command)[0] == 0
        assert audit("--fail-if", "accuracy<=1", command=command)[0] == FAILED


def test_cards_are_held_against_conditions_without_any_model(audit, audited, tmp_path):
    cards = str(audited / "sfumato-page" / "cards")
    command = ("report", cards, "--out", str(tmp_path / "page"))
    code, _, err = audit("--fail-if", "mse<9", command=command)
    assert code == FAILED
    assert err.startswith("sfumato: cem: mse is ")
    assert (tmp_path / "page" / "page.html").is_file()
    assert audit("--fail-if", "mse<0", command=command)[0] == 0
    assert audit(command=command)[0] == 0
    code, out, _ = audit("--fail-if", "mse<9", "--json", command=("report", f"{cards}/00-none.json", *command[2:]))
    assert code == FAILED
    assert [one["defense"] for one in json.loads(out)["gate"]["violations"]] == ["none"]


def test_runs_attacked_later_are_held_against_conditions_of_that_call(audit, audited, cem, tmp_path):
    command = ("attack", str(Path("runs") / cem.run), "--evaluation.judge", "true", "--out", str(tmp_path / "page"))
    assert audit("--fail-if", "identity>=0", command=command)[0] == FAILED
    assert audit("--fail-if", "ssim>0.99", command=command)[0] == 0
    assert audit(command=command)[0] == 0
    code, _, err = audit("--fail-if", "rmle:ssim>0.99", command=command)
    assert (code, err.count("\n")) == (2, 1)
    assert "an attack that is run: one of decoder" in err


UNMEASURED = "identity>0.3"
UNJUDGED = ("--evaluation.judge", "false")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--fail-if", "ssmi>0.5"], ["fail_if[0]: got 'ssmi>0.5'; accepted: for its metric, did you mean ssim?"]),
        (["--fail-if", "ssim"], ["in quotes, for > and < mean something to a shell"]),
        (["--fail-if", '{"ssim": 0.5}'], ["fail_if[0]: got {'ssim': 0.5}; accepted: text: [ATTACK:]METRIC"]),
        (["--fail-if", UNMEASURED, *UNJUDGED], ["identity is with evaluation.judge: true"]),
        (["--fail-if", "gan:ssim>0.5"], ["fail_if: got 'gan:ssim>0.5'; accepted: an attack that is run"]),
        (
            ["--fail-if", "ssim>0.5", "mse=1", "--defenses", "cme", "--training.epochs", "0", "--nonsense", "3"],
            ["Unknown option: --nonsense", "training.epochs", "fail_if[1]: got 'mse=1'", "did you mean cem?"],
        ),
        (["--fail-if", UNMEASURED, *UNJUDGED, "--defenses", "cme"], ["did you mean cem?", "evaluation.judge: true"]),
    ],
)
def test_a_condition_that_cannot_be_held_is_told_before_anything_runs(flags, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["audit", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    for words in expected:
        assert len([line for line in lines if words in line]) == 1, words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("condition", [UNMEASURED, "rmle:mse<1", "ssmi>0.5"])
def test_cards_without_the_figure_are_bad_input_and_no_pass(condition, audited, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = json.loads((audited / "sfumato-page" / "cards" / "01-cem.json").read_text())
    content |= {"judge": None, "attacks": [{**content["attacks"][0], "identity": None}]}
    (tmp_path / "card.json").write_text(json.dumps(content))
    assert run(["report", "card.json", "--fail-if", condition]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("sfumato: fail_if")
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"], "nothing is written"


@pytest.mark.parametrize("command", ["attack", "report"])
def test_a_misspelled_flag_beside_a_condition_on_figures_kept_elsewhere(command, tmp_path, monkeypatch, capsys):
    """Whether a run or a card has them cannot be told from the settings of this call."""
    monkeypatch.chdir(tmp_path)
    assert run([command, ".", "--fail-if", UNMEASURED, "rmle:ssim>0", "--nonsense"]) == 2
    assert capsys.readouterr().err.startswith("sfumato: Unknown option: --nonsense")
    assert run([command, ".", "--fail-if", "ssmi>0", "--nonsense"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("sfumato: Unknown option: --nonsense")
    assert second.startswith("sfumato: fail_if[0]: got 'ssmi>0'")


@pytest.mark.parametrize("command", ["audit", "attack", "report"])
def test_the_help_explains_conditions(command, capsys):
    assert run([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())  # however wide the terminal is
    assert "--fail_if CONDITION..." in text
    assert '[ATTACK:]METRIC[.STATISTIC] OP NUMBER, such as "ssim>0.5" or "decoder:mse.p10<0.01"' in text
