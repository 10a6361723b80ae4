"""An experiment's plots, as SVG files that stand alone and are the same bytes for the same cards."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullLocator
from PIL import Image

from sfumato.audit import Card
from sfumato.bench.aggregate import Spread
from sfumato.report.figures import INK, MARKERS, MUTED, SERIES, as_svg, house_style
from sfumato.report.format import fixed, percent

_WIDTH = 760
_LINE = 20  # pixels of the legend's lines


@dataclass(frozen=True)
class Dot:
    """One place in a plot: means, and standard deviations where there are several seeds."""

    x: Spread
    y: Spread
    text: str = ""


@dataclass(frozen=True)
class Series:
    """One row's points in the order in which they are joined.

    Args:
        label: For the legend.
        dots: At least one.
        pair: Rows that are compared share it, and with it color and marker.
        added: Whether this is the row with something added; drawn filled and solid, the other hollow and dashed.
    """

    label: str
    dots: tuple[Dot, ...]
    pair: int
    added: bool


@dataclass(frozen=True)
class Drawing:
    """A plot and what it shows in words, for those who do not see it."""

    svg: str
    description: str


def accuracy_mse(series: Sequence[Series]) -> Drawing:
    """Test accuracy against the attacker's error; up and right is better."""
    points = "; ".join(f"{s.label}: {', '.join(_accuracy_words(dot) for dot in s.dots)}" for s in series)
    return _drawing(
        series,
        "error of the attacker’s picture (MSE on test images), more private →",
        "test accuracy (%)",
        f"Test accuracy against the attacker’s mean squared error. {points}.",
    )


def entropy_mse(series: Sequence[Series]) -> Drawing:
    """The attacker's error, on a logarithmic scale, against relative conditional entropy."""
    points = "; ".join(
        f"{s.label}: {', '.join(f'entropy {fixed(d.x.mean, 2)}, MSE {fixed(d.y.mean, 4)}' for d in s.dots)}"
        for s in series
    )
    return _drawing(
        series,
        "relative conditional entropy of the image given what is sent (nats), more private →",
        "attacker’s MSE on test images",
        f"The attacker’s mean squared error against relative conditional entropy. {points}.",
        log_y=True,
    )


