from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ET

import pytest
import yaml
from bench_toys import SWEPT, attack, card, told
from scipy.stats import spearmanr

from sfumato.audit import load_settings
from sfumato.bench import evaluate, expand, lines_as_rows, parse_experiment, write_result
from sfumato.bench.plots import series_of

SVG = "{http://www.w3.org/2000/svg}"
PAPER = told(
    title="Noise & <others>",
    reference={"paper": "cem", "place": "table 1", "dataset": "cifar10"},
    rows=[
        {"label": "Bottleneck", "defense": "bottleneck"},
        {"label": "Bottleneck+CEM", "defense": "cem", "over": "Bottleneck"},
        {"label": "Dropout", "defense": "dropout"},
        {"label": "Dropout+CEM", "defense": "dropout_cem", "over": "Dropout"},
    ],
    plots=["accuracy_mse", "pictures"],
)


def result_of(content, figures, **more):
    """A result with cards made from accuracy, MSE and more by (row, seed) or (row, point, seed)."""
    experiment = parse_experiment(content)
    jobs = expand(experiment, "small")
    found = {job.key: figures.get((job.row, job.seed)) or figures.get((job.row, job.point, job.seed)) for job in jobs}
    cards = {job.key: card(job, *found[job.key][:2], **found[job.key][2], **more) for job in jobs if found[job.key]}
    return evaluate(experiment, "small", jobs, cards)


TABLE = {
    (row, seed): (accuracy + seed / 100, mse, {})
    for row, accuracy, mse in [
        ("Bottleneck", 0.90, 0.004), ("Bottleneck+CEM", 0.89, 0.006),
        ("Dropout", 0.87, 0.010), ("Dropout+CEM", 0.86, 0.013),
    ]
    for seed in (0, 1)
}  # fmt: skip
CURVES = {
    (row, point, seed): (0.9 - point, factor * (0.01 + point / 10), {"theory": {"cem_rate_nats": 10 - 9 * point}})
    for row, factor in (("noise", 1), ("noise+CEM", 1.6))
    for point in (0.05, 0.2, 0.5)
    for seed in (0, 1)
} | {("none", None, seed): (0.95, 0.002, {}) for seed in (0, 1)}


def page(result, tmp_path):
    return write_result(result, tmp_path).page.read_text(encoding="utf-8")


