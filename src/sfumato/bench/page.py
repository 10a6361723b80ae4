"""An experiment's page: Markdown and SVG, made from cards, fit to be kept with a project's documentation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.audit import Card
from sfumato.bench import plots, sections
from sfumato.bench.aggregate import Line, Spread, spread
from sfumato.bench.expansion import point_label
from sfumato.bench.experiment import Plot
from sfumato.bench.plots import Dot, Drawing
from sfumato.bench.result import Result, entropies
from sfumato.bench.threats import Threats
from sfumato.storage import write_text


@dataclass(frozen=True)
class Written:
    """The files of a page."""

    page: Path
    data: Path
    plots: tuple[Path, ...]


def write_result(result: Result, out: Path) -> Written:
    """Write ``NAME-SIZE.md``, its plots beside it, and its figures as JSON.

    Raises:
        StorageError: The disk refused.
    """
    stem = f"{result.experiment.name}-{result.size}"
    drawn = {kind: drawing for kind in result.experiment.plots if (drawing := draw(result, kind)) is not None}
    files = {kind: Path(out) / f"{stem}-{kind.replace('_', '-')}.svg" for kind in drawn}
    for kind, drawing in drawn.items():
        write_text(files[kind], drawing.svg)
    links = [(files[kind].name, drawing.description) for kind, drawing in drawn.items()]
    page, data = Path(out) / f"{stem}.md", Path(out) / f"{stem}.json"
    write_text(page, render(result, links))
    write_text(data, json.dumps(as_data(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return Written(page, data, tuple(files.values()))


def render(result: Result, links: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        result: What to show.
        links: File name and description of each plot.
    """
    blocks = [
        *sections.head(result),
        *sections.by_threat_model(result),
        *sections.tables(result),
        *sections.averages(result),
        *sections.matched(result),
        *sections.entropy(result),
        *(f"![{sections.escaped(description)}]({name})" for name, description in links),
        *sections.what_it_costs(result),
        *sections.doubts(result),
        *sections.what_was_run(result),
        *sections.environment(result),
    ]
    return "\n\n".join(blocks) + "\n"


def as_data(result: Result) -> dict[str, Any]:
    """The figures for other programs: every line, every comparison, and which cards they came from."""
    return {
        "experiment": result.experiment.name,
        "size": result.size,
        "runs": len(result.jobs),
        "missing": [f"{job.label}, seed {job.seed}" for job in result.missing],
        "tables": {table.attack: [dataclasses.asdict(line) for line in table.lines] for table in result.tables},
        "learned_from": {origin: list(rows) for origin, rows in result.threats.learned_from.items()},
        "threats": _threats_as_data(result.threats),
        "matched": [
            {
                "row": row,
                "over": over,
                "gain": dataclasses.asdict(found.gain) if found.gain else None,
                "by_seed": {str(seed): dataclasses.asdict(match) for seed, match in found.by_seed.items()},
                "no_common_accuracy": sorted(found.apart),
            }
            for (row, over), found in result.matched.items()
        ],
        "entropy": dataclasses.asdict(result.entropy) if result.entropy else None,
        "costs": {row: {name: list(found) for name, found in each.items()} for row, each in result.costs.items()},
        "suspicions": dict(result.suspicions),
        "cards": {key: card.fingerprint() for key, card in result.cards.items()},
    }


def _threats_as_data(threats: Threats) -> dict[str, Any]:
    return {
        measure: [
            {
                "row": faced.row,
                "point": faced.point,
                "attacks": [
                    {**dataclasses.asdict(column), **dataclasses.asdict(value)}
                    for column, value in faced.attacks.items()
                ],
                "strongest": {model: dataclasses.asdict(value) for model, value in faced.by_threat_model.items()},
            }
            for faced in rows
        ]
        for measure, rows in threats.rows.items()
    }


def draw(result: Result, kind: Plot) -> Drawing | None:
    """One plot; ``None`` where no card has what it shows."""
    table = result.main
    if table is None:
        return None
    if kind == "pictures":
        return plots.pictures(_first_cards(result), table.attack)
    rows = _accuracy_dots(result, table.lines) if kind == "accuracy_mse" else _entropy_dots(result, table.attack)
    if not rows:
        return None
    series = plots.series_of(rows, {row.label: row.over for row in result.experiment.rows})
    return plots.accuracy_mse(series) if kind == "accuracy_mse" else plots.entropy_mse(series)


def _accuracy_dots(result: Result, lines: Sequence[Line]) -> dict[str, tuple[Dot, ...]]:
    rows: dict[str, tuple[Dot, ...]] = {}
    for line in lines:
        if line.figures:
            dot = Dot(
                line.figures["mse_test"], _percent(line.figures["accuracy"]), point_label(result.experiment, line.point)
            )
            rows[line.row] = (*rows.get(line.row, ()), dot)
    return rows


def _entropy_dots(result: Result, attack: str) -> dict[str, tuple[Dot, ...]]:
    places: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for job, entropy, error in entropies(result.experiment, result.jobs, result.cards, attack):
        places.setdefault((job.row, point_label(result.experiment, job.point)), {})[job.seed] = (entropy, error)
    rows: dict[str, tuple[Dot, ...]] = {}
    for (row, text), found in places.items():
        x, y = (spread({seed: pair[i] for seed, pair in found.items()}) for i in range(2))
        dot = Dot(x, y, text)
        rows[row] = (*rows.get(row, ()), dot)
    return rows


def _first_cards(result: Result) -> list[tuple[str, Card]]:
    """Each row's card with the first seed that any has, so that all show the same images."""
    jobs = [job for job in result.jobs if job.key in result.cards]
    return [(job.label, result.cards[job.key]) for job in jobs if job.seed == jobs[0].seed]


def _percent(value: Spread) -> Spread:
    return spread({seed: 100 * one for seed, one in value.by_seed.items()})


def lines_as_rows(result: Result) -> Iterator[dict[str, Any]]:
    """The first attack's table, flat: one mapping a line, for a terminal or a spreadsheet."""
    table = result.main
    for line in table.lines if table else ():
        row: dict[str, Any] = {"row": line.row, "point": line.point, "seeds": len(line.seeds)}
        for key, value in line.figures.items():
            row[key], row[f"{key}_std"] = value.mean, value.deviation
        yield row | {f"{key}_paper": value for key, value in line.published.items()}