def pictures(rows: Sequence[tuple[str, Card]], attack: str) -> Drawing | None:
    """The first judged images, and below them what an attack makes of each under each row.

    Returns:
        ``None`` where the cards hold no such pictures, or not of the same images.
    """
    walls = [(label, _fixed_examples(card, attack)) for label, card in rows]
    walls = [(label, wall) for label, wall in walls if wall]
    if not walls or any([e.index for e in wall] != [e.index for e in walls[0][1]] for _, wall in walls):
        return None
    first = walls[0][1]
    lines = [("original", [e.original for e in first]), *((n, [e.reconstruction for e in w]) for n, w in walls)]
    size, left = 72, 150
    width, height = left + size * len(first) + 8, size * len(lines) + 8
    with house_style():
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        for i, (label, row) in enumerate(lines):
            bottom = height - 4 - (i + 1) * size
            text = figure.text((left - 8) / width, (bottom + size / 2) / height, label, ha="right", va="center")
            text.set(color=INK, fontsize=10, parse_math=False)
            for j, png in enumerate(row):
                area = ((left + j * size + 1) / width, (bottom + 1) / height, (size - 2) / width, (size - 2) / height)
                axes = figure.add_axes(area)
                axes.imshow(_pixels(png), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.set_axis_off()
        svg = as_svg(figure, transparent=False)
    errors = "; ".join(f"{n}: mean SSIM {fixed(sum(e.ssim for e in w) / len(w), 2)}" for n, w in walls)
    description = f"{len(first)} test images and their reconstructions. {errors}."
    return Drawing(_titled(svg, description), description)


def _drawing(series: Sequence[Series], x: str, y: str, description: str, *, log_y: bool = False) -> Drawing:
    columns = 1 if max(len(s.label) for s in series) > 40 else 2
    below = 56 + _LINE * -(-len(series) // columns)
    height = 360 + below
    with house_style():
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
        axes = figure.add_axes((64 / _WIDTH, below / height, 1 - 80 / _WIDTH, 340 / height))
        _frame(axes, x, y, log_y=log_y)
        for one in series:
            _draw(axes, one)
        legend = figure.legend(
            loc="lower left", bbox_to_anchor=(56 / _WIDTH, 0), ncols=columns, frameon=False, fontsize=10,
            labelcolor=INK, handlelength=3, borderaxespad=0.2, columnspacing=3,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
        svg = as_svg(figure, transparent=False)
    return Drawing(_titled(svg, description), description)


def _frame(axes: Axes, x: str, y: str, *, log_y: bool) -> None:
    axes.set_xlabel(x, color=INK, fontsize=11)
    axes.set_ylabel(y, color=INK, fontsize=11)
    axes.tick_params(which="both", colors=MUTED, labelsize=10, length=3)
    axes.margins(0.06)
    if log_y:
        # Errors span less than two decades: round numbers read better there than powers of ten.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def _draw(axes: Axes, series: Series) -> None:
    color, marker = SERIES[series.pair % len(SERIES)], MARKERS[series.pair % len(MARKERS)]
    axes.errorbar(
        [dot.x.mean for dot in series.dots],
        [dot.y.mean for dot in series.dots],
        xerr=_bars([dot.x for dot in series.dots]),
        yerr=_bars([dot.y for dot in series.dots]),
        label=series.label if not series.label.startswith("_") else f" {series.label}",  # "_" would hide it
        color=color, marker=marker, markersize=8, markeredgewidth=1.8, markeredgecolor=color,
        markerfacecolor=color if series.added else "white", linewidth=1.5, elinewidth=1, capsize=3,
        linestyle="-" if series.added else (0, (4, 3)),
    )  # fmt: skip
    for dot in series.dots:
        if dot.text and series.added:  # the other of a pair has the same values in the same order
            text = axes.annotate(
                dot.text, (dot.x.mean, dot.y.mean), xytext=(7, 7), textcoords="offset points", color=MUTED, fontsize=8
            )
            text.set_parse_math(False)


def _bars(spreads: Sequence[Spread]) -> list[float] | None:
    found = [s.deviation or 0.0 for s in spreads]
    return found if any(found) else None


def _accuracy_words(dot: Dot) -> str:
    where = f" at {dot.text}" if dot.text else ""
    return f"accuracy {percent(dot.y.mean / 100)}, MSE {fixed(dot.x.mean, 4)}{where}"


def _titled(svg: str, description: str) -> str:
    """The plot with its description for screen readers, and a name space to stand alone."""
    label = html.escape(" ".join(description.split()), quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    end = svg.index(">") + 1
    return f"{svg[:end]}\n <title>{label}</title>{svg[end:]}\n"


def _fixed_examples(card: Card, attack: str) -> list[_Example]:
    infos = [info for info in card.attacks if info.attack.name == attack]
    return [
        _Example(e.index, e.ssim, e.original, e.reconstruction)
        for info in infos
        for e in info.examples
        if e.rank == "fixed"
    ]


@dataclass(frozen=True)
class _Example:
    index: int
    ssim: float
    original: str
    reconstruction: str


def _pixels(png: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def series_of(rows: Mapping[str, tuple[Dot, ...]], over: Mapping[str, Sequence[str]]) -> list[Series]:
    """Series from rows' points; a row and the only one that is compared with it, and with it alone, look alike."""
    there = {label: [base for base in over.get(label, ()) if base in rows] for label in rows}
    followers = Counter(base for bases in there.values() for base in bases)
    alone = {label: bases[0] for label, bases in there.items() if len(bases) == 1}
    partner = {label: base for label, base in alone.items() if followers[base] == 1 and not there[base]}
    looks: dict[str, int] = {}
    for label in rows:
        if label not in partner:
            looks[label] = len(looks)
    return [
        Series(label, dots, looks[partner.get(label) or label], added=label not in followers)
        for label, dots in rows.items()
    ]