def rows_of(text, first):
    """Cells of the rows that begin with a cell."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith(f"| {first} |")
    ]


def test_the_table_shows_ours_and_the_papers(tmp_path):
    text = page(result_of(PAPER, TABLE), tmp_path)
    assert text.startswith("# Noise & <others>\n\nWhether noise helps.\n")
    assert "CVPR 2025; table 1." in text
    assert "8 of 8 runs are there." in text
    figures, change = rows_of(text, "Bottleneck+CEM")[:2]
    assert figures[:6] == ["Bottleneck+CEM", "2", "89.50 ± 0.71", "90.69", "0.0030 ± 0.0000", "0.0054"]
    assert figures[6:8] == ["0.0060 ± 0.0000", "0.0058"]
    assert change == [
        "Bottleneck+CEM", "Bottleneck", "-1.00 ± 0.00", "-0.18", "+50.0 ± 0.0 %", "+50.0 %", "+50.0 ± 0.0 %", "+41.5 %",
    ]  # fmt: skip
    (without,), (with_it,) = rows_of(text, "without"), rows_of(text, "with")
    assert (without[1], with_it[1]) == ("89.00", "88.00")
    assert rows_of(text, "with, paper")[0][1] == "89.11"


def test_what_is_missing_is_named(tmp_path):
    some = {
        key: value
        for key, value in TABLE.items()
        if key not in [("Dropout", 1), ("Dropout+CEM", 0), ("Dropout+CEM", 1)]
    }
    result = result_of(PAPER, some)
    text = " ".join(page(result, tmp_path).split())
    assert "5 of 8 runs are there. **Missing: Dropout (seed 1) and Dropout+CEM.**" in text
    assert rows_of(page(result, tmp_path), "Dropout+CEM")[0][:4] == ["Dropout+CEM", "0", "–", "87.53"]
    data = json.loads((tmp_path / "digits-trial-small.json").read_text())
    assert data["missing"] == ["Dropout+CEM, seed 0", "Dropout, seed 1", "Dropout+CEM, seed 1"]


def test_a_row_that_was_not_run_is_named_once_and_has_no_lines(tmp_path):
    some = {key: value for key, value in CURVES.items() if key[0] != "noise+CEM" and key[1:] != (0.2, 1)}
    text = page(result_of(SWEPT, some), tmp_path)
    assert "**Missing: noise (σ = 0.2) (seed 1) and noise+CEM.**" in " ".join(text.split())
    assert [row[0] for row in rows_of(text, "noise+CEM, σ = 0.2")] == []
    assert len(rows_of(text, "noise, σ = 0.2")) == 1


def test_a_page_without_any_card(tmp_path):
    text = page(result_of(PAPER, {}), tmp_path)
    assert "0 of 8 runs are there." in text
    assert "## Figures" not in text
    assert not list(tmp_path.glob("*.svg"))


def test_curves_are_compared_at_matched_accuracy(tmp_path):
    text = page(result_of(SWEPT, CURVES), tmp_path)
    (line,) = (row for row in rows_of(text, "noise+CEM") if row[1] == "noise")
    # The curves are straight lines over the same accuracies, the one 1.6 times the other.
    assert line[2:] == ["40.0 to 85.0 %", "0.0375", "0.0600", "+60.0 ± 0.0 %"]
    assert rows_of(text, "noise+CEM, σ = 0.05")[0][:3] == ["noise+CEM, σ = 0.05", "2", "85.00 ± 0.00"]


def test_each_pair_has_a_line(tmp_path):
    content = SWEPT | {"rows": [*SWEPT["rows"], {"label": "more", "defense": "cem", "over": ["noise", "noise+CEM"]}]}
    figures = CURVES | {
        ("more", point, seed): (0.85 - point, 0.02 + point / 5, {}) for point in (0.05, 0.2, 0.5) for seed in (0, 1)
    }
    result = result_of(content, figures)
    text = page(result, tmp_path)
    # The table of figures, then a change against each.
    ours, *changes = rows_of(text, "more, σ = 0.2")
    assert ours[1:3] == ["2", "65.00 ± 0.00"]
    assert [line[1:3] for line in changes] == [["noise", "-5.00 ± 0.00"], ["noise+CEM", "-5.00 ± 0.00"]]
    assert [line[4] for line in changes] == ["+100.0 ± 0.0 %", "+25.0 ± 0.0 %"]
    matched = {line[1]: line[2:] for line in rows_of(text, "more") if line[1] in ("noise", "noise+CEM")}
    assert {line[0] for line in matched.values()} == {"40.0 to 80.0 %"}
    # By hand at 0.6, the mean accuracy: 0.01 + (0.9 - 0.6) / 10 of noise, 0.02 + (0.85 - 0.6) / 5 of "more".
    assert matched["noise"][1:3] == ["0.0400", "0.0700"]
    assert matched["noise+CEM"][1:3] == ["0.0640", "0.0700"]
    assert matched["noise"][3] == "+75.0 ± 0.0 %"
    data = json.loads((tmp_path / "digits-trial-small.json").read_text())
    assert [(one["row"], one["over"]) for one in data["matched"]] == [
        ("noise+CEM", "noise"), ("more", "noise"), ("more", "noise+CEM"),
    ]  # fmt: skip
    assert list(data["tables"]["decoder"][-1]["changes"]) == ["noise", "noise+CEM"]


def test_curves_that_share_no_accuracy_are_not_compared(tmp_path):
    apart = {
        key: (value[0] / 10, *value[1:]) if key[0] == "noise" and key[2] == 1 else value
        for key, value in CURVES.items()
    }
    text = " ".join(page(result_of(SWEPT, apart), tmp_path).split())
    assert "Seed 1: noise+CEM reaches 40.0 to 85.0 % and noise 4.0 to 8.5 %. The ranges do not overlap" in text
    assert "| +60.0 % |" in text


def test_no_seed_s_curves_overlap(tmp_path):
    apart = {key: (value[0] / 10, *value[1:]) if key[0] == "noise" else value for key, value in CURVES.items()}
    text = page(result_of(SWEPT, apart), tmp_path)
    (line,) = (row for row in rows_of(text, "noise+CEM") if row[1] == "noise")
    assert line[2:] == ["none", "–", "–", "–"]


def test_entropy_and_error(tmp_path):
    text = " ".join(page(result_of(SWEPT, CURVES), tmp_path).split())
    # Entropy is −10 + 9·σ; within a row it rises with the error.
    assert "over 12 of 14 models, those whose cards track it" in text
    assert "`cem_rate_nats`" in text
    alone = {key: value for key, value in CURVES.items() if key[0] == "noise"}
    result = result_of(SWEPT, alone)
    assert result.entropy.all.rho == pytest.approx(1.0)
    assert result.entropy.by_seed.mean == pytest.approx(1.0)
    few = result_of(SWEPT, {("noise", 0.05, 0): CURVES["noise", 0.05, 0]})
    assert "1 point: too few" in page(few, tmp_path)


def test_entropy_and_error_along_each_row(tmp_path):
    # Errors rise with entropy along "noise" and fall along "noise+CEM"; the third row tracks the rate at two points.
    figures = {
        (row, point, 0): (0.9 - point, 0.1 + sign * point / 10, {"theory": {"cem_rate_nats": -point}})
        for row, sign in (("noise", 1), ("noise+CEM", -1))
        for point in (0.05, 0.2, 0.5)
    }
    few = [("more", point, 0) for point in (0.05, 0.2)]
    figures |= {place: (0.5, 0.05 + place[1], {"theory": {"cem_rate_nats": -place[1]}}) for place in few}
    content = SWEPT | {"rows": [*SWEPT["rows"], {"label": "more", "defense": "cem"}]}
    result = result_of(content, figures)
    found = result.entropy.by_row
    assert {row: (one.rho, one.count) for row, one in found.items()} == {
        "noise": (pytest.approx(1.0), 3), "noise+CEM": (pytest.approx(-1.0), 3), "more": (None, 2),
    }  # fmt: skip
    pairs = [(point, 0.1 + sign * point / 10) for sign in (1, -1) for point in (0.05, 0.2, 0.5)]
    pairs += [(point, 0.05 + point) for point in (0.05, 0.2)]
    assert result.entropy.all.rho == pytest.approx(spearmanr(*zip(*pairs)).statistic)
    text = page(result, tmp_path).split("## Entropy and error")[1].split("![")[0]
    assert rows_of(text, "noise")[0] == ["noise", "3", "1.000", "0"]
    assert rows_of(text, "noise+CEM")[0][:3] == ["noise+CEM", "3", "-1.000"]
    assert rows_of(text, "more") == [["more", "2", "–", "–"]]
    data = json.loads((tmp_path / "digits-trial-small.json").read_text())
    assert data["entropy"]["by_row"]["noise+CEM"]["count"] == 3
    alone = result_of(SWEPT, {key: value for key, value in CURVES.items() if key[0] == "noise"})
    assert alone.entropy.by_row["noise"] == alone.entropy.all
    assert "own curve" in page(result_of(SWEPT, CURVES), tmp_path)
    assert "own curve" not in page(alone, tmp_path)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", None])
def test_a_note_on_a_data_set_stands_on_its_page_alone(tmp_path, dataset):
    text = page(result_of(PAPER | {"reference": PAPER["reference"] | {"dataset": dataset}}, {}), tmp_path)
    assert ("CIFAR-100's last row" in " ".join(text.split())) == (dataset == "cifar100")
    assert ("Figures as printed." in " ".join(text.split())) == (dataset is not None)


def test_plots_stand_alone_and_have_a_description(tmp_path):
    written = write_result(result_of(SWEPT, CURVES), tmp_path)
    assert [path.name for path in written.plots] == [
        "digits-trial-small-accuracy-mse.svg", "digits-trial-small-entropy-mse.svg",
    ]  # fmt: skip
    text = written.page.read_text(encoding="utf-8")
    for path in written.plots:
        root = ET.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        assert root.find(f"{SVG}title").text == root.get("aria-label")
        words = {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}
        assert {"noise", "noise+CEM", "σ = 0.05"} <= words
        assert f"]({path.name})" in text
        assert "<dc:date" not in path.read_text()
    assert "accuracy 85.0 %, MSE 0.0150 at σ = 0.05" in text
    assert "entropy -9.55, MSE 0.0150" in text


def test_error_bars_are_drawn_where_seeds_differ(tmp_path):
    def bars(figures):
        svg = write_result(result_of(PAPER, figures), tmp_path).plots[0].read_text()
        return svg.count("LineCollection")

    same = {key: (0.5, value[1], {}) for key, value in TABLE.items()}
    assert bars(same) == 0
    assert bars(TABLE) == 2 * 4  # in the plot and in its legend


def test_pictures_are_of_the_same_images(tmp_path):
    written = write_result(result_of(PAPER, TABLE), tmp_path)
    root = ET.parse(written.plots[-1]).getroot()
    # Three images, as they are and under each of four rows with the first seed.
    assert len(list(root.iter(f"{SVG}image"))) == 3 * 5
    words = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert words == ["original", "Bottleneck", "Bottleneck+CEM", "Dropout", "Dropout+CEM"]
    mixed = dict(TABLE)
    mixed["Dropout", 0] = (0.9, 0.01, {"first": 5})
    assert len(write_result(result_of(PAPER, mixed), tmp_path).plots) == 1


def test_the_same_cards_give_the_same_bytes(tmp_path):
    for content, figures in ((PAPER, TABLE), (SWEPT, CURVES)):
        first, again = (write_result(result_of(content, figures), tmp_path / name) for name in "ab")
        for one, two in zip((first.page, first.data, *first.plots), (again.page, again.data, *again.plots)):
            assert one.read_bytes() == two.read_bytes()


def test_what_was_run_can_be_run_again(tmp_path):
    content = told()
    content["sizes"]["small"]["data"]["path"] = "/home/somebody/images"
    content["rows"][1]["settings"] = {"model": {"cut": "block1"}}
    text = page(result_of(content, {(label, 0): (0.5, 0.01, {}) for label in ("none", "noise")}), tmp_path)
    assert "somebody" not in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert load_settings([settings]).training.epochs == 2
    assert "sfumato bench digits-trial.yaml --size small --seeds 0 1\n" in text
    assert "Settings of noise alone: `{'model': {'cut': 'block1'}}`" in text
    assert rows_of(text, "noise")[-1] == ["noise", "`noise(sigma=0.5)`"]


def test_the_command_names_the_rows_that_were_run_where_some_were_not(tmp_path):
    labels = ("noise", "it's CEM", "never $run", "noise+CEM")
    content = told(rows=[{"label": label, "defense": "noise"} for label in labels])
    for number in range(1, 5):
        figures = {(label, 1): (0.5, 0.01, {}) for label in (labels[1], labels[0], *labels[2:])[:number]}
        text = page(result_of(content, figures), tmp_path)
        (command,) = (line for line in text.splitlines() if line.startswith("sfumato bench "))
        words = shlex.split(command)
        assert words[:8] == ["sfumato", "bench", "digits-trial.yaml", "--size", "small", "--seeds", "0", "1"]
        rows = {1: [labels[1]], 2: list(labels[:2]), 3: list(labels[:3]), 4: []}[number]
        assert words[8:] == (["--only", *rows] if rows else [])


def test_costs_of_a_row_are_one_number_or_where_seeds_differ_a_range(tmp_path):
    figures = {
        ("none", 0): (0.5, 0.01, {"cost": 1234567}),
        ("none", 1): (0.5, 0.01, {"cost": 1234567}),
        ("noise", 0): (0.5, 0.01, {"cost": 7553}),
        ("noise", 1): (0.5, 0.01, {"cost": 7403}),
    }
    written = write_result(result_of(told(), figures), tmp_path)
    text = written.page.read_text(encoding="utf-8").split("## What the halves cost")[1].split("\n## ")[0]
    assert rows_of(text, "none") == [["none", "1,234,567", "1", "3", "1", "2"]]
    assert rows_of(text, "noise") == [["noise", "7,403 to 7,553", "1", "3", "1", "2"]]
    data = json.loads(written.data.read_text())["costs"]
    assert (data["noise"]["edge_parameters"], data["none"]["cloud_macs"]) == ([7403, 7553], [2, 2])
    assert "What the halves cost" not in page(result_of(told(), {}), tmp_path)


def test_environment_and_doubts(tmp_path):
    twice = ("not-averaged", "attack-diverged", "attack-diverged")
    text = page(result_of(PAPER, TABLE, suspicions=twice, seconds=600.0), tmp_path)
    assert "- `not-averaged`: 8 of 8 cards" in text
    assert "- `attack-diverged`: 8 of 8 cards" in text, "of two attacks in each"
    assert "- sfumato 0.1.0, torch 2.9.0, Python 3.11.2, Linux, cpu, 2 threads\n" in text
    assert "- digits: 1,000 training, 100 validation and 200 test images of 2 classes\n" in text
    assert "- 8 models, 1 h 20 min of training and attacks, the last finished on 2025-01-02" in text
    shared = {key: (*found[:2], {"run": "one"} if key[0].startswith("Dropout") else {}) for key, found in TABLE.items()}
    text = page(result_of(PAPER, shared, seconds=600.0), tmp_path)
    assert "- 5 models, 50 min of training and attacks" in text


def test_several_attacks_have_a_table_each(tmp_path):
    both = {"attacks": [attack("decoder", 0.01), attack("rmle", 0.03)]}
    text = page(result_of(told(), {("noise", 0): (0.5, 0.0, both), ("none", 0): (0.6, 0.0, both)}), tmp_path)
    assert "## Attack: decoder" in text
    assert "## Attack: rmle" in text
    assert [row[4] for row in rows_of(text, "noise") if len(row) > 6] == ["0.0100", "0.0300"]


def test_a_label_is_shown_literally(tmp_path):
    rows = [{"label": "_a|b* $x$ <i>", "defense": "none"}]
    result = result_of(told(rows=rows), {("_a|b* $x$ <i>", 0): (0.5, 0.01, {})})
    written = write_result(result, tmp_path)
    assert r"| \_a\|b\* $x$ &lt;i&gt; |" in written.page.read_text(encoding="utf-8")
    words = ["".join(element.itertext()).strip() for element in ET.parse(written.plots[0]).getroot().iter(f"{SVG}text")]
    assert "_a|b* $x$ <i>" in words


def test_lines_for_other_programs(tmp_path):
    result = result_of(PAPER, TABLE)
    rows = {row["row"]: row for row in lines_as_rows(result)}
    assert rows["Dropout"]["mse_test"] == pytest.approx(0.01)
    assert rows["Dropout"]["mse_test_paper"] == 0.0104
    assert rows["Dropout"]["accuracy_std"] == pytest.approx(0.01 / 2**0.5)
    data = json.loads(write_result(result, tmp_path).data.read_text())
    assert data["cards"] == {key: found.fingerprint() for key, found in result.cards.items()}
    assert data["tables"]["decoder"][1]["changes"]["Bottleneck"]["mse_test"]["ratio"]["mean"] == pytest.approx(0.5)
    swept = json.loads(write_result(result_of(SWEPT, CURVES), tmp_path).data.read_text())
    assert swept["matched"][0]["gain"]["mean"] == pytest.approx(0.6)
    assert swept["entropy"]["all"]["count"] == 12


def test_a_row_and_its_only_follower_look_alike():
    rows = dict.fromkeys(("a", "a+", "b", "b+", "b++", "c"), ())
    over = {"a+": ("gone", "a"), "b+": ("b",), "b++": ("b",), "c": ("gone",)}
    found = {s.label: (s.pair, s.added) for s in series_of(rows, over)}
    assert found["a"] == (0, False)
    assert found["a+"] == (0, True)
    assert found["b"] == (1, False)
    assert [found[label] for label in ("b+", "b++", "c")] == [(2, True), (3, True), (4, True)]


def test_a_row_that_is_compared_with_several_looks_like_none_of_them():
    rows = dict.fromkeys(("a", "b", "ab"), ())
    found = {s.label: (s.pair, s.added) for s in series_of(rows, {"ab": ("a", "b")})}
    assert found == {"a": (0, False), "b": (1, False), "ab": (2, True)}
