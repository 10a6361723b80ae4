"""Several attacks on one model: how they rank, which of them wins on which picture, how each was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sfumato.audit.card import AttackInfo, Card
from sfumato.report.comparison import Entry, judged_images, strength
from sfumato.report.coverage import TRAINED_ON
from sfumato.report.format import arguments, listing, percent

Measure = Literal["ssim", "mse"]


@dataclass(frozen=True)
class Standing:
    """One attack among those on the same model.

    Args:
        entry: The model.
        attack: The attack.
        ssim_wins: Share of the judged test images on which its SSIM is the highest; ``None`` for an attack that was
            judged on fewer images than others, and cannot be aligned with them.
        mse_wins: The same for the lowest MSE.
    """

    entry: Entry
    attack: AttackInfo
    ssim_wins: float | None
    mse_wins: float | None


@dataclass(frozen=True)
class Recipe:
    """How an attack was run, and on which models where not on all: said once for all models that share it."""

    attack: str
    text: str


def standings(entry: Entry) -> tuple[Standing, ...]:
    """All attacks on one model, the strongest first; of equal ones the one that comes first in the card."""
    attacks = entry.card.attacks
    ssim, mse = shares(entry.card, "ssim"), shares(entry.card, "mse")
    made = [Standing(entry, attack, *both) for attack, *both in zip(attacks, ssim, mse)]
    return tuple(sorted(made, key=lambda standing: strength(standing.attack), reverse=True))


def winners(card: Card, measure: Measure) -> list[int]:
    """The position in the card of the attack that is strongest on each judged test image.

    Where several are, the first of them wins, so that every image has one winner. Attacks judged on fewer images
    cannot be aligned with the others and win nothing.
    """
    able = [i for i, attack in enumerate(card.attacks) if len(attack.test_ssim) == judged_images(card)]
    gain = np.array([_gain(card.attacks[i], measure) for i in able])
    # argmax takes the first of equals.
    return [able[row] for row in gain.argmax(axis=0)]


def shares(card: Card, measure: Measure) -> list[float | None]:
    """For each attack of the card, the share of the judged test images on which it wins; they sum to 1."""
    won, judged = winners(card, measure), judged_images(card)
    return [won.count(i) / judged if len(attack.test_ssim) == judged else None for i, attack in enumerate(card.attacks)]


def tell_winners(card: Card) -> str:
    """Which attack won where, by SSIM, in words; those that won nowhere are named too, for they were tried."""
    if len(card.attacks) == 1:
        return f"{card.attacks[0].attack.name} was the only attack."
    pairs = [(share, attack.attack.name) for share, attack in zip(shares(card, "ssim"), card.attacks)]
    ranked = sorted(((share, name) for share, name in pairs if share is not None), key=lambda pair: -pair[0])
    winning = [f"{name} on {_unbroken(percent(share))}" for share, name in ranked if share > 0]
    winning[0] += " of the pictures"
    never = [name for share, name in ranked if share == 0]
    return listing(winning) + (f"; {listing(never, 'and')} on none" if never else "") + "."


def recipes(members: Sequence[Entry]) -> list[Recipe]:
    """How each attack was run: threat model, what it learned from, all its arguments."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in members:
        for attack in entry.card.attacks:
            users = found.setdefault((attack.attack.name, _recipe(attack)), [])
            if entry.name not in users:
                users.append(entry.name)
    return [
        Recipe(name, text if len(users) == len(members) else f"{text} (on {listing(users)})")
        for (name, text), users in found.items()
    ]


def _gain(attack: AttackInfo, measure: Measure) -> list[float]:
    return attack.test_ssim if measure == "ssim" else [-value for value in attack.test_mse]


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _recipe(attack: AttackInfo) -> str:
    given = arguments(attack.attack.arguments)
    who = f"{attack.threat_model}, learned from {TRAINED_ON[attack.trained_on]}"
    return f"{who}: {given}" if given else who
