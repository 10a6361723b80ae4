"""From cards to the lines of a table: means and spreads over seeds, what a row adds, the paper's figures beside."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sfumato.audit import Card
from sfumato.audit.card import AttackInfo
from sfumato.bench.expansion import Job
from sfumato.bench.experiment import Experiment, Value


@dataclass(frozen=True)
class Figure:
    """One figure of a card, as the papers' tables have it.

    Args:
        key: Its name in files.
        title: Its name for people.
        value: From a card and one of its attacks; ``None`` where it has none.
        digits: Decimals that are shown.
        scale: What it is multiplied with to be shown.
    """

    key: str
    title: str
    value: Callable[[Card, AttackInfo], float | None]
    digits: int
    scale: float = 1.0


FIGURES: tuple[Figure, ...] = (
    Figure("accuracy", "accuracy (%)", lambda card, attack: card.utility.test_accuracy, 2, 100.0),
    Figure("mse_train", "MSE, train ↑", lambda card, attack: attack.train.mse, 4),
    Figure("mse_test", "MSE, test ↑", lambda card, attack: attack.test.mse, 4),
    Figure("ssim", "SSIM, test ↓", lambda card, attack: attack.test.ssim, 3),
    Figure("psnr", "PSNR, test (dB) ↓", lambda card, attack: attack.test.psnr, 2),
)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds.

    Attributes:
        mean: Arithmetic mean.
        deviation: Sample standard deviation (n − 1); ``None`` of a single value.
        by_seed: Seed to value.
    """

    mean: float
    deviation: float | None
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Change:
    """What a row does to a figure of the row that it is compared with, seed by seed.

    Attributes:
        difference: With it minus without it.
        ratio: With it over without it, minus 1; ``None`` where a figure without it is 0.
        published: The paper's difference; ``None`` where it prints none.
        published_ratio: Likewise.
    """

    difference: Spread
    ratio: Spread | None
    published: float | None
    published_ratio: float | None


@dataclass(frozen=True)
class Line:
    """One row at one point.

    Attributes:
        row: Its label.
        point: Value of what is swept, or ``None``.
        seeds: The seeds that there is a card of.
        missing: The seeds that there is none of.
        figures: Figure's key to mean and spread; empty where there is no card.
        published: The paper's figures.
        over: Labels of the rows that it is compared with.
        changes: Label of such a row to figure's key to change, over the seeds that both have; without the rows that
            share no seed with this one.
    """

    row: str
    point: Value | None
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    figures: Mapping[str, Spread] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    over: tuple[str, ...] = ()
    changes: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)


@dataclass(frozen=True)
class Average:
    """Means over all rows that are compared with another, and over those others.

    Attributes:
        rows: How many pairs.
        without: Figure's key to the mean over the rows compared with.
        with_it: Likewise over the rows.
        published_without: The same of the paper's figures of the same rows, where it prints all of them.
        published_with: Likewise.
    """

    rows: int
    without: Mapping[str, float]
    with_it: Mapping[str, float]
    published_without: Mapping[str, float]
    published_with: Mapping[str, float]


def spread(by_seed: Mapping[int, float]) -> Spread:
    """Mean and sample standard deviation of at least one seed's value.

    >>> spread({0: 1.0, 1: 3.0})
    Spread(mean=2.0, deviation=1.4142135623730951, by_seed={0: 1.0, 1: 3.0})
    """
    values = by_seed.values()
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(math.fsum(values) / len(values), deviation, dict(by_seed))


def attack_of(card: Card, name: str) -> AttackInfo | None:
    """A card's attack of that name."""
    return next((attack for attack in card.attacks if attack.attack.name == name), None)


def attack_names(cards: Mapping[str, Card]) -> list[str]:
    """Every attack that any card has, in the cards' order."""
    return list(dict.fromkeys(attack.attack.name for card in cards.values() for attack in card.attacks))


