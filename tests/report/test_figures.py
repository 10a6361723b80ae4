from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from sfumato.report import privacy_utility_svg
from sfumato.report.figures import inline
from sfumato.report.labels import Box, place_labels

NOISE = [("noise", {})]


@pytest.mark.parametrize("axis", ["ssim", "mse"])
@pytest.mark.parametrize("width", [760, 360])
def test_the_plot_is_valid_and_names_every_model(cards, axis, width):
    svg = privacy_utility_svg(cards, axis=axis, width=width)
    ET.fromstring(svg)
    for card in cards:
        assert card.defense.label in svg
    assert "mean image" in svg
    assert "<dc:date" not in svg


def test_the_same_cards_give_the_same_bytes_whatever_the_user_s_settings(cards):
    first = privacy_utility_svg(cards)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": "mine"}):
        assert privacy_utility_svg(cards) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert dict(matplotlib.rcParams) == before


def test_many_models_are_numbered(card):
    made = [card(f"Defense {i}", NOISE, ssim=0.2 + i / 30, accuracy=0.5 + i / 50) for i in range(20)]
    svg = privacy_utility_svg(made)
    assert "Defense 3" not in svg
    assert all(re.search(rf">{number}</text>", svg) for number in range(1, 21))


def test_more_shapes_than_colors_tell_neighbors_apart(cards):
    svg = privacy_utility_svg(cards)
    shapes = {re.sub(r"\s+", " ", path) for path in re.findall(r'<path id="m\w+" d="([^"]+)"', svg)}
    assert len(shapes) >= len(cards)


@pytest.mark.parametrize("label", ["$\\frac{", "<script>alert(1)</script>", "a & b", '"', "日本語"])
def test_a_label_is_shown_literally(card, label):
    root = ET.fromstring(privacy_utility_svg([card(label)]))
    assert any(label in "".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_inline_follows_the_page(cards):
    svg = inline(privacy_utility_svg(cards), prefix="p0", description='a "quoted" <plot>')
    assert "http" not in svg
    assert "var(--ink)" in svg
    assert "#1d1d1b" not in svg
    assert 'aria-label="a &quot;quoted&quot; &lt;plot&gt;"' in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert all(name.startswith("p0-") for name in ids)
    assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)


def test_labels_keep_clear_of_each_other_and_of_the_border():
    points = [(50.0, 50.0 + 3 * i) for i in range(4)]
    placed = place_labels(points, ["abcdef"] * 4, size=10, room=Box(0, 0, 300, 300))
    spots = {(x + label.dx, y + label.dy, label.align) for (x, y), label in zip(points, placed)}
    assert len(spots) == 4
    (right,) = place_labels([(290.0, 150.0)], ["abcdef"], size=10, room=Box(0, 0, 300, 300))
    assert right.align == "right"
