"""Runs on disk: a folder addressed by a hash of what determines its content, never computed twice."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato
from sfumato import data, models
from sfumato.audit.settings import DataSettings, ModelSettings, Settings
from sfumato.data import Splits
from sfumato.defenses import BoundDefense, Defense
from sfumato.errors import CorruptFileError, InputError, renamed
from sfumato.models import SplitModel
from sfumato.progress import Progress
from sfumato.storage import hash_of, load_state, save_state, state_digest, write_text
from sfumato.training import Fit, Runtime, augmentation, train
from sfumato.training.loop import CHECKPOINT

MODEL = "model.safetensors"
DESCRIPTION = "run.json"
_EDGE = "edge."


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model and what it came from.

    Attributes:
        folder: Where it is kept.
        label: What people call its defense.
        defense: Its description.
        split: The trained model, on the runtime's device.
        bound: The defense at work, with what it tracked.
        fit: What happened in training.
        seconds: Wall clock of the session that finished the training.
        settings: What it was told.
    """

    folder: Path
    label: str
    defense: Defense
    split: SplitModel
    bound: BoundDefense
    fit: Fit
    seconds: float
    settings: Settings


def load_data(settings: DataSettings, seed: int, progress: Progress | None = None) -> Splits:
    """The images that the settings name."""
    try:
        return data.load(**settings.model_dump(), seed=seed, progress=progress)
    except InputError as error:
        raise renamed(error, _as_settings) from error


def _as_settings(field: str) -> str:
    """How the settings call an argument of :func:`sfumato.data.load`, or a sum of some."""
    return " + ".join(f"data.{name}" if name in DataSettings.model_fields else name for name in field.split(" + "))