def aggregate(experiment: Experiment, jobs: Sequence[Job], cards: Mapping[str, Card], attack: str) -> tuple[Line, ...]:
    """The table of one attack.

    Args:
        experiment: What the jobs belong to.
        jobs: All that should be there.
        cards: Those that are, by :attr:`~sfumato.bench.expansion.Job.key`.
        attack: The attack's name in the cards.

    Returns:
        A line for each row and point, in the jobs' order.
    """
    values = _values(jobs, cards, attack)
    over = {row.label: row.over for row in experiment.rows}
    names = {row.label: row.published or row.label for row in experiment.rows}
    printed = experiment.published(attack)
    lines = []
    for place in dict.fromkeys((job.row, job.point) for job in jobs):
        row, point = place
        mine = values.get(place, {})
        expected = [job.seed for job in jobs if (job.row, job.point) == place]
        shown = printed if _is_published(experiment, point) else {}
        own = shown.get(names[row], {})
        changes = {}
        for base in over[row]:
            theirs = values.get((base, point)) or values.get((base, None)) or {}
            changes[base] = _changes(mine, theirs, own, shown.get(names[base], {}))
        lines.append(
            Line(
                row,
                point,
                tuple(seed for seed in expected if seed in mine),
                tuple(seed for seed in expected if seed not in mine),
                {key: spread(found) for key in _KEYS if (found := {s: v[key] for s, v in mine.items() if key in v})},
                dict(own),
                over[row],
                {base: found for base, found in changes.items() if found},
            )
        )
    return tuple(lines)


def average(lines: Sequence[Line]) -> Average | None:
    """Means over the pairs that are there; ``None`` where there are fewer than two.

    A row counts where both it and the row it is compared with have cards, and once for each such row.
    """
    by_place = {(line.row, line.point): line for line in lines}
    pairs = [
        (by_place[base, line.point], line)
        for line in lines
        for base in line.over
        if line.figures and (base, line.point) in by_place
    ]
    pairs = [(without, with_it) for without, with_it in pairs if without.figures]
    if len(pairs) < 2:
        return None
    bases, rows = zip(*pairs)
    return Average(
        len(pairs),
        _means([{key: s.mean for key, s in line.figures.items()} for line in bases]),
        _means([{key: s.mean for key, s in line.figures.items()} for line in rows]),
        _means([line.published for line in bases]),
        _means([line.published for line in rows]),
    )


_KEYS = tuple(figure.key for figure in FIGURES)
_BySeed = dict[int, dict[str, float]]


def _values(jobs: Sequence[Job], cards: Mapping[str, Card], attack: str) -> dict[tuple[str, Value | None], _BySeed]:
    """Row and point to seed to figures."""
    found: dict[tuple[str, Value | None], _BySeed] = {}
    for job in jobs:
        card = cards.get(job.key)
        info = attack_of(card, attack) if card is not None else None
        if card is None or info is None:
            continue
        figures = {figure.key: figure.value(card, info) for figure in FIGURES}
        known = {key: value for key, value in figures.items() if value is not None}
        found.setdefault((job.row, job.point), {})[job.seed] = known
    return found


def _is_published(experiment: Experiment, point: Value | None) -> bool:
    """Whether the paper's figures are of this point."""
    if experiment.vary is None:
        return True
    return experiment.vary.published is not None and point in (None, experiment.vary.published)


def _changes(mine: _BySeed, theirs: _BySeed, own: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Change]:
    return {key: change for key in _KEYS if (change := _change(mine, theirs, key, own, other)) is not None}


def _change(
    mine: _BySeed, theirs: _BySeed, key: str, own: Mapping[str, float], other: Mapping[str, float]
) -> Change | None:
    pairs = {s: (theirs[s][key], mine[s][key]) for s in mine if s in theirs and key in mine[s] and key in theirs[s]}
    if not pairs:
        return None
    printed = (other[key], own[key]) if key in own and key in other else None
    comparable = all(without != 0 for without, _ in pairs.values())
    return Change(
        spread({s: with_it - without for s, (without, with_it) in pairs.items()}),
        spread({s: with_it / without - 1 for s, (without, with_it) in pairs.items()}) if comparable else None,
        printed[1] - printed[0] if printed else None,
        printed[1] / printed[0] - 1 if printed and printed[0] != 0 else None,
    )


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in _KEYS if all(key in row for row in rows)}
