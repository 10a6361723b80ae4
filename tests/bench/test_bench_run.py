from __future__ import annotations

import json

import pytest
import yaml
from bench_toys import SWEPT, card, told

from sfumato.audit import Card
from sfumato.bench import cards_folder, expand, parse_experiment, read_cards, run_jobs, seconds_left
from sfumato.bench.runner import check_jobs, duration
from sfumato.cli import run
from sfumato.errors import InputError, Interrupted
from sfumato.training import Runtime, make_fabric

TRIAL = parse_experiment(told())


class Titles:
    """Remembers what was begun."""

    def __init__(self):
        self.seen = []

    def start(self, title, total, done=0):
        self.seen.append(title)

    def advance(self, steps=1):
        pass

    def note(self, text):
        pass

    def finish(self):
        pass


def runtime(**more):
    return Runtime(fabric=make_fabric("cpu"), **more)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder to work in with the trial as a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(told()), encoding="utf-8")
    return tmp_path


def test_cards_are_kept_by_experiment_and_size(tmp_path):
    folder = cards_folder(tmp_path, TRIAL, "small")
    assert folder == tmp_path / "bench" / "digits-trial" / "small"
    first, *others = expand(TRIAL, "small")
    card(first, 0.5, 0.01).save(folder / f"{first.key}.json")
    (folder / f"{others[0].key}.json").write_text("{}")
    assert read_cards([first, *others], folder).keys() == {first.key}


def test_the_time_left_is_that_of_the_row_else_of_all():
    jobs = expand(TRIAL, "small", seeds=[0, 1, 2])
    by_place = {(job.row, job.seed): job for job in jobs}
    assert seconds_left(jobs, {}, jobs) is None
    done = {by_place["none", 0].key: card(by_place["none", 0], 0.5, 0.01, seconds=10.0)}
    assert seconds_left(jobs, done, jobs) == pytest.approx(5 * 10)
    done[by_place["noise", 0].key] = card(by_place["noise", 0], 0.5, 0.01, seconds=40.0)
    assert seconds_left(jobs, done, jobs) == pytest.approx(2 * 10 + 2 * 40)
    assert seconds_left([by_place["noise", 2]], done, jobs) == pytest.approx(40)
    assert seconds_left([by_place["noise", 0]], done, jobs) == 0
    other = parse_experiment(told(rows=[*told()["rows"], {"label": "new", "defense": "bottleneck"}]))
    everything = expand(other, "small", seeds=[0])
    assert seconds_left(everything, done, everything) == pytest.approx(25)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "less than a minute"), (61, "1 min"), (3599, "1 h 0 min"), (86400, "1 day 0 h"), (180000, "2 days 2 h")],
)
def test_durations_are_coarse(seconds, words):
    assert duration(seconds) == words


def test_a_row_that_cannot_be_set_up_is_told_before_anything_runs(tmp_path):
    rows = [
        {"label": "fine", "defense": "none"},
        {"label": "loud", "defense": {"chain": [{"part": "noise"}]}},
        {"label": "cut", "defense": "none", "settings": {"model": {"cut": "block9"}}},
    ]
    jobs = expand(parse_experiment(told(rows=rows)), "small")
    with pytest.raises(InputError) as caught:
        run_jobs(jobs, root=tmp_path, folder=tmp_path / "cards", runtime=runtime())
    assert "loud" in str(caught.value)
    assert "block9" in str(caught.value)
    assert not list(tmp_path.rglob("*"))
    check_jobs(jobs[:1], runtime=runtime())
    check_jobs([], runtime=runtime())


@pytest.mark.slow
def test_an_experiment_runs_resumes_and_shares(tmp_path):
    jobs, folder = expand(TRIAL, "small"), cards_folder(tmp_path, TRIAL, "small")
    titles = Titles()
    made = run_jobs(jobs, root=tmp_path, folder=folder, runtime=runtime(progress=titles))
    assert list(made) == [job.key for job in jobs]
    assert read_cards(jobs, folder) == made
    assert [made[job.key].defense.label for job in jobs] == ["none", "noise"] * 2
    assert [made[job.key].training.seed for job in jobs] == [0, 0, 1, 1]
    assert titles.seen[0] == "1 of 4: train none"
    assert titles.seen[-1] == "4 of 4, less than a minute left: attack noise (decoder)"

    # Nothing is computed again, for this experiment or for another with the same models under other names.
    titles.seen.clear()
    assert run_jobs(jobs, root=tmp_path, folder=folder, runtime=runtime(progress=titles)) == made
    again = expand(parse_experiment(told(name="other", rows=[{"label": "bare", "defense": "none"}])), "small")
    shared = run_jobs(again, root=tmp_path, folder=tmp_path / "elsewhere", runtime=runtime(progress=titles))
    assert titles.seen == []
    assert [found.fingerprint() for found in shared.values()] != [made[jobs[0].key].fingerprint()]
    assert {found.run for found in shared.values()} == {made[jobs[0].key].run, made[jobs[2].key].run}
    assert {found.defense.label for found in shared.values()} == {"bare"}


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on_to_the_same_figures(tmp_path):
    jobs = expand(TRIAL, "small", seeds=[0])
    asked = iter([False] * 20 + [True])
    stopped, folder = runtime(should_stop=lambda: next(asked)), tmp_path / "cards"
    with pytest.raises(Interrupted):
        run_jobs(jobs, root=tmp_path / "a", folder=folder, runtime=stopped)
    assert len(read_cards(jobs, folder)) < len(jobs)
    went_on = run_jobs(jobs, root=tmp_path / "a", folder=folder, runtime=runtime())
    at_once = run_jobs(jobs, root=tmp_path / "b", folder=tmp_path / "other", runtime=runtime())
    for job in jobs:
        assert went_on[job.key].fingerprint() == at_once[job.key].fingerprint()


