"""What ``sfumato list`` lists: everything registered, with arguments and sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from sfumato.arguments import signature_of
from sfumato.attacks import ATTACKS
from sfumato.audit.settings import PRESETS as AUDITS
from sfumato.bench import experiments, number_of_models
from sfumato.data import PRESETS
from sfumato.defenses import PARTS, RECIPES
from sfumato.models import BACKBONES

Row = dict[str, Any]


def _arguments(function: Callable[..., Any]) -> dict[str, str]:
    known = signature_of(function)
    return {name: kind if default is None else f"{default} ({kind})" for name, (kind, default) in known.items()}


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _data() -> list[Row]:
    return [
        {
            "name": preset.name,
            "what": preset.title,
            "size": f"{preset.channels}×{preset.image_size}×{preset.image_size}",
            "source": preset.citation,
        }
        for preset in PRESETS.values()
    ]


def _models() -> list[Row]:
    return [
        {"name": name, "what": info.summary, "smallest image": info.minimum_size, "source": info.source}
        for name, info in BACKBONES.items()
    ]


def _parts() -> list[Row]:
    return [
        {"name": name, "what": _first_line(part), "arguments": _arguments(part), "source": part.source}
        for name, part in PARTS.items()
    ]


def _recipes() -> list[Row]:
    return [
        {"name": name, "what": r.summary, "arguments": _arguments(r.build), "source": r.source}
        for name, r in RECIPES.items()
    ]


def _attacks() -> list[Row]:
    return [
        {
            "name": name,
            "what": _first_line(attack),
            "threat models": ", ".join(sorted(attack.threat_models)),
            "cost": attack.cost,
            "arguments": _arguments(attack),
            "source": attack.source,
        }
        for name, attack in ATTACKS.items()
    ]


def _presets() -> list[Row]:
    return [{"name": name, "what": what} for name, what in AUDITS.items()]


def _experiments() -> list[Row]:
    return [
        {
            "name": name,
            "what": experiment.title,
            "original": experiment.reference.place if experiment.reference else "",
            "rows": len(experiment.rows),
            "models": {size: number_of_models(experiment, size) for size in experiment.sizes},
        }
        for name, experiment in experiments().items()
    ]


CATALOGUE: dict[str, Callable[[], list[Row]]] = {
    "data": _data,
    "models": _models,
    "defenses": _parts,
    "recipes": _recipes,
    "attacks": _attacks,
    "presets": _presets,
    "experiments": _experiments,
}


def as_table(kind: str, rows: list[Row]) -> Table:
    """Rows of one kind for a terminal."""
    table = Table(title=kind, title_justify="left", show_lines=True, expand=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name} = {text}" for name, text in value.items()) or "none"
    return str(value)
