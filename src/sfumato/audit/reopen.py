"""Open a trained run again, to attack it another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato import defenses
from sfumato.audit.runs import Run, address, load_data, read_description, train_run
from sfumato.audit.settings import Settings
from sfumato.data import Splits
from sfumato.errors import InputError
from sfumato.training import Runtime


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that a run was trained with, as plain data.

    Raises:
        InputError: No finished run is there.
        CorruptFileError: Its description cannot be read.
    """
    settings: dict[str, Any] = read_description(folder)["settings"]
    return settings


def run_of(folder: Path, settings: Settings, *, runtime: Runtime) -> tuple[Run, Splits]:
    """The trained model and its images.

    Raises:
        InputError: The images or the device are no longer those the run was trained with.
        CorruptFileError: The run is damaged.
    """
    folder = Path(folder)
    description = read_description(folder)
    defense = defenses.build(description["defense"])
    splits = load_data(settings.data, settings.seed, runtime.progress)
    expected = f"train-{address(settings, defense, splits, runtime)}"
    if folder.resolve().name != expected:
        raise InputError("run", str(folder), "a run whose images, version and device are the same as now")
    run = train_run(settings, description["label"], defense, splits, root=folder.resolve().parent, runtime=runtime)
    return run, splits