@pytest.mark.slow
def test_the_command_runs_some_rows_then_the_rest_and_reports(mine, capsys):
    assert run(["bench", "trial.yaml", "--only", "noise", "--seeds", "0", "--json"]) == 0
    told_first = json.loads(capsys.readouterr().out)
    assert told_first["missing"] == ["none, seed 0"]
    assert [row["seeds"] for row in told_first["rows"]] == [0, 1]

    assert run(["bench", "trial.yaml", "--runs", "runs", "--out", "pages"]) == 0
    assert "Page: file:" in capsys.readouterr().out
    text = (mine / "pages" / "digits-trial-small.md").read_text(encoding="utf-8")
    assert "4 of 4 runs are there." in text
    assert (mine / "pages" / "digits-trial-small-accuracy-mse.svg").is_file()

    before = sorted((path, path.stat().st_mtime_ns) for path in (mine / "runs").rglob("*"))
    assert run(["bench", "trial.yaml", "--report-only", "--seeds", "1", "--json", "--out", "again"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert sorted((path, path.stat().st_mtime_ns) for path in (mine / "runs").rglob("*")) == before
    assert [Card.load(path).training.seed for path in sorted((mine / "runs" / "bench").rglob("none-seed*"))] == [0, 1]

    # On another machine the cards are enough, without the images and the models.
    assert run(["bench", "trial.yaml", "--report-only", "--data.path", "gone", "--out", "third"]) == 0
    assert (mine / "third" / "digits-trial-small.md").read_text(encoding="utf-8") == text


@pytest.mark.slow
def test_a_sweep_from_end_to_end(tmp_path):
    swept = parse_experiment(SWEPT)
    jobs = expand(swept, "small", seeds=[0], only=["noise", "none"])
    made = run_jobs(jobs, root=tmp_path, folder=tmp_path / "cards", runtime=runtime())
    sent = [next(p for p in made[job.key].defense.parts if p.name == "noise") for job in jobs[:3]]
    assert [part.arguments["sigma"] for part in sent] == [0.05, 0.2, 0.5]
    assert made[jobs[3].key].defense.parts == []


def test_nothing_to_report(mine, capsys):
    assert run(["bench", "trial.yaml", "--report-only"]) == 2
    assert "run it first" in capsys.readouterr().err
    assert not (mine / "sfumato-bench").exists()


def test_experiments_are_listed(capsys):
    assert run(["bench", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experiments"]
    assert run(["list", "experiments", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiments"] == listed
    found = {row["name"]: row for row in listed}
    assert found["cem-figure-3"]["models"] == {"paper": 48, "small": 32}
    assert run(["bench"]) == 0
    assert "cem-figure-3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["trial.yaml", "--only", "nois"], "did you mean noise?"),
        (["trial.yaml", "--size", "paper"], "one of small"),
        (["trial.yaml", "--size", "huge"], "huge"),
        (["trial.yaml", "--seeds", "-1"], "seeds"),
        (["tril.yaml"], "readable YAML file"),
        (["cem-figure-33"], "did you mean cem-figure-3"),
        (["trial.yaml", "--checkpoint-seconds", "-1"], "for --checkpoint-seconds. Must be >= 0"),
    ],
)
def test_bad_input_is_one_line_and_code_2(mine, capsys, flags, words):
    assert run(["bench", *flags]) == 2
    assert words in capsys.readouterr().err


def test_an_interrupted_command_writes_the_page_of_what_there_is(mine, capsys, monkeypatch):
    def stopped(jobs, *, root, folder, runtime):
        card(jobs[0], 0.5, 0.01).save(folder / f"{jobs[0].key}.json")
        raise Interrupted("stopped in epoch 2 of 3")

    monkeypatch.setattr("sfumato.cli.bench.run_jobs", stopped)
    assert run(["bench", "trial.yaml"]) == 130
    assert "To go on: sfumato bench trial.yaml" in capsys.readouterr().err
    text = (mine / "sfumato-bench" / "digits-trial-small.md").read_text(encoding="utf-8")
    assert "1 of 4 runs are there." in text


def test_flags_reach_every_run(mine, monkeypatch):
    seen = []

    def remembered(jobs, *, root, folder, runtime):
        seen.extend((job.settings, root, runtime.fabric.device.type, runtime.checkpoint_seconds) for job in jobs)
        raise Interrupted("enough")

    monkeypatch.setattr("sfumato.cli.bench.run_jobs", remembered)
    flags = ["--data.path", "copy", "--device", "cpu", "--precision", "64-true", "--runs", "there"]
    assert run(["bench", "trial.yaml", *flags, "--seeds", "3", "4", "--checkpoint-seconds", "5"]) == 130
    assert [settings.seed for settings, *_ in seen] == [3, 3, 4, 4]
    for settings, root, device, seconds in seen:
        assert (settings.data.path, settings.device, settings.precision) == ("copy", "cpu", "64-true")
        assert (str(root), device, seconds) == ("there", "cpu", 5.0)
