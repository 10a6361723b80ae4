"""What people call the attacks of one list."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.attacks.base import Attack


def labels(attacks: Sequence[Attack]) -> tuple[str, ...]:
    """What people call each: its name, and where several have the same, the arguments that set it apart.

    >>> from sfumato.attacks import DecoderAttack
    >>> labels([DecoderAttack(), DecoderAttack(observations=16)])
    ('decoder', 'decoder (observations=16)')
    """
    return tuple(_label(attack, [other for other in attacks if other.name == attack.name]) for attack in attacks)


def _label(attack: Attack, twins: Sequence[Attack]) -> str:
    arguments = attack.describe()
    apart = [
        f"{name}={value}"
        for name, value in arguments.items()
        if any(twin.describe()[name] != value for twin in twins) and value != getattr(type(attack), name, None)
    ]
    return f"{attack.name} ({', '.join(apart)})" if apart else attack.name
