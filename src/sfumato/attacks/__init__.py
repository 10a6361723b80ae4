"""Attacks: threat models, targets, and what an attacker makes of what it may touch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.arguments import call
from sfumato.attacks.base import Attack, Inverter, Knowledge, Learned, Reconstruction
from sfumato.attacks.feature.decoder import DecoderAttack
from sfumato.attacks.feature.gan import GANAttack
from sfumato.attacks.labels import labels
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, GrayBox, ThreatModel, WhiteBox, make_target
from sfumato.errors import InputError, one_of

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (DecoderAttack, GANAttack)}


def build(spec: str | Mapping[str, Any], *, field: str = "attack") -> Attack:
    """An attack from plain data: its name, or ``{"attack": name, **arguments}``.

    Raises:
        InputError: Unknown attack or argument (the nearest is suggested), or a value out of range.

    >>> build({"attack": "decoder", "width": 16}).width
    16
    """
    arguments = {"attack": spec} if isinstance(spec, str) else dict(spec)
    name = arguments.pop("attack", None)
    if name not in ATTACKS:
        raise InputError(f"{field}.attack", name, one_of(ATTACKS, name))
    return call(ATTACKS[name], arguments, field=f"{field}.{name}")


__all__ = [
    "ATTACKS",
    "THREAT_MODELS",
    "Attack",
    "BlackBox",
    "DecoderAttack",
    "GANAttack",
    "GrayBox",
    "Inverter",
    "Knowledge",
    "Learned",
    "Reconstruction",
    "ThreatModel",
    "WhiteBox",
    "build",
    "labels",
    "make_target",
]
