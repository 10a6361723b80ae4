from __future__ import annotations

import numpy as np
import pytest
from bench_toys import SWEPT, attack, card, told
from hypothesis import given
from hypothesis import strategies as st

from sfumato.bench import FIGURES, aggregate, average, expand, parse_experiment, spread
from sfumato.bench.aggregate import attack_names

PAPER = told(
    reference={"paper": "cem", "place": "a table", "dataset": "cifar10"},
    rows=[
        {"label": "No_defense", "defense": "none"},
        {"label": "B", "defense": "bottleneck", "published": "Bottleneck"},
        {"label": "B+CEM", "defense": "cem", "over": "B", "published": "Bottleneck+CEM"},
        {"label": "Dropout", "defense": "dropout"},
        {"label": "Dropout+CEM", "defense": "dropout_cem", "over": "Dropout"},
        {"label": "ours", "defense": "noise", "over": "No_defense"},
    ],
)


def table(content, figures, attack_name="decoder", **how):
    """Lines by (row, point), from accuracy and MSE by (row, seed) or (row, point, seed)."""
    experiment = parse_experiment(content)
    jobs = expand(experiment, "small", **how)
    cards = {}
    for job in jobs:
        found = figures.get((job.row, job.seed)) or figures.get((job.row, job.point, job.seed))
        if found is not None:
            cards[job.key] = card(job, *found)
    return {(line.row, line.point): line for line in aggregate(experiment, jobs, cards, attack_name)}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_spread_is_that_of_numpy(values):
    found = spread(dict(enumerate(values)))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.by_seed == dict(enumerate(values))
    if len(values) == 1:
        assert found.deviation is None
    else:
        assert found.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_means_and_deviations_of_every_figure():
    line = table(told(), {("none", 0): (0.6, 0.02), ("none", 1): (0.7, 0.04)})["none", None]
    assert line.figures.keys() == {figure.key for figure in FIGURES}
    assert line.figures["accuracy"].mean == pytest.approx(0.65)
    assert line.figures["accuracy"].deviation == pytest.approx(0.1 / 2**0.5)
    assert line.figures["mse_test"].mean == pytest.approx(0.03)
    assert line.figures["mse_train"].mean == pytest.approx(0.015)
    assert (line.seeds, line.missing) == ((0, 1), ())


def test_what_is_missing_is_told():
    lines = table(told(), {("noise", 1): (0.6, 0.02)})
    assert (lines["noise", None].seeds, lines["noise", None].missing) == ((1,), (0,))
    assert lines["noise", None].figures["accuracy"].deviation is None
    assert (lines["none", None].seeds, lines["none", None].missing) == ((), (0, 1))
    assert lines["none", None].figures == {}
    assert lines["noise", None].changes == {}


def test_changes_pair_seeds():
    figures = {
        ("none", 0): (0.8, 0.01), ("noise", 0): (0.7, 0.02),
        ("none", 1): (0.5, 0.04), ("noise", 1): (0.45, 0.06),
        ("noise", 2): (0.1, 0.99),
    }  # fmt: skip
    change = table(told(), figures, seeds=[0, 1, 2])["noise", None].changes["none"]
    # By hand: the third seed has no partner.
    assert change["accuracy"].difference.mean == pytest.approx((-0.1 - 0.05) / 2)
    assert change["accuracy"].difference.deviation == pytest.approx(0.05 / 2**0.5)
    assert change["mse_test"].ratio.mean == pytest.approx((1.0 + 0.5) / 2)
    assert change["mse_test"].ratio.deviation == pytest.approx(0.5 / 2**0.5)
    assert change["mse_test"].difference.by_seed.keys() == {0, 1}


def test_a_figure_of_zero_has_no_ratio():
    change = table(told(), {("none", 0): (0.0, 0.0), ("noise", 0): (0.7, 0.02)})["noise", None].changes["none"]
    assert change["mse_test"].ratio is None
    assert change["accuracy"].ratio is None
    assert change["accuracy"].difference.mean == pytest.approx(0.7)


def test_the_paper_s_figures_stand_beside():
    lines = table(PAPER, {(row, 0): (0.9, 0.01) for row in ("B", "B+CEM", "ours", "No_defense")})
    line = lines["B+CEM", None]
    assert line.published["mse_test"] == 0.0058
    assert line.changes["B"]["accuracy"].published == pytest.approx(0.9069 - 0.9087)
    assert line.changes["B"]["mse_test"].published_ratio == pytest.approx(58 / 41 - 1)
    assert lines["No_defense", None].published.keys() == {"accuracy", "mse_train", "mse_test"}
    assert lines["ours", None].published == {}
    assert lines["ours", None].changes["No_defense"]["accuracy"].published is None
    assert lines["Dropout", None].published["accuracy"] == 0.8775  # though there is no card of it


def test_a_swept_row_is_compared_at_the_same_point_or_with_the_one_that_is_not_swept():
    content = told(**{key: SWEPT[key] for key in ("vary", "theory")})
    content["rows"] = [
        {"label": "noise", "defense": "noise"},
        {"label": "noise+CEM", "defense": "cem", "over": "noise"},
        {"label": "none", "defense": "none", "varied": False},
        {"label": "again", "defense": "noise", "over": "none"},
    ]
    figures = {("noise", p, 0): (0.9 - p, 0.01) for p in (0.05, 0.2, 0.5)}
    figures |= {("noise+CEM", p, 0): (0.8 - p, 0.02) for p in (0.05, 0.2, 0.5)}
    figures |= {("none", None, 0): (1.0, 0.001)} | {("again", 0.2, 0): (0.7, 0.01)}
    lines = table(content, figures)
    for point in (0.05, 0.2, 0.5):
        assert lines["noise+CEM", point].changes["noise"]["accuracy"].difference.mean == pytest.approx(-0.1)
    assert lines["again", 0.2].changes["none"]["accuracy"].difference.mean == pytest.approx(-0.3)


