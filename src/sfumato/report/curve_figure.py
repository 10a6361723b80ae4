"""The plot of the leak against what an attacker spends, in the style of the other plots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from sfumato.report.comparison import Entry
from sfumato.report.curves import Curve, Panel
from sfumato.report.figures import BAND, INK, MARKERS, MUTED, SERIES, as_svg, house_style
from sfumato.report.verdict import BLURRED_SSIM, COPY_SSIM, RECOGNIZABLE_SSIM, Level

DASHES = ((0, ()), (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 2, 2)))
"""Beside color and marker, for who tells lines apart by neither."""

_BANDS = (
    (-1.0, BLURRED_SSIM, Level.HARDLY),
    (BLURRED_SSIM, RECOGNIZABLE_SSIM, Level.BLURRED),
    (RECOGNIZABLE_SSIM, COPY_SSIM, Level.RECOGNIZABLE),
    (COPY_SSIM, 1.0, Level.COPY),
)
_SMALLEST_RANGE = 0.2
"""SSIM that the axis spans at least: less would make chance look like an effect."""


def draw(panel: Panel, *, width: int, height: int) -> str:
    """Plot a panel's curves as SVG, the same bytes for the same cards.

    Args:
        panel: What to draw.
        width: In CSS pixels.
        height: In CSS pixels.
    """
    short = abbreviated(panel, width=width)
    texts = [str(curve.entry.number) if short else curve.entry.name for curve in panel.curves]
    right = 18 + 6.6 * max(len(text) for text in texts)
    with house_style():
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        axes = figure.add_axes((56 / width, 50 / height, 1 - (56 + right) / width, 1 - 62 / height))
        _frame(axes, panel, narrow=width < 500)
        for curve in panel.curves:
            _line(axes, curve)
        _names(axes, panel.curves, texts, height=height - 62)
        return as_svg(figure)


def abbreviated(panel: Panel, *, width: int) -> bool:
    """Whether lines carry numbers because names would not fit."""
    longest = max(len(curve.entry.name) for curve in panel.curves)
    return len(panel.curves) > 12 or longest > (26 if width >= 500 else 11)


def _frame(axes: Axes, panel: Panel, *, narrow: bool) -> None:
    size = 10 if narrow else 11
    _amounts(axes, panel, narrow=narrow)
    _similarity(axes, panel, narrow=narrow)
    axes.set_xlabel(panel.what.axis, color=INK, fontsize=size)
    axes.set_ylabel("attacker’s SSIM on test pictures", color=INK, fontsize=size)
    axes.tick_params(colors=MUTED, labelsize=size - 1, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def _amounts(axes: Axes, panel: Panel, *, narrow: bool) -> None:
    """A logarithmic axis: what counts is how many times as much an attacker spends."""
    amounts = sorted({spent for curve in panel.curves for spent, _ in curve.points})
    least = min(spent for spent in amounts if spent > 0)
    if amounts[0] == 0:
        axes.set_xscale("symlog", linthresh=least, linscale=0.5)
    else:
        axes.set_xscale("log")
    low, high = amounts[0], amounts[-1]
    scale = axes.xaxis.get_transform()
    left, right = scale.transform([low, high])
    # Room for the names of the levels, where no line runs.
    start, stop = left - (0.36 if narrow else 0.17) * (right - left), right + 0.04 * (right - left)
    axes.set_xlim(*scale.inverted().transform([start, stop]))
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = _apart(axes, amounts, share=0.2 if narrow else 0.1)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def _apart(axes: Axes, amounts: Sequence[int], *, share: float) -> list[int]:
    """Those amounts whose labels do not run into each other, both ends among them."""
    place = axes.transAxes.inverted().transform
    where = {amount: float(place(axes.transData.transform((amount, 0.5)))[0]) for amount in amounts}
    kept = [amounts[0]]
    for amount in amounts[1:-1]:
        if where[amount] - where[kept[-1]] >= share and where[amounts[-1]] - where[amount] >= share:
            kept.append(amount)
    return [*kept, amounts[-1]]


def _similarity(axes: Axes, panel: Panel, *, narrow: bool) -> None:
    values = [ssim for curve in panel.curves for _, ssim in curve.points]
    low, high = math.floor(10 * min(values) - 0.3) / 10, math.ceil(10 * max(values) + 0.3) / 10
    missing = max(0.0, _SMALLEST_RANGE - (high - low)) / 2
    low, high = max(-1.0, low - missing), min(1.0, high + missing)
    axes.set_ylim(low, high)
    for index, (start, stop, level) in enumerate(_BANDS):
        start, stop = max(start, low), min(stop, high)
        if stop <= start:
            continue
        if index % 2 == 0:
            axes.axhspan(start, stop, facecolor=BAND, alpha=0.13, linewidth=0, zorder=0)
        name = level.value.replace(" ", "\n") if narrow else level.value
        if stop - start > 0.07 * (1 + name.count("\n")) * (high - low):
            axes.annotate(
                name, (0, stop), xycoords=("axes fraction", "data"), xytext=(5, -4),
                textcoords="offset points", ha="left", va="top", color=MUTED, fontsize=8.5,
            )  # fmt: skip


def _line(axes: Axes, curve: Curve) -> None:
    index = curve.entry.number - 1
    color = _color(curve.entry)
    xs, ys = zip(*curve.points)
    axes.plot(
        xs, ys, color=color, linewidth=2, linestyle=DASHES[0 if curve.entry.undefended else index % len(DASHES)],
        marker="o" if curve.entry.undefended else MARKERS[index % len(MARKERS)], markersize=8, markeredgewidth=2,
        markerfacecolor="none" if curve.entry.undefended else color, zorder=3, clip_on=False,
    )  # fmt: skip


def _color(entry: Entry) -> str:
    return INK if entry.undefended else SERIES[(entry.number - 1) % len(SERIES)]


def _names(axes: Axes, curves: Sequence[Curve], texts: Sequence[str], *, height: float) -> None:
    """Each name to the right of where its line ends, moved up or down so that none covers another."""
    low, high = axes.get_ylim()
    ends = [height * (curve.points[-1][1] - low) / (high - low) for curve in curves]
    for curve, text, end, at in zip(curves, texts, ends, spread(ends, gap=13.0, top=height)):
        name = axes.annotate(
            text, (1, curve.points[-1][1]), xycoords=("axes fraction", "data"), xytext=(8, at - end),
            textcoords="offset points", ha="left", va="center", color=_color(curve.entry), fontsize=11,
            annotation_clip=False,
        )  # fmt: skip
        name.set_parse_math(False)


def spread(places: Sequence[float], *, gap: float, top: float) -> list[float]:
    """Places moved as little as a pass up and a pass down make them, until neighbors are ``gap`` apart.

    Args:
        places: Wanted, from 0 to ``top``; the order is kept.
        gap: Least distance; has to fit between 0 and ``top`` for all of them.
        top: Highest place.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    if moved:
        moved[-1] = min(moved[-1], top)
    for i in reversed(range(len(moved) - 1)):
        moved[i] = min(moved[i], moved[i + 1] - gap)
    return [moved[order.index(i)] for i in range(len(places))]
