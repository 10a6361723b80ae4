"""What an experiment is told: a table or figure of a paper as a typed file, validated before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sfumato.arguments import from_pydantic
from sfumato.audit.settings import DataSettings, Evaluation, ModelSettings, read_yaml
from sfumato.bench.published import PaperName, figures
from sfumato.errors import InputError, one_of, raise_all
from sfumato.training import Training

SizeName = Literal["paper", "small"]
Plot = Literal["accuracy_mse", "entropy_mse", "pictures"]
Value = str | int | float
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]


def _as_labels(given: Any) -> Any:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else given


Labels = Annotated[tuple[str, ...], BeforeValidator(_as_labels)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Reference(_Part):
    """Where the original is, and the figures to compare with."""

    paper: PaperName
    """``cem`` or ``gated-attention``."""
    place: Text
    """The table, figure or section."""
    dataset: str | None = None
    """The data set's name in the packaged figures; without it nothing is compared."""


class Size(_Part):
    """One scale of the experiment: audit settings without defenses and seed, and the seeds."""

    data: DataSettings = DataSettings()
    """Which images."""
    model: ModelSettings = ModelSettings()
    """Which network."""
    training: Training = Training()
    """How it is trained."""
    attacks: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)] = ("decoder",)
    """Attacks by name, or mappings with the key ``attack``; curves and comparisons use the first."""
    evaluation: Evaluation = Evaluation()
    """What the attacker has."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Each row is run with each of these."""


class Vary(_Part):
    """One field swept over values, in every row that does not say otherwise."""

    field: Text
    """An argument of the defense (``sigma``), one of its parts' (``noise.sigma``), or a dotted field of the settings
    (``model.cut``).
    """
    values: dict[SizeName, Annotated[tuple[Value, ...], Field(min_length=1)]]
    """For each size, what the field is set to."""
    symbol: str = ""
    """What people call it, such as ``σ``; by default the field's name."""
    published: Value | None = None
    """The value that the paper's figures are of; without it they stand beside no row."""


class Row(_Part):
    """One line of the table, or one curve."""

    label: Text
    """What the table calls it."""
    defense: str | dict[str, Any]
    """A recipe's name, or a mapping with the key ``recipe``, ``part`` or ``chain``, as in an audit's settings."""
    over: Labels = ()
    """Labels of the rows that this one is compared with, in the order of the tables; a single one needs no list."""
    at: dict[SizeName, dict[str, Value]] = {}
    """For a size, arguments of the defense that differ there; those of its parts as ``noise.sigma``."""
    settings: dict[str, Any] = {}
    """Settings that differ in this row, nested as in an audit's file."""
    varied: bool = True
    """Whether ``vary`` applies."""
    published: str | None = None
    """The paper's name of this row, where it differs from the label."""


