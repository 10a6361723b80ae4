from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from sfumato.report.comparison import entries
from sfumato.report.curve_figure import draw, spread
from sfumato.report.curves import describe, explain, panels
from sfumato.report.figures import inline

NOISE = [("bottleneck", {}), ("noise", {"sigma": 0.1})]


@pytest.fixture
def seen(card, attack):
    """A card whose decoder sees each picture 1, 4 and 16 times; SSIM as given. The order is mixed on purpose."""

    def make(name, ssims, parts=NOISE, **more):
        made = [
            attack(f"decoder (observations={k})", observations=k, ssim=ssims[k], queries=100 * k, epochs=5)
            for k in (4, 16, 1)
        ]
        return card(name, parts, attacks=[*made, attack("rmle", ssim=0.2)], **more)

    return make


@pytest.fixture
def two(seen):
    return entries([seen("None", {1: 0.9, 4: 0.9, 16: 0.9}, None), seen("Noise", {1: 0.4, 4: 0.5, 16: 0.6})])


def test_one_line_a_model_with_its_points_in_order(two):
    (panel,) = panels(two)
    assert (panel.budget, panel.attack) == ("observations", "decoder, white-box")
    assert [(curve.entry.name, curve.points) for curve in panel.curves] == [
        ("None", ((1, 0.9), (4, 0.9), (16, 0.9))),
        ("Noise", ((1, 0.4), (4, 0.5), (16, 0.6))),
    ]
    assert panel.curves[1].gain == pytest.approx(0.2)


def test_no_curve_through_one_point(card, attack):
    alone = card(attacks=[attack("decoder"), attack("rmle", observations=4)])
    assert panels(entries([alone])) == []
    # Two models with one point each are no line either.
    apart = [card("A", NOISE, attacks=[attack(observations=1)]), card("B", NOISE, attacks=[attack(observations=4)])]
    assert panels(entries(apart)) == []


def test_a_model_with_one_point_only_has_no_line_beside_those_that_have(seen, card, attack):
    once = card("Once", NOISE, attacks=[attack("decoder", epochs=5)])
    (panel,) = panels(entries([seen("Noise", {1: 0.4, 4: 0.5, 16: 0.6}), once]))
    assert [curve.entry.name for curve in panel.curves] == ["Noise"]


@pytest.mark.parametrize(
    "change",
    [{"epochs": 6}, {"threat_model": "gray-box"}, {"trained_on": "auxiliary"}, {"images": 50}, {"name": "generator"}],
)
def test_attacks_that_differ_otherwise_are_not_joined(card, attack, change):
    base = {"name": "decoder", "epochs": 5, "images": 100}
    made = [attack(**base), attack(**(base | change), observations=4)]
    assert panels(entries([card(attacks=made)])) == []


@pytest.mark.parametrize(("budget", "axis"), [("images", "the attacker’s own"), ("queries", "the device’s half")])
def test_own_pictures_and_queries_have_curves_of_their_own(card, attack, budget, axis):
    def one(amount, ssim):
        if budget == "images":  # what is sent follows from what is owned
            return attack(images=amount, ssim=ssim, queries=amount * 5)
        made = attack(images=100, ssim=ssim, queries=amount)
        made["attack"]["arguments"]["queries"] = amount
        return made

    (panel,) = panels(entries([card(attacks=[one(1000, 0.6), one(50, 0.3)])]))
    assert panel.budget == budget
    assert panel.curves[0].points == ((50, 0.3), (1000, 0.6))
    assert axis in panel.what.axis
    assert "1,000 pictures" in explain(panel)
    assert "0.60 instead of 0.30 (None)" in explain(panel)


