"""Attacks: threat models, targets, and what an attacker makes of what it may touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sfumato.arguments import call
from sfumato.attacks.auto import Auto, Scene, Strongest, scene_of, strongest
from sfumato.attacks.base import Attack, Inverter, Knowledge, Learned, Reconstruction
from sfumato.attacks.feature.decoder import DecoderAttack
from sfumato.attacks.feature.deep_prior import DeepPriorAttack
from sfumato.attacks.feature.ensemble import EnsembleAttack
from sfumato.attacks.feature.gan import GANAttack
from sfumato.attacks.feature.generator import GeneratorAttack
from sfumato.attacks.feature.latent_prior import LatentPriorAttack
from sfumato.attacks.feature.rmle import RMLEAttack
from sfumato.attacks.labels import labels
from sfumato.attacks.threat import THREAT_MODELS, BlackBox, GrayBox, ThreatModel, WhiteBox, make_target
from sfumato.errors import InputError, one_of, renamed

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        DecoderAttack,
        EnsembleAttack,
        GANAttack,
        GeneratorAttack,
        RMLEAttack,
        DeepPriorAttack,
        LatentPriorAttack,
    )
}


def build(spec: str | Mapping[str, Any], *, field: str = "attack") -> Attack | Auto:
    """An attack, or the sequence of attacks ``auto``, from plain data: its name, or ``{"attack": name, **arguments}``.

    Raises:
        InputError: Unknown attack or argument (the nearest is suggested), or a value out of range.

    >>> build({"attack": "decoder", "width": 16}).width
    16
    """
    arguments = {"attack": spec} if isinstance(spec, str) else dict(spec)
    name = arguments.pop("attack", None)
    kinds: dict[str, Callable[..., Attack | Auto]] = {**ATTACKS, Auto.name: Auto}
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"{field}.attack", name, one_of(kinds, name))
    try:
        return call(kinds[name], arguments, field=name)
    except InputError as error:  # the attack itself knows its name, and not where it was written
        raise renamed(error, lambda own: f"{field}.{own}") from error


__all__ = [
    "ATTACKS",
    "THREAT_MODELS",
    "Attack",
    "Auto",
    "BlackBox",
    "DecoderAttack",
    "DeepPriorAttack",
    "EnsembleAttack",
    "GANAttack",
    "GeneratorAttack",
    "GrayBox",
    "Inverter",
    "Knowledge",
    "LatentPriorAttack",
    "Learned",
    "RMLEAttack",
    "Reconstruction",
    "Scene",
    "Strongest",
    "ThreatModel",
    "WhiteBox",
    "build",
    "labels",
    "make_target",
    "scene_of",
    "strongest",
]