def test_a_row_is_compared_with_each_that_it_names_and_has_seeds_in_common_with():
    rows = [{"label": label, "defense": "noise"} for label in "abc"]
    content = told(rows=[*rows, {"label": "d", "defense": "noise", "over": ["b", "a", "c"]}])
    figures = {
        ("a", 0): (0.8, 0.01), ("a", 1): (0.6, 0.02), ("b", 1): (0.5, 0.04), ("c", 2): (0.9, 0.01),
        ("d", 0): (0.7, 0.02), ("d", 1): (0.4, 0.06),
    }  # fmt: skip
    lines = table(content, figures, seeds=[0, 1, 2])
    line = lines["d", None]
    assert line.over == ("b", "a", "c")
    assert list(line.changes) == ["b", "a"]
    # By hand: both seeds against a, the second alone against b, none against c.
    assert line.changes["a"]["accuracy"].difference.mean == pytest.approx((-0.1 - 0.2) / 2)
    assert line.changes["a"]["mse_test"].ratio.mean == pytest.approx((1.0 + 2.0) / 2)
    assert line.changes["b"]["accuracy"].difference.mean == pytest.approx(-0.1)
    assert line.changes["b"]["mse_test"].ratio.mean == pytest.approx(0.5)
    assert line.changes["a"]["mse_test"].ratio.by_seed == pytest.approx({0: 1.0, 1: 2.0})
    assert line.changes["b"]["mse_test"].ratio.by_seed == pytest.approx({1: 0.5})
    mean = average(list(lines.values()))
    assert mean.rows == 3
    assert mean.with_it["accuracy"] == pytest.approx(0.55)
    assert mean.without["accuracy"] == pytest.approx((0.7 + 0.5 + 0.9) / 3)


def test_the_paper_s_figures_stand_beside_the_point_that_they_are_of():
    content = PAPER | {
        "rows": [
            {"label": "Dropout", "defense": "dropout", "varied": False},
            {"label": "B", "defense": "noise", "published": "Bottleneck"},
            {"label": "B+CEM", "defense": "cem", "over": ["B", "Dropout"], "published": "Bottleneck+CEM"},
        ]
    }
    vary = {"field": "noise.sigma", "values": {"small": [0.025, 0.1]}}
    figures = {(row, point, 0): (0.9, 0.01) for row in ("B", "B+CEM") for point in (0.025, 0.1)}
    figures["Dropout", None, 0] = (0.9, 0.01)
    lines = table(content | {"vary": vary | {"published": 0.1}}, figures)
    assert lines["B+CEM", 0.1].published["mse_test"] == 0.0058
    assert lines["Dropout", None].published["mse_test"] == 0.0104
    assert lines["B+CEM", 0.1].changes["B"]["mse_test"].published_ratio == pytest.approx(58 / 41 - 1)
    assert lines["B+CEM", 0.1].changes["Dropout"]["mse_test"].published_ratio == pytest.approx(58 / 104 - 1)
    assert lines["B+CEM", 0.025].published == {}
    assert lines["B+CEM", 0.025].changes["B"]["mse_test"].published_ratio is None
    assert all(line.published == {} for line in table(content | {"vary": vary}, figures).values())


def test_averages_are_over_whole_pairs():
    rows = {
        "B": (0.9, 0.01),
        "B+CEM": (0.8, 0.02),
        "Dropout": (0.7, 0.03),
        "Dropout+CEM": (0.6, 0.06),
        "ours": (0.1, 1),
    }
    lines = table(PAPER, {(row, 0): value for row, value in rows.items()})
    mean = average(list(lines.values()))
    # "ours" is compared with No_defense, which has no card.
    assert mean.rows == 2
    assert (mean.without["accuracy"], mean.with_it["accuracy"]) == pytest.approx((0.8, 0.7))
    assert (mean.without["mse_test"], mean.with_it["mse_test"]) == pytest.approx((0.02, 0.04))
    assert mean.published_without["mse_test"] == pytest.approx((0.0041 + 0.0104) / 2)
    assert mean.published_with["accuracy"] == pytest.approx((0.9069 + 0.8753) / 2)


def test_a_row_without_a_card_is_in_no_average():
    rows = {"No_defense": (0.9, 0.001), "B": (0.9, 0.01), "B+CEM": (0.8, 0.02), "Dropout": (0.7, 0.03)}
    lines = table(PAPER, {(row, 0): value for row, value in rows.items()} | {("Dropout+CEM", 1): (0.6, 0.06)})
    assert average(list(lines.values())).rows == 2


def test_one_pair_has_no_average():
    assert average(list(table(PAPER, {("B", 0): (0.9, 0.01), ("B+CEM", 0): (0.8, 0.02)}).values())) is None


def test_each_attack_has_its_own_table():
    experiment = parse_experiment(PAPER)
    jobs = expand(experiment, "small", only=["B"], seeds=[0])
    both = [attack("decoder", 0.02, psnr=None), attack("gan", 0.03)]
    cards = {jobs[0].key: card(jobs[0], 0.5, 0.0, attacks=both)}
    assert attack_names(cards) == ["decoder", "gan"]
    for name, mse, printed in (("decoder", 0.02, 0.0041), ("gan", 0.03, 0.0045)):
        (line,) = aggregate(experiment, jobs, cards, name)
        assert (line.figures["mse_test"].mean, line.published["mse_test"]) == (mse, printed)
        assert ("psnr" in line.figures) == (name == "gan")
    (line,) = aggregate(experiment, jobs, cards, "rmle")
    assert (line.figures, line.published) == ({}, {"accuracy": 0.9087})