def prepare(settings: Settings, defense: Defense, splits: Splits) -> tuple[SplitModel, BoundDefense]:
    """The untrained split model under its defense. The same seed gives every defense the same initial backbone.

    With ``model.edge_from`` the edge is not untrained: it is that run's, pruned as it was.

    Raises:
        InputError: The defense does not fit the network, or that run's edge does not fit this one.
        CorruptFileError: That run is damaged.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    whole = undefended(settings, splits, generator)
    bound = defense.bind(whole, generator=generator)
    split = bound.defend(whole)
    if settings.model.edge_from is not None:
        split = _start_edge(split, bound, settings.model.edge_from)
    return split, bound


def _start_edge(split: SplitModel, bound: BoundDefense, folder: str) -> SplitModel:
    weights = edge_weights(folder)
    with suppress(KeyError):  # another network: said below
        split = bound.restore(split, weights)
    own = {name.removeprefix(_EDGE): value for name, value in weights.items()}
    here, there = ({name: tuple(t.shape) for name, t in state.items()} for state in (split.edge.state_dict(), own))
    differing = [name for name in here | there if here.get(name) != there.get(name)]
    if differing:
        first = f"{differing[0]} is {here.get(differing[0], 'absent')} here, {there.get(differing[0], 'absent')} there"
        accepted = (
            f"a run with the same layers on the edge (backbone, width, cut, colors, bottleneck, normalization); {first}"
        )
        raise InputError("model.edge_from", folder, accepted)
    split.edge.load_state_dict(own)
    return split


def edge_weights(folder: str | Path) -> dict[str, Tensor]:
    """The trained edge of a finished run: the part of its split model's state whose names begin with ``edge.``.

    Raises:
        InputError: No finished run is there.
        CorruptFileError: It is damaged.
    """
    folder = Path(folder)
    try:
        read_description(folder)
    except InputError as error:
        raise InputError("model.edge_from", str(folder), error.accepted) from error
    try:
        state = _model_of(folder)["split"]
    except FileNotFoundError as error:
        raise CorruptFileError(f"{folder} does not hold a whole run ({MODEL} is missing)") from error
    return {name: value for name, value in state.items() if name.startswith(_EDGE)}


def undefended(settings: Settings, splits: Splits, generator: torch.Generator) -> SplitModel:
    """The untrained network that the settings name, cut in two."""
    shape, classes = splits.train.image_shape, splits.train.num_classes
    chosen: ModelSettings = settings.model
    constants = data.normalization(settings.data.source)
    if constants is not None and len(constants[0]) != shape[0]:
        constants = None  # the preset's constants are for colour, and gray was asked for
    try:
        backbone = models.build(
            chosen.backbone, classes, shape, width=chosen.width, dropout=chosen.dropout, generator=generator
        )
        cut = chosen.cut or backbone.default_cut
        return models.split(backbone, cut, image_shape=shape, normalization=constants)
    except InputError as error:
        written = {"cut": "model.cut", "image_shape": "data.image_size"}
        raise renamed(error, lambda own: written.get(own, own)) from error


def edge_digest(settings: Settings) -> str | None:
    """SHA-256 of the weights that the edge starts from, ``None`` where it is drawn."""
    folder = settings.model.edge_from
    return state_digest("", edge_weights(folder)) if folder is not None else None


def address(settings: Settings, defense: Defense, splits: Splits, runtime: Runtime) -> str:
    """Hash of all that determines a trained model, but for changes of the code within a version.

    Pixels, network, recipe, defense, seed, device, processes, precision and sfumato's version.

    The weights that an edge starts from count, and not where they are kept.
    """
    return hash_of(
        {
            "sfumato": sfumato.__version__,
            "data": checksum_of(splits),
            "normalization": data.normalization(settings.data.source),
            "model": settings.model.model_dump() | {"edge_from": edge_digest(settings)},
            "training": recipe_of(settings, splits),
            "defense": defense.describe(),
            "seed": settings.seed,
            "device": runtime.device.type,
            "processes": runtime.fabric.world_size,
            "precision": settings.precision,
        }
    )


def recipe_of(settings: Settings, splits: Splits) -> dict[str, Any]:
    """The training settings, with what is done to these images in place of where that is written."""
    augment = augmentation(settings.training, splits)
    return settings.training.model_dump() | {"augment": dataclasses.asdict(augment) if augment else None}


def train_run(
    settings: Settings,
    label: str,
    defense: Defense,
    splits: Splits,
    *,
    root: Path,
    runtime: Runtime,
) -> Run:
    """Train a model, or take it from where it was trained before.

    Args:
        settings: What to do.
        label: What people call the defense.
        defense: The defense.
        splits: The images that ``settings.data`` names.
        root: Folder of all runs.
        runtime: Where it runs; its folder is not used.

    Raises:
        Interrupted: Asked to stop; the same call goes on.
        CorruptFileError: What is there does not match its checksum.
    """
    folder = root / f"train-{address(settings, defense, splits, runtime)}"
    split, bound = prepare(settings, defense, splits)
    if (folder / DESCRIPTION).is_file():
        split, fit, seconds = _restore(folder, split, bound)
        # As training leaves it: another memory layout would add up in another order, and give other last bits.
        split.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Run(folder, label, defense, split, bound, fit, seconds, settings)
    started = time.perf_counter()
    split, fit = train(
        split,
        bound,
        splits,
        settings.training,
        seed=settings.seed,
        runtime=runtime.at(folder),
        title=f"train {label}",
    )
    seconds = time.perf_counter() - started
    # Deployed and attacked in single precision, whatever it was trained in; as a run that is taken from disk.
    split, bound = split.float(), bound.float()
    save_state(folder / MODEL, {"split": split.state_dict(), "defense": bound.state_dict()})
    description = {
        "sfumato": sfumato.__version__,
        "label": label,
        "defense": defense.describe(),
        # Under which conditions somebody's audit fails is not what the run was told.
        "settings": settings.model_dump(mode="json", exclude={"fail_if"}),
        "fit": dataclasses.asdict(fit),
        "seconds": seconds,
    }
    description["sha256"] = hash_of(description, length=64)
    write_text(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    # The description says that the run is whole, so what was needed only to get there can go.
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Run(folder, label, defense, split, bound, fit, seconds, settings)


def read_description(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself.

    Raises:
        InputError: No finished run is there.
        CorruptFileError: Its description cannot be read.
    """
    path = Path(folder) / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("run", str(folder), "the folder of a finished training (it holds run.json)") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is corrupted ({error}); remove the folder to train again") from error
    expected = content.pop("sha256", None) if isinstance(content, dict) else None
    if expected is None or hash_of(content, length=64) != expected:
        raise CorruptFileError(f"{path} does not match its checksum; remove the folder to train again")
    found: dict[str, Any] = content
    return found


def checksum_of(splits: Splits) -> str:
    """Hash over the pixels and labels of all parts."""
    parts = (splits.train, splits.validation, splits.test, splits.auxiliary)
    return hash_of([part.checksum() if part is not None else None for part in parts], length=64)


def _model_of(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = load_state(folder / MODEL)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error}; remove the folder to train again") from error
    return state


def _restore(folder: Path, split: SplitModel, bound: BoundDefense) -> tuple[SplitModel, Fit, float]:
    content = read_description(folder)
    try:
        weights = _model_of(folder)
        split = bound.restore(split, weights["split"])
        split.load_state_dict(weights["split"])
        bound.load_state_dict(weights["defense"])
        return split, Fit(**content["fit"]), float(content["seconds"])
    except (KeyError, TypeError, RuntimeError, FileNotFoundError) as error:
        raise CorruptFileError(f"{folder} does not hold a whole run ({error}); remove it to train again") from error