@pytest.mark.parametrize("budget", ["observations", "images", "queries"])
def test_how_long_it_trained_follows_from_the_budget(card, attack, budget):
    """Members of ``auto`` with fewer images take more epochs for the same steps: that makes no other attack of them."""

    def one(amount, epochs):
        given = {"observations": 1, "images": 100, "queries": 900, budget: amount}
        spent = given.pop("queries")
        made = attack(f"decoder ({amount})", **given, epochs=epochs, patience=epochs // 4, ssim=amount / 1e4)
        made["attack"]["arguments"]["queries"] = made["queries"] = spent
        return made

    (panel,) = panels(entries([card(attacks=[one(4, 500), one(16, 2000), one(64, 8000)])]))
    assert (panel.budget, panel.attack) == (budget, "decoder, white-box")
    assert [spent for spent, _ in panel.curves[0].points] == [4, 16, 64]


def test_who_was_given_no_more_and_trained_for_longer_is_on_no_curve(card, attack):
    made = [attack(images=100, queries=100 * epochs, epochs=epochs) for epochs in (5, 50)]
    assert panels(entries([card(attacks=made)])) == []


def test_panels_of_the_same_attack_say_what_tells_them_apart(card, attack):
    made = [attack(f"decoder ({k}, {e})", observations=k, epochs=e, lr=0.1) for k in (1, 4) for e in (5, 50)]
    assert [panel.attack for panel in panels(entries([card(attacks=made)]))] == [
        "decoder, white-box, epochs=5", "decoder, white-box, epochs=50",
    ]  # fmt: skip


def test_of_two_that_spent_the_same_the_stronger_counts(card, attack):
    made = [attack(images=None, ssim=0.3), attack(images=50, ssim=0.2), attack(images=100, ssim=0.5)]
    made[0]["images"] = 100  # all that there were
    (panel,) = panels(entries([card(attacks=made)]))
    assert panel.curves[0].points == ((50, 0.2), (100, 0.5))


def test_attacks_of_unknown_size_are_on_no_curve(card, attack):
    made = [attack(ssim=0.3), attack(images=50, ssim=0.2)]
    assert panels(entries([card(attacks=made)])) == []


def test_what_a_curve_means(two, seen):
    (panel,) = panels(two)
    text = explain(panel)
    assert text == (
        "An attacker who sees the same picture 16 times and averages gets a similarity (SSIM) of 0.90 instead of 0.90 "
        "(None) and 0.60 instead of 0.40 (Noise), compared with one who sees the same picture once. It helps against "
        "Noise, where figures for the smaller amount understate the leak; elsewhere it does not."
    )
    (flat,) = panels(two[:1])
    assert explain(flat).endswith("That makes no difference that counts (less than 0.05).")
    (steep,) = panels(entries([seen("A", {1: 0.1, 4: 0.5, 16: 0.6}), seen("B", {1: 0.1, 4: 0.2, 16: 0.3})]))
    assert explain(steep).endswith(
        "It helps against every one of them: figures for the smaller amount understate the leak."
    )


def test_the_plot_in_words_has_every_point(two):
    (panel,) = panels(two)
    words = describe(panel)
    assert "observations of the same picture" in words
    assert "Noise: 0.40 at 1, 0.50 at 4, 0.60 at 16" in words


@pytest.mark.parametrize("width", [760, 360])
def test_the_plot_is_valid_and_tells_lines_apart(two, width):
    (panel,) = panels(two)
    svg = draw(panel, width=width, height=300)
    texts = ["".join(text.itertext()) for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"None", "Noise", "1", "4", "16", "recognizable"} <= set(texts)
    assert draw(panel, width=width, height=300) == svg
    # Colors that the color-blind tell apart, and dashes for those who see none.
    strokes = re.findall(r"stroke-dasharray: ([\d., ]+)", svg)
    assert strokes
    assert "#d55e00" in svg
    assert "http" not in inline(svg, prefix="c0", description="x")


def test_long_names_and_a_narrow_plot_give_numbers(seen):
    ssims = {1: 0.4, 4: 0.5, 16: 0.6}
    (panel,) = panels(entries([seen("A rather long name", ssims), seen("$\\frac{", ssims, seed=1)]))
    narrow, wide = (draw(panel, width=width, height=300) for width in (360, 760))
    assert "A rather long name" in wide
    assert "$\\frac{" in wide
    assert "A rather long name" not in narrow
    assert re.search(r">2</text>", narrow)


def test_an_attacker_who_sends_nothing_has_a_place_on_the_axis(card, attack):
    made = [attack(ssim=s, queries=q, images=9) for q, s in ((0, 0.2), (100, 0.4), (10000, 0.5))]
    for each in made:
        each["attack"]["arguments"]["queries"] = each["queries"]
    (panel,) = panels(entries([card(attacks=made)]))
    texts = ["".join(t.itertext()) for t in ET.fromstring(draw(panel, width=760, height=300)).iter() if t.text]
    assert {"0", "100", "10,000"} <= {text.strip() for text in texts}


def test_names_at_the_ends_of_lines_keep_apart():
    moved = spread([50.0, 51.0, 10.0, 99.0, 99.5], gap=13, top=100)
    ordered = sorted(moved)
    assert all(b - a >= 13 - 1e-9 for a, b in pairwise(ordered))
    assert sorted(range(5), key=lambda i: moved[i]) == [2, 0, 1, 3, 4]
    assert moved[2] == 10
    assert max(moved) == 100
