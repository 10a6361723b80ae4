"""Which audited models are there only to measure the others against."""

from __future__ import annotations

from sfumato.audit.card import Card, DefenseInfo

PASSIVE_PARTS = frozenset({"bottleneck", "identity", "none", "prune"})
"""Parts that shape the feature but are not there to protect it: a model with no others is undefended."""


def is_undefended(card: Card) -> bool:
    """Whether the card's model has no part that is meant to protect it."""
    return not protects(card.defense)


def protects(defense: DefenseInfo) -> bool:
    """Whether it has a part that is meant to protect."""
    return any(part.name not in PASSIVE_PARTS for part in defense.parts)