class Experiment(_Part):
    """A table or a figure."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    """Of files and on the command line: lower-case letters, digits and hyphens."""
    title: Text
    """One line for people."""
    description: str = ""
    """What is shown and what to look for."""
    reference: Reference | None = None
    """Where the original is."""
    sizes: Annotated[dict[SizeName, Size], Field(min_length=1)]
    """``paper``, ``small`` or both."""
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    """In the order of the table."""
    vary: Vary | None = None
    """What is swept."""
    plots: tuple[Plot, ...] = ("accuracy_mse",)
    """``accuracy_mse``, ``entropy_mse`` (needs ``theory``), ``pictures``."""
    theory: str | None = None
    """The figure in a card's ``theory`` whose negative is the relative conditional entropy."""

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        raise_all([*self._wrong_rows(), *self._wrong_sweep()])
        return self

    def _wrong_rows(self) -> list[InputError]:
        labels = [row.label for row in self.rows]
        printed = self.published("decoder")
        errors = []
        for i, row in enumerate(self.rows):
            if row.label in labels[:i]:
                errors.append(InputError(f"rows[{i}].label", row.label, "a label that occurs once"))
            errors += _wrong_comparisons(f"rows[{i}].over", row, labels)
            if row.published is not None and row.published not in printed:
                errors.append(InputError(f"rows[{i}].published", row.published, one_of(printed, row.published)))
            unknown = [size for size in row.at if size not in self.sizes]
            errors += [InputError(f"rows[{i}].at", size, one_of(self.sizes)) for size in unknown]
        return errors

    def _wrong_sweep(self) -> list[InputError]:
        errors = []
        if self.vary is not None and set(self.vary.values) != set(self.sizes):
            errors.append(InputError("vary.values", sorted(self.vary.values), f"each of {', '.join(self.sizes)}"))
        if self.vary is not None and self.vary.published is not None:
            swept = list(dict.fromkeys(value for values in self.vary.values.values() for value in values))
            if self.vary.published not in swept:
                errors.append(InputError("vary.published", self.vary.published, one_of(map(str, swept))))
        if "entropy_mse" in self.plots and self.theory is None:
            errors.append(InputError("theory", self.theory, "a name in a card's theory, for the plot entropy_mse"))
        return errors

    def published(self, attack: str) -> Mapping[str, Mapping[str, float]]:
        """The paper's figures under the labels of its own; empty where there is nothing to compare with."""
        if self.reference is None or self.reference.dataset is None:
            return {}
        return figures(self.reference.paper, self.reference.dataset, attack)


def _wrong_comparisons(field: str, row: Row, labels: Sequence[str]) -> Iterator[InputError]:
    others = [label for label in labels if label != row.label]
    for i, label in enumerate(row.over):
        if label not in others:
            yield InputError(field, label, f"the label of another row: {one_of(others)}")
        elif label in row.over[:i]:
            yield InputError(field, label, "each row once")


def experiments() -> dict[str, Experiment]:
    """All packaged experiments by name."""
    found = (_packaged(name) for name in packaged_names())
    return {experiment.name: experiment for experiment in found}


def packaged_names() -> list[str]:
    """Names of the packaged experiments."""
    folder = resources.files("sfumato.bench") / "experiments"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_experiment(source: str | Path) -> Experiment:
    """An experiment by name or from a file; defenses are looked up when it is expanded.

    Raises:
        InputError: No such experiment or file, or anything wrong in it, all at once.
    """
    if str(source) in packaged_names():
        return _packaged(str(source))
    if Path(source).suffix not in (".yaml", ".yml") and not Path(source).is_file():
        raise InputError("experiment", str(source), f"{one_of(packaged_names(), source)}; or a YAML file")
    return parse_experiment(read_yaml(Path(source)))


def parse_experiment(content: Mapping[str, Any]) -> Experiment:
    """An experiment from plain data.

    Raises:
        InputError: Anything wrong in it, all at once.
    """
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        found = [_with_suggestion(one) for one in from_pydantic(error)]
    raise_all(found)
    raise AssertionError("a validation error holds at least one error")


def _packaged(name: str) -> Experiment:
    with resources.as_file(resources.files("sfumato.bench") / "experiments" / f"{name}.yaml") as path:
        return parse_experiment(read_yaml(path))


def _with_suggestion(error: InputError) -> InputError:
    """An unknown field gets the names of its section, the nearest first."""
    *path, name = error.field.split(".")
    section: Any = Experiment
    for step in path:
        section = _inside(section, step)
    if isinstance(section, type) and issubclass(section, BaseModel) and name not in section.model_fields:
        return InputError(error.field, error.value, one_of(section.model_fields, name))
    return error


def _inside(kind: Any, step: str) -> Any:
    """The type of a model's field, of a mapping's values or of a tuple's items; ``None`` where there is no such."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        kind = kind.model_fields[step].annotation if step in kind.model_fields else None
    else:
        # (key, value) of a mapping, (item, ...) of a tuple.
        arguments = get_args(kind)
        kind = arguments[1 if get_origin(kind) is dict else 0] if arguments else None
    if get_origin(kind) in (Union, UnionType):
        return next(member for member in get_args(kind) if member is not NoneType)
    return kind
