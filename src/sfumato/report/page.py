"""The page for an auditor: one HTML file that needs no other and says in words what leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jinja2
from markupsafe import Markup

from sfumato.audit.card import Card
from sfumato.report import coverage, curve_figure, curves, figures, provenance, table, verdict, wording
from sfumato.report.comparison import Entry, by_data, entries
from sfumato.report.format import MISSING, fixed, octets, percent
from sfumato.report.gallery import Wall, hang, line_up
from sfumato.report.standings import Standing, recipes, standings, tell_winners
from sfumato.storage import write_text

Row = TypeVar("Row")

_PIXELATED_UP_TO = 96
"""Pictures up to this size are shown with hard pixels: smoothing would hide what is really there."""

_WIDE, _NARROW = (760, 440), (360, 380)
"""Two plots, for a screen and for a phone: one that is scaled would have unreadable text on one of them."""

_WIDE_CURVE, _NARROW_CURVE = (760, 320), (360, 300)

_NOT_ON_THE_PAGE = frozenset({"defense", "attack", "trained_on", "arguments"})
"""Columns by attack that the page tells otherwise: as headings, and in the list of how each was run."""


@dataclass(frozen=True)
class _Model:
    entry: Entry
    verdict: verdict.Verdict
    words: wording.Words
    wall: Wall
    facts: list[provenance.Fact]
    leak: float
    standings: tuple[Standing, ...]
    won: str

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height."""
        _, height, width = self.entry.card.data.image_shape
        return width, height

    @property
    def pixelated(self) -> bool:
        """Whether the pictures are small enough to be shown with hard pixels."""
        return max(self.picture_size) <= _PIXELATED_UP_TO


@dataclass(frozen=True)
class _Plot:
    data: str
    wide: Markup
    narrow: Markup
    key: list[Entry]
    wide_key: bool


@dataclass(frozen=True)
class _Curves:
    panel: curves.Panel
    plot: _Plot
    meaning: str


def render_page(cards: Sequence[Card], *, title: str = "What the feature gives away") -> str:
    """Make the page.

    Args:
        cards: One per model; the undefended one among them serves as the measure for the others.
        title: Of the document.

    Raises:
        InputError: There is no card, or an image in one is not a PNG in base64.
    """
    members = entries(cards)
    verdicts = verdict.judge_all(members)
    return _environment().get_template("page.html.j2").render(
        title=title,
        overall=wording.conclude(members, verdicts),
        models=(models := _models(members, verdicts)),
        # One size for all pictures, whether or not the undefended model's stands beside them.
        slots=max((len(e.pictures) for model in models for e in model.wall.exhibits), default=2),
        lineups=[lineup for group in by_data(members) if (lineup := line_up(group)) is not None],
        several=any(len(entry.card.attacks) > 1 for entry in members),
        columns=table.COLUMNS,
        column_groups=_column_groups(table.COLUMNS),
        attack_columns=(attack_columns := _attack_columns(models)),
        attack_groups=_column_groups(attack_columns),
        attack_explanations=table.attack_explanations(attack_columns),
        explanations=table.explanations(members),
        levels=verdict.LEVEL_MEANING,
        recognizable=verdict.RECOGNIZABLE_SSIM,
        exposed=f"{fixed(100 * verdict.EXPOSED_SHARE, 0)} %",
        plots=[_plot(group, index) for index, group in enumerate(by_data(members))],
        curves=_curves(members),
        recipes=recipes(members),
        tried=coverage.tried(members),
        suspicions=sum(len(entry.card.suspicions) for entry in members),
        assumptions=coverage.assumptions(members),
        not_tried=coverage.not_tried(members),
        common=provenance.common(members),
    )  # fmt: skip


def write_page(cards: Sequence[Card], path: Path, *, title: str = "What the feature gives away") -> None:
    """Make the page and write it atomically.

    Raises:
        InputError: There is no card, or an image in one is not a PNG in base64.
        StorageError: The disk refused.
    """
    write_text(Path(path), render_page(cards, title=title))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sfumato.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(fixed=fixed, percent=percent, octets=octets)
    environment.globals.update(missing=MISSING)
    return environment


def _models(members: Sequence[Entry], verdicts: Sequence[verdict.Verdict]) -> list[_Model]:
    return [
        _Model(
            entry=entry,
            verdict=each,
            words=wording.describe(entry, each),
            wall=hang(entry),
            facts=facts,
            leak=round(100 * min(1.0, max(0.0, entry.card.worst_case.ssim)), 1),
            standings=standings(entry),
            won=tell_winners(entry.card),
        )
        for entry, each, facts in zip(members, verdicts, provenance.own(members))
    ]


def _attack_columns(models: Sequence[_Model]) -> list[table.Column[Standing]]:
    """Those of the page; a figure that older cards lack is left out where no card has it. Of quality, none is."""
    every = [standing for model in models for standing in model.standings]
    columns = [column for column in table.ATTACK_COLUMNS if column.key not in _NOT_ON_THE_PAGE]
    return [c for c in columns if c.group or any(c.value(standing) is not None for standing in every)]


def _column_groups(columns: Sequence[table.Column[Row]]) -> list[tuple[str, list[table.Column[Row]]]]:
    groups: list[tuple[str, list[table.Column[Row]]]] = []
    for column in columns:
        if column.group and groups and groups[-1][0] == column.group:
            groups[-1][1].append(column)
        else:
            groups.append((column.group, [column]))
    return groups


def _plot(group: Sequence[Entry], index: int) -> _Plot:
    words = figures.describe(group)
    wide, narrow = (
        _inline(figures.draw(group, axis="ssim", width=width, height=height), f"p{index}-{name}", words)
        for name, (width, height) in (("wide", _WIDE), ("narrow", _NARROW))
    )
    key = list(group) if figures.numbered(group, width=_NARROW[0]) else []
    return _Plot(group[0].card.data.source, wide, narrow, key, figures.numbered(group, width=_WIDE[0]))


def _curves(members: Sequence[Entry]) -> list[_Curves]:
    found = [panel for group in by_data(members) for panel in curves.panels(group)]
    return [_Curves(panel, _curve_plot(panel, index), curves.explain(panel)) for index, panel in enumerate(found)]


def _curve_plot(panel: curves.Panel, index: int) -> _Plot:
    words = curves.describe(panel)
    wide, narrow = (
        _inline(curve_figure.draw(panel, width=width, height=height), f"c{index}-{name}", words)
        for name, (width, height) in (("wide", _WIDE_CURVE), ("narrow", _NARROW_CURVE))
    )
    shown = [curve.entry for curve in panel.curves]
    key = shown if curve_figure.abbreviated(panel, width=_NARROW_CURVE[0]) else []
    wide_key = curve_figure.abbreviated(panel, width=_WIDE_CURVE[0])
    return _Plot(shown[0].card.data.source, wide, narrow, key, wide_key)


def _inline(svg: str, prefix: str, words: str) -> Markup:
    # Safe: matplotlib escapes the names it draws, and the description is escaped where it is put in.
    return Markup(figures.inline(svg, prefix=prefix, description=words))
