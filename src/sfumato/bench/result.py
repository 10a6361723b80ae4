"""What an experiment's cards say, beyond the table: curves, matches, correlations, doubts, surroundings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.audit import Card
from sfumato.bench.aggregate import (
    Average,
    Line,
    Spread,
    aggregate,
    attack_names,
    attack_of,
    average,
    spread,
)
from sfumato.bench.costs import costs
from sfumato.bench.curves import Correlation, Curve, Matched, match_seeds, rank_correlation
from sfumato.bench.expansion import Job
from sfumato.bench.experiment import Experiment, SizeName
from sfumato.bench.threats import Threats, side_by_side


@dataclass(frozen=True)
class Table:
    """One attack's figures.

    Attributes:
        attack: Its name in the cards.
        lines: Row by row.
        average: Over the rows that are compared with another.
    """

    attack: str
    lines: tuple[Line, ...]
    average: Average | None


@dataclass(frozen=True)
class Entropy:
    """How entropy and error go together.

    Attributes:
        all: Over every card.
        by_seed: Spearman's ρ with each seed alone; ``None`` where it is not defined for any.
        by_row: Row's label to the correlation along its curve, over its cards of all seeds.
    """

    all: Correlation
    by_seed: Spread | None
    by_row: Mapping[str, Correlation]


@dataclass(frozen=True)
class Result:
    """An experiment as far as there are cards.

    Attributes:
        experiment: What was asked.
        size: At which size.
        jobs: All that belong to it.
        cards: Those that are there, by key.
        tables: One for each attack.
        threats: All attacks side by side, by what they may touch.
        matched: (row, row it is compared with) to the comparison at matched accuracy, where rows are curves.
        entropy: Where the experiment names a figure of theory.
        suspicions: Code to how many cards have it, however often.
        costs: Row to figure's name to the least and the most that one of its models costs.
    """

    experiment: Experiment
    size: SizeName
    jobs: tuple[Job, ...]
    cards: Mapping[str, Card]
    tables: tuple[Table, ...]
    threats: Threats
    matched: Mapping[tuple[str, str], Matched]
    entropy: Entropy | None
    suspicions: Mapping[str, int]
    costs: Mapping[str, Mapping[str, tuple[int, int]]]

    @property
    def main(self) -> Table | None:
        """The first attack's table."""
        return self.tables[0] if self.tables else None

    @property
    def missing(self) -> list[Job]:
        """The jobs that there is no card of."""
        return [job for job in self.jobs if job.key not in self.cards]


def evaluate(experiment: Experiment, size: SizeName, jobs: Sequence[Job], cards: Mapping[str, Card]) -> Result:
    """Everything that the cards of an experiment say."""
    own = {job.key: cards[job.key] for job in jobs if job.key in cards}
    tables = []
    for attack in attack_names(own):
        lines = aggregate(experiment, jobs, own, attack)
        tables.append(Table(attack, lines, average(lines) if experiment.vary is None else None))
    found = Counter(code for card in own.values() for code in dict.fromkeys(s.code for s in card.suspicions))
    return Result(
        experiment,
        size,
        tuple(jobs),
        own,
        tuple(tables),
        side_by_side(jobs, own),
        _matched(experiment, jobs, own, tables[0].attack) if tables else {},
        _entropy(experiment, jobs, own, tables[0].attack) if tables and experiment.theory else None,
        dict(found.most_common()),
        costs(jobs, own),
    )


def entropies(
    experiment: Experiment, jobs: Sequence[Job], cards: Mapping[str, Card], attack: str
) -> list[tuple[Job, float, float]]:
    """Of each card that tracks the rate: its job, relative conditional entropy (nats), and test MSE."""
    found = []
    for job in jobs:
        card = cards.get(job.key)
        info = attack_of(card, attack) if card is not None else None
        if card is not None and info is not None and experiment.theory in card.theory:
            found.append((job, -card.theory[str(experiment.theory)], info.test.mse))
    return found


def _matched(
    experiment: Experiment, jobs: Sequence[Job], cards: Mapping[str, Card], attack: str
) -> dict[tuple[str, str], Matched]:
    if experiment.vary is None:
        return {}
    curves = _curves(jobs, cards, attack)
    pairs = [(row.label, over) for row in experiment.rows for over in row.over]
    return {
        (label, over): match_seeds(curves[over], curves[label])
        for label, over in pairs
        if label in curves and over in curves and set(curves[label]) & set(curves[over])
    }


def _curves(jobs: Sequence[Job], cards: Mapping[str, Card], attack: str) -> dict[str, dict[int, Curve]]:
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for job in jobs:
        card = cards.get(job.key)
        info = attack_of(card, attack) if card is not None else None
        if card is not None and info is not None:
            point = (card.utility.test_accuracy, info.test.mse)
            points.setdefault(job.row, {}).setdefault(job.seed, []).append(point)
    return {
        row: {seed: Curve(tuple(a for a, _ in found), tuple(m for _, m in found)) for seed, found in by_seed.items()}
        for row, by_seed in points.items()
    }


def _entropy(experiment: Experiment, jobs: Sequence[Job], cards: Mapping[str, Card], attack: str) -> Entropy:
    found = entropies(experiment, jobs, cards, attack)
    by_seed: dict[int, list[tuple[float, float]]] = {}
    by_row: dict[str, list[tuple[float, float]]] = {}
    for job, entropy, error in found:
        by_seed.setdefault(job.seed, []).append((entropy, error))
        by_row.setdefault(job.row, []).append((entropy, error))
    known = {seed: rho for seed, points in by_seed.items() if (rho := _correlation(points).rho) is not None}
    return Entropy(
        _correlation([(entropy, error) for _, entropy, error in found]),
        spread(known) if known else None,
        {row: _correlation(points) for row, points in by_row.items()},
    )


def _correlation(points: Sequence[tuple[float, float]]) -> Correlation:
    return rank_correlation([first for first, _ in points], [second for _, second in points])
