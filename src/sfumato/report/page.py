"""The page for an auditor: one HTML file that needs no other and says in words what leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from sfumato.audit.card import AttackInfo, Card
from sfumato.report import coverage, figures, provenance, table, verdict, wording
from sfumato.report.comparison import Entry, by_data, entries
from sfumato.report.format import MISSING, call, fixed, octets, percent
from sfumato.report.gallery import Wall, hang, line_up
from sfumato.storage import write_text

_PIXELATED_UP_TO = 96
"""Pictures up to this size are shown with hard pixels: smoothing would hide what is really there."""

_WIDE, _NARROW = (760, 440), (360, 380)
"""Two plots, for a screen and for a phone: one that is scaled would have unreadable text on one of them."""


@dataclass(frozen=True)
class _Model:
    entry: Entry
    verdict: verdict.Verdict
    words: wording.Words
    wall: Wall
    facts: list[provenance.Fact]
    leak: float

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


@dataclass(frozen=True)
class _Assault:
    model: str
    attack: AttackInfo
    text: str
    strongest: bool


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
        columns=table.COLUMNS,
        column_groups=_column_groups(),
        explanations=table.explanations(),
        levels=verdict.LEVEL_MEANING,
        recognizable=verdict.RECOGNIZABLE_SSIM,
        exposed=f"{fixed(100 * verdict.EXPOSED_SHARE, 0)} %",
        plots=[_plot(group, index) for index, group in enumerate(by_data(members))],
        assaults=_assaults(members),
        trained_on=coverage.TRAINED_ON,
        judged=any(entry.card.judge is not None for entry in members),
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
        )
        for entry, each, facts in zip(members, verdicts, provenance.own(members))
    ]


def _column_groups() -> list[tuple[str, list[table.Column]]]:
    groups: list[tuple[str, list[table.Column]]] = []
    for column in table.COLUMNS:
        if column.group and groups and groups[-1][0] == column.group:
            groups[-1][1].append(column)
        else:
            groups.append((column.group, [column]))
    return groups


def _plot(group: Sequence[Entry], index: int) -> _Plot:
    drawn = []
    for name, (width, height) in (("wide", _WIDE), ("narrow", _NARROW)):
        svg = figures.draw(group, axis="ssim", width=width, height=height)
        # Safe: matplotlib escapes the names it draws, and the description is escaped where it is put in.
        words = figures.describe(group)
        drawn.append(Markup(figures.inline(svg, prefix=f"p{index}-{name}", description=words)))
    key = list(group) if figures.numbered(group, width=_NARROW[0]) else []
    return _Plot(group[0].card.data.source, drawn[0], drawn[1], key)


def _assaults(members: Sequence[Entry]) -> list[_Assault]:
    return [
        _Assault(entry.name, attack, call(attack.attack), attack is entry.strongest)
        for entry in members
        for attack in entry.card.attacks
    ]
