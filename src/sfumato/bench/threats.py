"""What attackers who may touch different things make of every row: each attack, and the strongest of each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sfumato.attacks import THREAT_MODELS, ThreatModel
from sfumato.audit import Card
from sfumato.audit.card import AttackInfo
from sfumato.bench.aggregate import Spread, spread
from sfumato.bench.expansion import Job
from sfumato.bench.experiment import Value

Measure = Literal["ssim", "mse"]
Origin = Literal["train", "auxiliary"]
MEASURES: tuple[Measure, ...] = ("ssim", "mse")


@dataclass(frozen=True)
class Column:
    """One attack under one threat model.

    Attributes:
        threat_model: What it may touch.
        attack: Its label in the cards.
    """

    threat_model: ThreatModel
    attack: str

    @property
    def title(self) -> str:
        """The label without the threat model.

        >>> Column("gray-box", "generator (observations=4, threat_model=gray-box)").title
        'generator (observations=4)'
        """
        return re.sub(r" \(\)$", "", re.sub(r"threat_model=[\w-]+(, )?|, threat_model=[\w-]+(?=\))", "", self.attack))


@dataclass(frozen=True)
class Faced:
    """One row at one point against all attacks, by one measure.

    Attributes:
        row: Its label.
        point: Value of what is swept, or ``None``.
        attacks: Mean and spread over seeds of each attack that there is a card of.
        by_threat_model: The same of the strongest: of each image whichever attack came closest of those run under a
            threat model or under one that may touch less, for who may touch more can do all that others can.
    """

    row: str
    point: Value | None
    attacks: Mapping[Column, Spread]
    by_threat_model: Mapping[ThreatModel, Spread]


@dataclass(frozen=True)
class Threats:
    """All attackers of an experiment.

    Attributes:
        columns: White-box attacks first, black-box ones last, each in the cards' order.
        rows: Measure to rows in the jobs' order.
        wins: Measure to attack's column to the rows in which its mean is the best; only attacks that win any, most
            first.
        learned_from: Which images attackers learned from, as the cards say, to the labels of the rows where they did.
    """

    columns: tuple[Column, ...]
    rows: Mapping[Measure, tuple[Faced, ...]]
    wins: Mapping[Measure, Mapping[Column, int]]
    learned_from: Mapping[Origin, tuple[str, ...]]

    @property
    def threat_models(self) -> tuple[ThreatModel, ...]:
        """Those that any attack works under."""
        return tuple(dict.fromkeys(column.threat_model for column in self.columns))

    @property
    def worth_showing(self) -> bool:
        """Whether a table an attack would hide what matters: several threat models, or more than two attacks."""
        return len(self.threat_models) > 1 or len(self.columns) > 2


def side_by_side(jobs: Sequence[Job], cards: Mapping[str, Card]) -> Threats:
    """Put the attacks of all cards side by side.

    Args:
        jobs: All that should be there.
        cards: Those that are, by :attr:`~sfumato.bench.expansion.Job.key`.
    """
    found = dict.fromkeys(column_of(attack) for job in jobs if job.key in cards for attack in cards[job.key].attacks)
    columns = tuple(sorted(found, key=lambda column: THREAT_MODELS.index(column.threat_model)))
    places: dict[tuple[str, Value | None], dict[int, Card]] = {}
    for job in jobs:
        own = places.setdefault((job.row, job.point), {})
        if job.key in cards:
            own[job.seed] = cards[job.key]
    rows = {
        measure: tuple(_faced(*place, own, columns, measure) for place, own in places.items()) for measure in MEASURES
    }
    wins = {measure: _wins(rows[measure], measure) for measure in MEASURES}
    return Threats(columns, rows, wins, _learned_from(jobs, cards))


def column_of(attack: AttackInfo) -> Column:
    """Where a card's attack belongs."""
    return Column(attack.threat_model, attack.attack.name)


def strongest(attacks: Sequence[AttackInfo], measure: Measure) -> float:
    """Mean over test images of the best that any of the attacks reached on each, as in a card's ``worst_case``.

    Where they were judged on different numbers of images, the best of their means.
    """
    each = [attack.test_ssim if measure == "ssim" else attack.test_mse for attack in attacks]
    if len({len(values) for values in each}) > 1:
        each = [[getattr(attack.test, measure)] for attack in attacks]
    best = np.max if measure == "ssim" else np.min
    return float(best(np.array(each), axis=0).mean())


def closest(figures: Mapping[Column, Spread], measure: Measure) -> Column | None:
    """The attack with the best mean, of equals the first; ``None`` of none."""
    if not figures:
        return None
    return max(figures, key=lambda column: _closeness(figures[column], measure))


def _learned_from(jobs: Sequence[Job], cards: Mapping[str, Card]) -> dict[Origin, tuple[str, ...]]:
    rows: dict[Origin, dict[str, None]] = {}
    for job in jobs:
        for attack in cards[job.key].attacks if job.key in cards else ():
            rows.setdefault(attack.trained_on, {})[job.row] = None
    return {origin: tuple(labels) for origin, labels in rows.items()}


def _closeness(value: Spread, measure: Measure) -> float:
    return value.mean if measure == "ssim" else -value.mean


def _faced(
    row: str, point: Value | None, cards: Mapping[int, Card], columns: Sequence[Column], measure: Measure
) -> Faced:
    single: dict[Column, dict[int, float]] = {column: {} for column in columns}
    by_model: dict[ThreatModel, dict[int, float]] = {column.threat_model: {} for column in columns}
    for seed, card in cards.items():
        for attack in card.attacks:
            single[column_of(attack)][seed] = getattr(attack.test, measure)
        for model, values in by_model.items():
            within = THREAT_MODELS[THREAT_MODELS.index(model) :]
            own = [attack for attack in card.attacks if attack.threat_model in within]
            if own:
                values[seed] = strongest(own, measure)
    return Faced(
        row,
        point,
        {column: spread(values) for column, values in single.items() if values},
        {model: spread(values) for model, values in by_model.items() if values},
    )


def _wins(rows: Sequence[Faced], measure: Measure) -> dict[Column, int]:
    best = (closest(faced.attacks, measure) for faced in rows)
    return dict(Counter(column for column in best if column is not None).most_common())
