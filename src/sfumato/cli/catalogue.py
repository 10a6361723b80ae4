"""What ``sfumato list`` lists: everything registered, with arguments and sources."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.rule import Rule
from rich.text import Text

from sfumato.arguments import signature_of
from sfumato.attacks import ATTACKS, THREAT_MODELS, Auto
from sfumato.audit.settings import PRESETS as AUDITS
from sfumato.audit.settings import preset
from sfumato.bench import experiments, number_of_models
from sfumato.data import PRESETS, Augment, Preset
from sfumato.defenses import PARTS, RECIPES
from sfumato.models import BACKBONES, Backbone, build

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
            "where from": f"hub: {preset.hub_id}" if preset.hub_id else preset.layout or "nothing to download",
            "license": preset.license_note,
            "what is done to it": _treatment(preset),
            "source": preset.citation,
        }
        for preset in PRESETS.values()
    ]


def _treatment(preset: Preset) -> Row:
    """What the preset's paper does to the images, as far as it does anything."""
    divided = {name: value for name, value in asdict(preset.fractions).items() if value}
    if preset.test_splits:
        divided.pop("test", None)  # the source's own test images are taken
    told: Row = {
        "splits for train": " + ".join(preset.train_splits or ()),
        "splits for test": " + ".join(preset.test_splits or ()),
        "shares of train set aside": ", ".join(f"{name} {value:g}" for name, value in divided.items()),
        "largest classes kept": preset.top_classes,
        "mean": preset.mean and ", ".join(map(str, preset.mean)),
        "std": preset.std and ", ".join(map(str, preset.std)),
        "training images": _augmented(preset.augment),
        "note": preset.note,
    }
    return {name: value for name, value in told.items() if value}


def _augmented(augment: Augment | None) -> str:
    if augment is None:
        return ""
    steps = {
        f"cropped with a padding of {augment.crop_padding}": augment.crop_padding,
        "flipped": augment.flip,
        f"rotated by up to {augment.rotation:g}°": augment.rotation,
    }
    return ", ".join(step for step, on in steps.items() if on)


def _models() -> list[Row]:
    return [
        {
            "name": name,
            "what": info.summary,
            "smallest image": info.minimum_size,
            "cuts": [stage for stage, _ in network.named_children()][:-1],
            "default cut": network.default_cut,
            "source": info.source,
        }
        for name, info in BACKBONES.items()
        for network in [_smallest(name)]
    ]


def _smallest(name: str) -> Backbone:
    """The network at its smallest, to read the names of its stages."""
    size = BACKBONES[name].minimum_size
    return build(name, 2, (1, size, size), width=0.01, generator=torch.Generator())


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
    ] + [
        {
            "name": Auto.name,
            "what": _first_line(Auto),
            "threat models": ", ".join(sorted(THREAT_MODELS)),
            "cost": "all of its attacks",
            "arguments": _arguments(Auto),
            "source": Auto.source,
        }
    ]


def _presets() -> list[Row]:
    return [{"name": name, "what": what, "sets": preset(name)} for name, what in AUDITS.items()]


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


@dataclass(frozen=True)
class _Blocks:
    """A block per row: its name and what it is, then a line for each further field, wrapped between words."""

    kind: str
    rows: list[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(self.kind, align="left")
        for i, row in enumerate(self.rows):
            if i:
                yield ""
            name, *fields = row.items()
            head = _wrapped(f"{name[1]}  {row.get('what', '')}", 0, options.max_width)
            head.stylize("bold", 0, len(str(name[1])))
            yield head
            for line, indent in _lines([field for field in fields if field[0] != "what"], indent=2):
                yield _wrapped(line, indent, options.max_width)


def as_blocks(kind: str, rows: list[Row]) -> RenderableType:
    """Rows of one kind for a terminal; the first field of a row is its name."""
    return _Blocks(kind, rows)


def _lines(fields: Iterable[tuple[str, object]], indent: int) -> Iterator[tuple[str, int]]:
    for name, value in fields:
        if isinstance(value, dict) and value:
            yield f"{name}:", indent
            yield from ((f"{key}: {_in_line(text)}", indent + 2) for key, text in value.items())
        elif value != "":
            yield f"{name}: {_cell(value)}", indent


def _wrapped(line: str, indent: int, width: int) -> Text:
    lines = textwrap.wrap(
        line,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2 if indent else 4),  # under a name come its fields
        break_on_hyphens=False,
    )
    return Text("\n".join(lines))  # not markup: there are brackets in it


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _in_line(value: object) -> str:
    """As it could be written on one line of YAML."""
    if isinstance(value, str):
        return value
    line: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return line.removesuffix("...\n").strip()
