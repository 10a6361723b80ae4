"""Attacks on one model, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sfumato.attacks import Reconstruction
from sfumato.errors import CorruptFileError
from sfumato.metrics import Quality
from sfumato.storage import load_state, save_state

KEPT = "reconstruction.safetensors"


def keep(made: Reconstruction, folder: Path) -> None:
    """Write what an attack made, so that an audit of many attacks goes on behind it.

    Raises:
        StorageError: The disk refused.
    """
    state = {
        **{name: getattr(made, name) for name in ("threat_model", "queries", "owned", "observations", "seconds")},
        "diverged": made.diverged,
        "figures": dict(made.figures),
        "images": dict(made.images),
        "quality": {group: dict(vars(quality)) for group, quality in made.quality.items()},
    }
    save_state(folder / KEPT, state)


def kept(folder: Path) -> Reconstruction | None:
    """What an attack made before; ``None`` where there is nothing, or the file is damaged."""
    try:
        state = load_state(folder / KEPT)
    except (FileNotFoundError, CorruptFileError):
        return None
    quality: Mapping[str, Mapping[str, object]] = state.pop("quality")
    judged = {group: Quality(**figures) for group, figures in quality.items()}  # type: ignore[arg-type]
    return Reconstruction(quality=judged, **state)
