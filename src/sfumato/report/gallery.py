"""Originals beside what the attacker made of them."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from sfumato.audit.card import AttackInfo, Card, Example
from sfumato.errors import InputError
from sfumato.report.comparison import Entry, strongest_attack
from sfumato.report.format import fixed
from sfumato.report.verdict import level_of

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

RANKS = {
    "best": "the attacker’s best",
    "median": "the attacker’s median",
    "worst": "the attacker’s worst",
}


@dataclass(frozen=True)
class Picture:
    """An image of the page: its address, what it shows in words, what stands under it."""

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Exhibit:
    """One test picture: the original, what the attacker rebuilt and, if known, rebuilt without a defense."""

    rank: str
    pictures: tuple[Picture, ...]
    figures: str


@dataclass(frozen=True)
class Wall:
    """One model's exhibits, all of its strongest attack, best first."""

    attack: str
    exhibits: tuple[Exhibit, ...]


def hang(entry: Entry) -> Wall:
    """The exhibits of one model.

    Raises:
        InputError: An image of the card is not a PNG in base64.
    """
    attack = entry.strongest
    bare = {} if entry.baseline is None else _examples(entry.baseline, attack.attack.name)
    ordered = sorted(attack.examples, key=lambda example: list(RANKS).index(example.rank))
    exhibits = tuple(_exhibit(entry, attack, example, bare.get(example.index)) for example in ordered)
    return Wall(attack.attack.name, exhibits)


def png_address(field: str, text: str) -> str:
    """A data address for a PNG in base64, so that the page needs no other file.

    Raises:
        InputError: It is not one. The content is checked because a card may come from anywhere.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not content.startswith(_SIGNATURE):
        raise InputError(field, text, "a PNG image in base64")
    return f"data:image/png;base64,{text}"


def _exhibit(entry: Entry, attack: AttackInfo, example: Example, bare: Example | None) -> Exhibit:
    which = f"test picture {example.index}, class {example.label}"
    seen = level_of(example.ssim).value
    made = f"What the attack {attack.attack.name} rebuilds of {which}, from the model {entry.name}: {seen}"
    pictures = [
        Picture(png_address("example.original", example.original), f"Original {which}", "original"),
        Picture(
            png_address("example.reconstruction", example.reconstruction),
            f"{made}, SSIM {fixed(example.ssim, 2)}",
            "rebuilt",
        ),
    ]
    if bare is not None:
        address = png_address("example.reconstruction", bare.reconstruction)
        alt = f"The same picture rebuilt from the undefended model, SSIM {fixed(bare.ssim, 2)}"
        pictures.append(Picture(address, alt, "no defense"))
    figures = f"SSIM {fixed(example.ssim, 2)}, MSE {fixed(example.mse, 4)}"
    return Exhibit(RANKS[example.rank], tuple(pictures), f"“{example.label}” · {figures}")


def _examples(card: Card, attack: str) -> dict[int, Example]:
    # The same attack is the fairer comparison where it was run.
    same = [each for each in card.attacks if each.attack.name == attack]
    return {example.index: example for example in (same or [strongest_attack(card)])[0].examples}
