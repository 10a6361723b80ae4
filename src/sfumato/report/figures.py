"""The plot of privacy against usefulness, as SVG that is the same bytes for the same cards."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfumato.audit.card import Card
from sfumato.report.comparison import Entry, entries
from sfumato.report.format import fixed, percent
from sfumato.report.labels import Box, Placed, place_labels
from sfumato.report.verdict import BLURRED_SSIM, COPY_SSIM, RECOGNIZABLE_SSIM, Level

INK, MUTED, BAND = "#1d1d1b", "#5c5a55", "#8a8478"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's colors for the color-blind, without the yellow that vanishes on paper."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
"""More shapes than colors, so that the pairs repeat only after 66 models."""

_RC: Any = {
    "svg.hashsalt": "sfumato",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.default": "regular",
    "axes.unicode_minus": False,
}

AxisName = Literal["ssim", "mse"]


@dataclass(frozen=True)
class _Axis:
    label: str
    value: Callable[[Entry], float]
    mean: Callable[[Entry], float]
    bands: tuple[tuple[float, float, Level], ...] = ()


_AXES: dict[AxisName, _Axis] = {
    "ssim": _Axis(
        "similarity of the attacker’s picture (SSIM), more private →",
        lambda e: e.card.worst_case.ssim,
        lambda e: e.card.mean_image.ssim,
        (
            (1.0, COPY_SSIM, Level.COPY),
            (COPY_SSIM, RECOGNIZABLE_SSIM, Level.RECOGNIZABLE),
            (RECOGNIZABLE_SSIM, BLURRED_SSIM, Level.BLURRED),
            (BLURRED_SSIM, -1.0, Level.HARDLY),
        ),
    ),
    "mse": _Axis(
        "error of the attacker’s picture (MSE), more private →",
        lambda e: e.strongest.test.mse,
        lambda e: e.card.mean_image.mse,
    ),
}


def privacy_utility_svg(cards: Sequence[Card], *, axis: AxisName = "ssim", width: int = 760, height: int = 440) -> str:
    """Plot test accuracy against what the attacks leave private; the top right corner is the best place.

    Args:
        cards: One point each, numbered as in the table.
        axis: ``"ssim"``: worst-case SSIM, drawn from 1 on the left to 0 on the right, with the levels of
            the verdict as bands. ``"mse"``: test MSE of the strongest attack.
        width: In CSS pixels; a narrow plot numbers its points sooner instead of naming them.
        height: In CSS pixels.

    Raises:
        InputError: There is no card.
    """
    return draw(entries(cards), axis=axis, width=width, height=height)


def draw(members: Sequence[Entry], *, axis: AxisName, width: int, height: int) -> str:
    """Like :func:`privacy_utility_svg`, for entries that are already named and numbered."""
    how = _AXES[axis]
    with house_style():
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        axes = figure.add_axes((56 / width, 50 / height, 1 - 72 / width, 1 - 62 / height))
        _frame(axes, how, members, narrow=width < 500)
        _points(axes, how, members)
        return as_svg(figure)


@contextmanager
def house_style() -> Iterator[None]:
    """Draw as every plot here is drawn, whatever the reader's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The reader's browser draws the text, with fonts that need not be on this machine.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # From the defaults, so that a reader's own matplotlibrc cannot change the bytes.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def as_svg(figure: Figure, *, transparent: bool = True) -> str:
    """A figure drawn in :func:`house_style` as an SVG element that names neither date nor program."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def numbered(members: Sequence[Entry], *, width: int = 760) -> bool:
    """Whether points carry numbers because names would not fit."""
    return len(members) > (10 if width >= 500 else 5) or max(len(entry.name) for entry in members) > width / 20


def inline(svg: str, *, prefix: str, description: str) -> str:
    """Make a plot fit to stand in a page: colors follow the page's, ids are unique, it has a description.

    Args:
        svg: What :func:`privacy_utility_svg` gave.
        prefix: Unique in the page; only letters, digits and hyphens.
        description: What the plot shows, for those who do not see it.
    """
    # Inside HTML the parser supplies the namespaces, and without them the page names no address at all.
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\s+width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\s+height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"'DejaVu Sans'(, sans-serif)?", "var(--sans)", svg)
    names = {INK: "ink", MUTED: "muted", BAND: "band"} | {c: f"series-{i}" for i, c in enumerate(SERIES)}
    for color, name in names.items():
        svg = svg.replace(color, f"var(--{name})")
    label = html.escape(" ".join(description.split()), quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def describe(members: Sequence[Entry]) -> str:
    """The plot in words."""
    points = "; ".join(
        f"{entry.name}: accuracy {percent(entry.card.utility.test_accuracy)}, "
        f"SSIM {fixed(entry.card.worst_case.ssim, 2)}"
        for entry in members
    )
    mean = fixed(members[0].card.mean_image.ssim, 2)
    return f"Scatter plot of test accuracy against the attacker’s SSIM. {points}. Mean image: SSIM {mean}."


def _frame(axes: Axes, how: _Axis, members: Sequence[Entry], *, narrow: bool) -> None:
    shown = [value for entry in members for value in (how.value(entry), how.mean(entry))]
    if how.bands:
        axes.set_xlim(1.0, min([0.0, *(value - 0.03 for value in shown)]))
    else:
        axes.set_xlim(0.0, 1.12 * max([*shown, 1e-6]))
    accuracy = [100 * entry.card.utility.test_accuracy for entry in members]
    middle, half = (max(accuracy) + min(accuracy)) / 2, max(4.0, 0.75 * (max(accuracy) - min(accuracy)))
    # Room above the points, where the names of the bands stand.
    axes.set_ylim(middle - half, middle + 1.35 * half)
    axes.set_xlabel(
        how.label if not narrow else how.label.split(", ")[0] + " →", color=INK, fontsize=10 if narrow else 11
    )
    axes.set_ylabel("test accuracy (%)", color=INK, fontsize=10 if narrow else 11)
    axes.tick_params(colors=MUTED, labelsize=9 if narrow else 10, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    _bands(axes, how, narrow=narrow)
    for value in _mean_values(how, members):
        axes.axvline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            "mean image", (value, 0), xycoords=("data", "axes fraction"), xytext=(-4, 5),
            textcoords="offset points", rotation=90, ha="right", va="bottom", color=MUTED, fontsize=10,
        )  # fmt: skip


def _bands(axes: Axes, how: _Axis, *, narrow: bool) -> None:
    low = axes.get_xlim()[1]
    for index, (start, stop, level) in enumerate(how.bands):
        stop = max(stop, low)
        # Every other band shaded: the borders show without a line, in print as in the dark.
        if index % 2 == 0:
            axes.axvspan(stop, start, facecolor=BAND, alpha=0.13, linewidth=0, zorder=0)
        text = level.value.replace(" ", "\n") if narrow else level.value
        axes.annotate(
            text, ((start + stop) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, -4),
            textcoords="offset points", ha="center", va="top", color=MUTED, fontsize=8.5 if narrow else 10,
        )  # fmt: skip


def _points(axes: Axes, how: _Axis, members: Sequence[Entry]) -> None:
    width, height = axes.get_figure(root=True).get_size_inches() * 72  # type: ignore[union-attr]
    short = numbered(members, width=round(width))
    points = [(how.value(entry), 100 * entry.card.utility.test_accuracy) for entry in members]
    where = [axes.transData.transform(point) for point in points]
    texts = [str(entry.number) if short else entry.name for entry in members]
    room = Box(58.0, 52.0, float(width) - 4, float(height) - 40)
    at = [(float(x), float(y)) for x, y in where]
    placed = place_labels(at, texts, size=11.0, room=room, keep_free=_mean_lines(axes, how, members))
    for entry, point, label in zip(members, points, placed):
        _point(axes, entry, point, label)


def _mean_values(how: _Axis, members: Sequence[Entry]) -> list[float]:
    return sorted({round(how.mean(entry), 3) for entry in members})


def _mean_lines(axes: Axes, how: _Axis, members: Sequence[Entry]) -> list[Box]:
    xs = [float(axes.transData.transform((value, 0.0))[0]) for value in _mean_values(how, members)]
    return [Box(x - 3, 0, x + 3, 1e4) for x in xs] + [Box(x - 18, 0, x, 125) for x in xs]


def _point(axes: Axes, entry: Entry, at: tuple[float, float], label: Placed) -> None:
    color = INK if entry.undefended else SERIES[(entry.number - 1) % len(SERIES)]
    marker = "o" if entry.undefended else MARKERS[(entry.number - 1) % len(MARKERS)]
    axes.plot(
        [at[0]], [at[1]], linestyle="none", marker=marker, markersize=10, markeredgewidth=2, zorder=3,
        markeredgecolor=color, markerfacecolor="none" if entry.undefended else color, clip_on=False,
    )  # fmt: skip
    if label.far:
        axes.annotate(
            "", at, xytext=(label.dx, label.dy), textcoords="offset points", zorder=2,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 6},
        )  # fmt: skip
    text = axes.annotate(
        label.text, at, xytext=(label.dx, label.dy), textcoords="offset points", color=INK, fontsize=11,
        ha=label.align, va="center", zorder=4, annotation_clip=False,
    )  # fmt: skip
    text.set_parse_math(False)  # a dollar sign in a label is a dollar sign
