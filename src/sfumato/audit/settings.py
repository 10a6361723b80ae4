"""What an audit is told: typed, validated before anything runs, the same fields in YAML and as flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from sfumato import attacks, defenses
from sfumato.arguments import from_pydantic
from sfumato.attacks import Attack, Auto, ThreatModel
from sfumato.audit.attacking import foreseen
from sfumato.audit.gate import GRAMMAR, Condition, parse_all, unmeasured
from sfumato.defenses import Defense
from sfumato.errors import InputError, one_of, raise_all, together
from sfumato.training import Training

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
_NAMED = ("defenses", "attacks")
PRESETS: dict[str, str] = {
    "digits": "the default: embedded digits, four defenses, a few minutes on two cores",
    "cifar10-small": "CIFAR-10 for small machines: 10,000 images, VGG-11 at a quarter of its width",
    "cem-cifar10": "CIFAR-10 at the CEM paper's size (Xia et al. 2025), less a tenth for validation: days on a CPU",
}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _as_list(value: object) -> object:
    """A single name as a list of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class DataSettings(_Settings):
    """Which images; the fields are the arguments of :func:`sfumato.data.load`."""

    source: str = "digits"
    """A preset's name (see ``sfumato list data``), a folder, a Parquet file, or a hub id ``owner/name``."""
    path: str | None = None
    """For a preset: your own copy instead of the download."""
    image_size: Count | None = None
    """Side in pixels."""
    channels: Literal[1, 3] | None = None
    """1 (gray) or 3 (RGB)."""
    image_column: str | None = None
    """Parquet and hub: the column with the images."""
    label_column: str | None = None
    """Parquet and hub: the column with the labels."""
    train_splits: Names | None = None
    """Names of the source's splits that make up train."""
    test_splits: Names | None = None
    """Names of the splits that make up test."""
    config_name: str | None = None
    """Parquet and hub: the configuration."""
    revision: str | None = None
    """Hub: branch, tag or commit."""
    top_classes: Count | None = None
    """Keep only so many classes, those with the most images."""
    validation: Share | None = None
    """Share of the training images that selects the epoch."""
    auxiliary: Share | None = None
    """Share set aside for the attacker."""
    test: Share | None = None
    """Share for test where the source has no test images."""
    train_limit: Count | None = None
    """Use only so many training images."""
    test_limit: Count | None = None
    """Use only so many test images."""


class ModelSettings(_Settings):
    """Which network, and where it is cut."""

    backbone: str = "vgg11"
    """See ``sfumato list models``."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies all channel numbers."""
    dropout: Share | None = None
    """Rate of the classifier's dropout; by default the published one. Less for narrow networks and few images."""
    cut: str | None = None
    """Last stage on the device; by default where the papers cut it."""
    edge_from: str | None = None
    """Folder of a finished run: the edge starts from that run's trained edge. Its images and classes may be others,
    its layers may not.
    """


class Evaluation(_Settings):
    """What the attacker has, and who is judged."""

    threat_model: ThreatModel = "white-box"
    """What the attacker may touch: white-box, gray-box or black-box. An attack's own ``threat_model`` comes first."""
    knowledge: Literal["train", "auxiliary"] = "train"
    """Images the attacker learns from: the model's own training images (the papers' worst case), or the
    auxiliary images that the model never saw.
    """
    victims: Count = 1000
    """At most so many images of each group (training, test) are reconstructed and judged."""
    judge: bool = False
    """Whether an independent classifier tells how many reconstructions still show their class or identity. Takes one
    more training, of the network without a defense, for all defenses together.
    """


def _entries(value: object, info: ValidationInfo) -> object:
    """A single name or mapping as a list of one; anything else than a list of these is refused in plain words."""
    if isinstance(value, str | Mapping):
        return (value,)
    if not isinstance(value, list | tuple):
        raise InputError(str(info.field_name), value, "a name, a mapping, or a list of these")
    raise_all(
        [
            InputError(f"{info.field_name}[{i}]", entry, "a name, or a mapping")
            for i, entry in enumerate(value)
            if not isinstance(entry, str | Mapping)
        ]
    )
    return value


