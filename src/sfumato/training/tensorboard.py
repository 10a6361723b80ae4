"""The log for TensorBoard (extra ``tensorboard``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato.errors import InputError
from sfumato.storage import storage_errors


def require() -> Any:
    """The class that writes event files.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard", True, "false, or: pip install 'sfumato[tensorboard]'") from error
    return SummaryWriter


def write_row(folder: Path, row: dict[str, Any]) -> None:
    """Append one epoch's figures to the event files in ``folder``/tensorboard.

    Raises:
        StorageError: The disk refused.
    """
    place = folder / "tensorboard"
    with storage_errors(place), require()(str(place), purge_step=row["epoch"]) as writer:
        for name, value in row.items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, row["epoch"])
