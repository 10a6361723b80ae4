"""Attacks on one model, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfumato.attacks import Attack, Auto, Knowledge, Reconstruction, Scene, ThreatModel, labels
from sfumato.errors import CorruptFileError, InputError, raise_all, renamed, together
from sfumato.metrics import Quality
from sfumato.storage import load_state, save_state

KEPT = "reconstruction.safetensors"
_USUAL = (10_000, (3, 32, 32), (8, 8, 8))
"""Images of an attacker, shapes of image and feature, that every attack can work with."""


def expanded(entries: Sequence[Attack | Auto], scene: Scene) -> tuple[Attack, ...]:
    """Every attack to run, once: those that ``auto`` stands for in its place.

    Raises:
        InputError: None of those that ``auto`` stands for can work on such images and features.
    """
    found: list[Attack] = []
    for entry in entries:
        members = entry.members(scene) if isinstance(entry, Auto) else (entry,)
        found += [attack for attack in members if attack not in found]
    return tuple(found)


def named(entries: Sequence[Attack | Auto], scene: Scene) -> list[tuple[str, str]]:
    """What a card calls each attack that is run, and its kind.

    Raises:
        InputError: None of those that ``auto`` stands for can be run.
    """
    found = expanded(entries, scene)
    return [(label, attack.name) for label, attack in zip(labels(found), found, strict=True)]


def foreseen(entries: Sequence[Attack | Auto], threat_model: ThreatModel) -> list[tuple[str, str]]:
    """:func:`named` before there are images and models: all that may be run, be the channel random or not.

    Raises:
        InputError: None of those that ``auto`` stands for can be run.
    """
    scenes = [Scene(threat_model, random, *_USUAL) for random in (True, False)]
    # Once each, in order.
    return list(dict.fromkeys(pair for scene in scenes for pair in named(entries, scene)))


def check_means(entries: Sequence[Attack | Auto], threat_model: ThreatModel, knowledge: Knowledge) -> None:
    """Say before anything is trained which attacks need more than their attacker may touch, has or may send.

    Args:
        entries: The attacks.
        threat_model: Of those that have none of their own.
        knowledge: The attacker's images.

    Raises:
        InputError: All of them at once.
    """
    errors: list[InputError] = []
    for i, entry in enumerate(entries):
        try:
            if isinstance(entry, Attack):  # auto leaves out what is not allowed
                entry.allowed(entry.threat_model or threat_model)
            entry.affordable(knowledge)
        except InputError as error:
            errors += _of_entry(error, i)
    raise_all(errors)


def check_shapes(entries: Sequence[Attack | Auto], scene: Scene) -> None:
    """Say before anything is trained which attacks cannot work on such images and features.

    Raises:
        InputError: All of them at once.
    """
    errors: list[InputError] = []
    for i, entry in enumerate(entries):
        try:
            for attack in expanded([entry], scene):
                attack.check(scene.image_shape, scene.feature_shape, scene.seen_by(attack).threat_model)
        except InputError as error:
            errors += _of_entry(error, i)
    raise_all(errors)


def _of_entry(error: InputError, position: int) -> tuple[InputError, ...]:
    return together(renamed(error, lambda own: f"attacks[{position}].{own}"))


def charges(entries: Sequence[Attack | Auto], found: Sequence[Attack], scene: Scene) -> tuple[int, ...]:
    """Queries by which each attack was chosen: none, unless it runs because of ``auto`` alone."""
    return tuple(0 if attack in entries else scene.seen_by(attack).queries for attack in found)


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