def _texts(value: object, info: ValidationInfo) -> object:
    """A single text as a list of one; anything else than a list of texts is refused in plain words."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise InputError(str(info.field_name), value, f"a condition or a list of these: {GRAMMAR}")
    parse_all(value)
    return value


class Settings(_Settings):
    """Everything that determines a result, and when it is a failure."""

    data: DataSettings = DataSettings()
    """Which images."""
    model: ModelSettings = ModelSettings()
    """Which network."""
    training: Training = Training()
    """How it is trained."""
    defenses: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_entries)] = (
        "none",
        "noise",
        "dist_corr",
        "cem",
    )
    """Recipes by name, or mappings with the key ``recipe``, ``part`` or ``chain`` and an optional
    ``label``.
    """
    attacks: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_entries)] = ("decoder",)
    """Attacks by name, or mappings with the key ``attack``."""
    evaluation: Evaluation = Evaluation()
    """What the attacker has."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    """32-true, bf16-mixed, 16-mixed or 64-true."""
    fail_if: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    """Conditions under which a defense fails, in quotes: [ATTACK:]METRIC[.STATISTIC] OP NUMBER, such as "ssim>0.5" or
    "decoder:mse.p10<0.01". METRIC is ssim, mse or psnr (on each image, the best of all attacks), identity, accuracy or
    suspicions. Page and cards are written all the same; the exit code is 4. Changes no result.
    """

    def resolved_defenses(self) -> dict[str, Defense]:
        """Label to defense, in order.

        Raises:
            InputError: Unknown names or arguments, all at once; a label that occurs twice; no defense at all; a
                training so short that a part would never be at work.
        """
        found: dict[str, Defense] = {}
        errors: list[InputError] = []
        for i, entry in enumerate(self.defenses):
            field = f"defenses[{i}]"
            try:
                label, defense = _defense(entry, field)
                if label in found:
                    raise InputError(f"{field}.label", label, "a label that occurs once")
                found[label] = defense
            except InputError as error:
                errors += together(error)
        if not self.defenses:
            errors.append(InputError("defenses", [], f"at least one: {one_of(defenses.RECIPES)}"))
        raise_all([*errors, *self._too_short(found.values())])
        return found

    def _too_short(self, found: Iterable[Defense]) -> Iterator[InputError]:
        """Parts that would do nothing in a training of this length, each once."""
        needed = {part.name: part.least_epochs for defense in found for part in defense.parts()}
        for name, least in needed.items():
            if self.training.epochs < least:
                accepted = f"{least} or more with {name}, which is not at work before epoch {least}"
                yield InputError("training.epochs", self.training.epochs, accepted)

    def resolved_attacks(self) -> tuple[Attack | Auto, ...]:
        """The attacks; ``auto`` stands for those that the model and the threat model call for.

        Raises:
            InputError: Unknown names or arguments, all at once; the same attack twice; no attack at all.
        """
        found: list[Attack | Auto] = []
        errors: list[InputError] = []
        for i, entry in enumerate(self.attacks):
            try:
                attack = attacks.build(entry, field=f"attacks[{i}]")
                if attack in found:
                    raise InputError(f"attacks[{i}]", entry, f"something else than attacks[{found.index(attack)}]")
                found.append(attack)
            except InputError as error:
                errors += together(error)
        if not self.attacks:
            errors.append(InputError("attacks", [], f"at least one: {one_of(attacks.ATTACKS)}"))
        raise_all(errors)
        return tuple(found)

    def conditions(self) -> tuple[Condition, ...]:
        """What ``fail_if`` says.

        Raises:
            InputError: A condition is about something that these settings cannot measure, all at once; or an attack
                is unknown. What ``auto`` runs is known to its end only with images and model: an audit looks again.
        """
        found = parse_all(self.fail_if)
        if not found:
            return found
        entries = self.resolved_attacks()
        known = foreseen(entries, self.evaluation.threat_model)
        if any(isinstance(entry, Auto) for entry in entries):  # the arguments of a label may depend on the images
            kinds = {kind for _, kind in known}
            names = [one.attack for one in found if one.attack is not None]
            known += [(name, kind) for name in names for kind in kinds if name.startswith(f"{kind} (")]
        errors = (unmeasured(one, known, judged=self.evaluation.judge) for one in found)
        raise_all([error for error in errors if error is not None])
        return found


def load_settings(layers: list[Mapping[str, Any]], *, whole: bool = True) -> Settings:
    """Settings from layers of plain data, later ones over earlier ones, field by field.

    Args:
        layers: The data.
        whole: Whether they say everything, so that it can be told what will be measured.

    Raises:
        InputError: Anything wrong in it, all at once.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        # The name of a section with nothing under it, which YAML reads as null, says nothing.
        merged = _merge(merged, {key: value for key, value in layer.items() if value is not None or not _section(key)})
    errors: list[InputError] = []
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        errors += _with_suggestions(from_pydantic(error))
        # What is wrong elsewhere should not hide a misspelled defense until the next attempt.
        bad = {str(detail["loc"][0]) for detail in error.errors()}
        settings = Settings.model_validate({k: v for k, v in merged.items() if k in _NAMED and k not in bad})
    errors += _wrong(settings.resolved_defenses)
    unknown = _wrong(settings.resolved_attacks)
    errors += unknown or (_wrong(settings.conditions) if whole else ())
    raise_all(errors)
    return settings


