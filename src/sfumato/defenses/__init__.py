"""Defenses on the split: parts, chains of parts, and published methods as recipes.

>>> from sfumato.defenses import CEM, Bottleneck, Noise, chain
>>> chain(Bottleneck(8), chain(Noise(0.025), CEM(16))) == chain(Bottleneck(8), Noise(0.025), CEM(16))
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.arguments import call
from sfumato.defenses.adversary import Adversary
from sfumato.defenses.base import BoundDefense, Change, Context, Defense, Epoch, Player, clean_features
from sfumato.defenses.bottleneck import Bottleneck
from sfumato.defenses.cem import CEM
from sfumato.defenses.chain import chain
from sfumato.defenses.deeper_edge import DeeperEdge
from sfumato.defenses.distance_correlation import DistanceCorrelation
from sfumato.defenses.dropout import Dropout
from sfumato.defenses.fused_attention import FusedAttention
from sfumato.defenses.gated_attention import GatedAttention
from sfumato.defenses.lipschitz import Lipschitz
from sfumato.defenses.noise import Noise
from sfumato.defenses.prune import Prune
from sfumato.defenses.recipes import RECIPES, SURROGATES, Partner, Recipe
from sfumato.defenses.slot_attention import SlotAttention
from sfumato.errors import InputError, one_of, raise_all, renamed, together

PARTS: dict[str, type[Defense]] = {
    part.name: part
    for part in (
        *(Bottleneck, Noise, Dropout, DistanceCorrelation, CEM),
        *(GatedAttention, SlotAttention, FusedAttention),
        *(Adversary, DeeperEdge, Prune, Lipschitz),
    )
}

Spec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]


def build(spec: Spec, *, field: str = "defense") -> Defense:
    """A defense from plain data, as a YAML file or a card holds it.

    Args:
        spec: A recipe's name; ``{"recipe": name, **arguments}``; ``{"part": name, **arguments}``; or a list of
            these, which is their chain.
        field: Where it was written, for errors.

    Raises:
        InputError: Unknown recipe, part or argument (the nearest is suggested), or a value out of range.

    >>> build([{"part": "bottleneck", "channels": 4}, {"part": "noise", "sigma": 0.1}]).describe()[1]
    {'part': 'noise', 'sigma': 0.1, 'kind': 'gaussian'}
    """
    if isinstance(spec, str):
        spec = {"recipe": spec}
    if isinstance(spec, Mapping):
        arguments = dict(spec)
        for kind, registry in (("recipe", RECIPES), ("part", PARTS)):
            if kind in arguments:
                name = arguments.pop(kind)
                if not isinstance(name, str) or name not in registry:
                    raise InputError(f"{field}.{kind}", name, one_of(registry, name))
                entry = registry[name]
                try:
                    return call(entry.build if isinstance(entry, Recipe) else entry, arguments, field=name)
                except InputError as error:  # the part itself knows its name, and not where it was written
                    raise renamed(error, lambda own: f"{field}.{own}") from error
        raise InputError(field, spec, "a mapping with the key recipe or part")
    if isinstance(spec, Sequence):
        parts: list[Defense] = []
        errors: list[InputError] = []
        for i, part in enumerate(spec):
            try:
                parts.append(build(part, field=f"{field}[{i}]"))
            except InputError as error:
                errors += together(error)
        raise_all(errors)
        return chain(*parts)
    raise InputError(field, spec, "a recipe's name, a mapping with the key recipe or part, or a list of these")


__all__ = [
    "CEM",
    "PARTS",
    "RECIPES",
    "SURROGATES",
    "Adversary",
    "Bottleneck",
    "BoundDefense",
    "Change",
    "Context",
    "DeeperEdge",
    "Defense",
    "DistanceCorrelation",
    "Dropout",
    "Epoch",
    "FusedAttention",
    "GatedAttention",
    "Lipschitz",
    "Noise",
    "Partner",
    "Player",
    "Prune",
    "Recipe",
    "SlotAttention",
    "build",
    "chain",
    "clean_features",
]
