"""From an experiment to the audits that it consists of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato import defenses
from sfumato.audit import Settings, load_settings
from sfumato.bench.experiment import Experiment, Row, SizeName, Value
from sfumato.errors import InputError, one_of, raise_all, together
from sfumato.storage import hash_of


@dataclass(frozen=True, eq=False)
class Job:
    """One model to train and attack.

    Attributes:
        row: Label of its row.
        point: Value of what is swept; ``None`` where nothing is.
        seed: Of everything random.
        settings: Of an audit with this one defense.
        label: Row and point, for people; the defense's label in the settings.
    """

    row: str
    point: Value | None
    seed: int
    settings: Settings
    label: str

    @property
    def key(self) -> str:
        """Name of its card: readable, and different for whatever makes the result different.

        Where one's own copy of the images lies, on which device it runs and what would be a failure are no part of it.
        """
        told = self.settings.model_dump(
            mode="json", exclude={"device": True, "defenses": True, "fail_if": True, "data": {"path"}}
        )
        (defense,) = self.settings.resolved_defenses().values()
        attacks = [attack.describe() for attack in self.settings.resolved_attacks()]
        address = hash_of([{**told, "attacks": attacks}, defense.describe()], length=12)
        words = re.sub(r"[^A-Za-z0-9.+_-]+", "-", self.label).strip("-")
        return f"{words}-seed{self.seed}-{address}"


def expand(
    experiment: Experiment,
    size: SizeName,
    *,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Job, ...]:
    """All audits of an experiment: seeds outermost, so that a whole table is there as early as possible.

    Args:
        experiment: The experiment.
        size: Which of its sizes.
        seeds: In place of the size's own.
        only: Labels of the rows wanted; all of them if empty.
        overrides: Settings over the size's and the rows', nested, such as the place of one's own data.

    Raises:
        InputError: Everything that is wrong, at once: a size or row that is not there, an unknown defense or argument.
    """
    if size not in experiment.sizes:
        raise InputError("size", size, f"{one_of(experiment.sizes)} (experiment {experiment.name})")
    labels = [row.label for row in experiment.rows]
    errors = [InputError("only", label, one_of(labels, label)) for label in only if label not in labels]
    wanted = experiment.sizes[size].seeds if seeds is None else tuple(seeds)
    errors += _wrong_seeds(wanted)
    raise_all(errors)
    jobs = []
    for seed in wanted:
        for i, row in enumerate(experiment.rows):
            if only and row.label not in only:
                continue
            for point in points(experiment, row, size):
                try:
                    jobs.append(_job(experiment, row, size, point, seed, overrides or {}))
                except InputError as error:
                    errors += [_placed(one, experiment, i, size) for one in together(error)]
    raise_all(once(errors))
    return tuple(jobs)


def points(experiment: Experiment, row: Row, size: SizeName) -> tuple[Value | None, ...]:
    """What the swept field is set to in a row."""
    return experiment.vary.values[size] if experiment.vary is not None and row.varied else (None,)


def number_of_models(experiment: Experiment, size: SizeName) -> int:
    """How many models an experiment trains, with all its seeds."""
    places = sum(len(points(experiment, row, size)) for row in experiment.rows)
    return places * len(experiment.sizes[size].seeds)


def check_experiment(experiment: Experiment, *, only: Sequence[str] = ()) -> None:
    """Expand every size.

    Raises:
        InputError: Anything wrong in any of them.
    """
    errors: list[InputError] = []
    for size in experiment.sizes:
        try:
            expand(experiment, size, seeds=experiment.sizes[size].seeds[:1], only=only)
        except InputError as error:
            errors += together(error)
    raise_all(once(errors))


def once(errors: Sequence[InputError]) -> list[InputError]:
    """Every line once: an argument that is wrong is so with every seed, at every point and in every size."""
    return list({str(error): error for error in errors}.values())


def point_label(experiment: Experiment, point: Value | None) -> str:
    """The swept value for people; empty where nothing is swept.

    Numbers keep four digits: a standard deviation that is the root of a round variance has no end.
    """
    if experiment.vary is None or point is None:
        return ""
    shown = f"{point:.4g}" if isinstance(point, float) else str(point)
    return f"{experiment.vary.symbol or experiment.vary.field} = {shown}"


def _wrong_seeds(seeds: Sequence[int]) -> Iterator[InputError]:
    if not seeds:
        yield InputError("seeds", list(seeds), "at least one")
    for i, seed in enumerate(seeds):
        if not 0 <= seed < 2**31:
            yield InputError("seeds", seed, "whole numbers from 0 to 2147483647")
        if seed in seeds[:i]:
            yield InputError("seeds", seed, "each seed once")


def _job(
    experiment: Experiment, row: Row, size: SizeName, point: Value | None, seed: int, overrides: Mapping[str, Any]
) -> Job:
    arguments = [(name, value, "at") for name, value in row.at.get(size, {}).items()]
    swept: dict[str, Any] = {}
    if experiment.vary is not None and point is not None:
        if experiment.vary.field.split(".")[0] in Settings.model_fields:
            swept = _nested(experiment.vary.field, point)
        else:
            arguments.append((experiment.vary.field, point, "vary.field"))
    spec = _with_arguments(row.defense, arguments)
    at = point_label(experiment, point)
    label = f"{row.label} ({at})" if at else row.label
    own = experiment.sizes[size].model_dump(exclude={"seeds"})
    chosen = {"defenses": [{**spec, "label": label}], "seed": seed}
    settings = load_settings([own, row.settings, swept, overrides, chosen])
    return Job(row.label, point, seed, settings, label)


def _with_arguments(defense: str | Mapping[str, Any], arguments: Sequence[tuple[str, Value, str]]) -> dict[str, Any]:
    """A defense with arguments set: its own by their names, its parts' as ``PART.ARGUMENT``.

    Args:
        defense: A recipe's name or a mapping, as in an audit's settings.
        arguments: Name, value, and the field that they were written in.
    """
    spec: dict[str, Any] = {"recipe": defense} if isinstance(defense, str) else dict(defense)
    for name, value, field in arguments:
        if "." not in name and "chain" in spec:
            raise InputError(field, name, "PART.ARGUMENT, as the defense is a chain")
        if "." not in name:
            spec[name] = value
    inside = [(name.partition("."), value, field) for name, value, field in arguments if "." in name]
    if not inside:
        return spec
    # Only the parts that a recipe comes to have names that can be addressed.
    parts = defenses.build(spec.get("chain", spec), field="defenses[0]").describe()
    for (part, _, argument), value, field in inside:
        chosen = [each for each in parts if each["part"] == part]
        if not chosen:
            names = {each["part"] for each in parts}
            raise InputError(field, f"{part}.{argument}", f"PART.ARGUMENT, with PART: {one_of(names, part)}")
        for each in chosen:
            each[argument] = value
    return {"chain": parts}


def _nested(path: str, value: Any) -> dict[str, Any]:
    for step in reversed(path.split(".")):
        value = {step: value}
    return dict(value)


def _placed(error: InputError, experiment: Experiment, row: int, size: str) -> InputError:
    """An error of an audit's settings, named by where it stands in the experiment's file."""
    field = error.field
    section = re.split(r"[.\[]", field)[0]
    swept = experiment.vary.field if experiment.vary is not None and experiment.rows[row].varied else None
    if field.startswith("defenses[0]") and swept is not None and "." in swept and field.endswith(f".{swept}"):
        field = f"vary.values.{size}"
    elif field.startswith("defenses[0]"):
        field = f"rows[{row}].defense{field.removeprefix('defenses[0]')}"
    elif section in experiment.rows[row].settings:
        field = f"rows[{row}].settings.{field}"
    elif section == "attacks":
        field = f"sizes.{size}.{field}"
    elif field == swept:
        field = f"vary.values.{size}"
    elif section == "training":
        field = f"sizes.{size}.{field}"
    elif section == "at":
        field = f"rows[{row}].at.{size}"
    return InputError(field, error.value, error.accepted)