def _wrong(resolve: Callable[[], object]) -> tuple[InputError, ...]:
    try:
        resolve()
    except InputError as error:
        return together(error)
    return ()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings as plain data.

    Raises:
        InputError: No such file, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("config", str(path), f"a readable YAML file ({error})") from error
    except yaml.YAMLError as error:
        raise InputError("config", str(path), f"YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError("config", str(path), f"a mapping of fields, not a {type(content).__name__}")
    return content


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset as plain data.

    Raises:
        InputError: No such preset.
    """
    if name not in PRESETS:
        raise InputError("preset", name, one_of(PRESETS, name))
    with resources.as_file(resources.files("sfumato.audit") / "presets" / f"{name}.yaml") as path:
        return read_yaml(path)


def _defense(entry: str | dict[str, Any], field: str) -> tuple[str, Defense]:
    if isinstance(entry, str):
        return entry, defenses.build(entry, field=field)
    arguments = dict(entry)
    label = _label(arguments.pop("label", None), f"{field}.label")
    members = arguments.pop("chain", None)
    if members is not None and arguments:
        raise InputError(field, sorted(arguments), "nothing but label beside chain")
    if members is not None and not isinstance(members, list):
        raise InputError(f"{field}.chain", members, "a list of recipes and parts")
    defense = defenses.build(arguments if members is None else members, field=field)
    default = str(arguments.get("recipe") or arguments.get("part") or "+".join(p.name for p in defense.parts()))
    details = [f"{key}={value}" for key, value in arguments.items() if key not in ("recipe", "part")]
    return label or (f"{default} ({', '.join(details)})" if details else default), defense


def _label(given: object, field: str) -> str | None:
    if given is None or (isinstance(given, str) and given.strip()):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return str(given)  # a strength, say, which YAML takes for a number
    raise InputError(field, given, "text")


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        # A defense or an attack is what one layer says it is, and no mixture of two.
        sections = key not in _NAMED and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if sections else value
    return merged


def _section(name: str) -> bool:
    return name in Settings.model_fields and isinstance(Settings.model_fields[name].default, BaseModel)


def _with_suggestions(errors: list[InputError]) -> list[InputError]:
    """An unknown field gets the names of its section, an unknown choice the choices; the nearest first."""
    improved = []
    for error in errors:
        *path, name = error.field.partition("[")[0].split(".")
        section: type[BaseModel] | None = Settings
        for step in path:
            hint = section.model_fields[step].annotation if section and step in section.model_fields else None
            section = hint if isinstance(hint, type) and issubclass(hint, BaseModel) else None
        if section is not None and name not in section.model_fields:
            error = InputError(error.field, error.value, one_of(section.model_fields, name))
        elif section is not None and (choices := _choices(section.model_fields[name].annotation)):
            error = InputError(error.field, error.value, one_of(choices, error.value))
        improved.append(error)
    return improved


def _choices(hint: Any) -> list[str]:
    """The values of a ``Literal``, also one beside ``None``."""
    literals = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
    return [str(choice) for literal in literals for choice in get_args(literal)]
