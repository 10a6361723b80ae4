"""Originals beside what the attacker made of them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from sfumato.audit.card import AttackInfo, Card, Example
from sfumato.errors import InputError
from sfumato.report.comparison import Entry, strongest_attack
from sfumato.report.format import fixed
from sfumato.report.verdict import level_of

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_FITS = 10
"""Letters of a name that fit under a picture on a phone."""

RANKS = {
    "best": "the attacker’s best",
    "median": "the attacker’s median",
    "worst": "the attacker’s worst",
}


@dataclass(frozen=True)
class Picture:
    """An image of the page: its address, what it shows in words, what stands under it, and who made it."""

    source: str
    alt: str
    caption: str
    by: str = ""


@dataclass(frozen=True)
class Exhibit:
    """One test picture: the original, what the attacker rebuilt and, if known, rebuilt without a defense."""

    rank: str
    pictures: tuple[Picture, ...]
    figures: str


@dataclass(frozen=True)
class Lineup:
    """The same test pictures through every model: a row of originals, then a row a model.

    Each picture is rebuilt by the attack that comes closest on it, and says which that is where several were run: by
    its name or, where names are long, by a letter that ``key`` explains. ``rows`` holds each model's entry and its
    pictures in the originals' order, ``None`` where a card lacks one.
    """

    originals: tuple[Picture, ...]
    rows: tuple[tuple[Entry, tuple[Picture | None, ...]], ...]
    key: tuple[tuple[str, str], ...] = ()


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
    ranked = [example for example in attack.examples if example.rank in RANKS]
    ordered = sorted(ranked, key=lambda example: list(RANKS).index(example.rank))
    exhibits = tuple(_exhibit(entry, example, bare.get(example.index)) for example in ordered)
    return Wall(attack.attack.name, exhibits)


def line_up(members: Sequence[Entry]) -> Lineup | None:
    """The fixed examples of models that were judged on the same images; ``None`` where no card has any.

    Raises:
        InputError: An image of a card is not a PNG in base64.
    """
    found = [(entry, _closest(entry.card)) for entry in members]
    originals = {index: example for _, examples in found for index, (_, example) in examples.items()}
    if not originals:
        return None
    order = sorted(originals)
    rows = tuple(
        (entry, tuple(_rebuilt(entry, *examples[i]) if i in examples else None for i in order))
        for entry, examples in found
    )
    return _lettered(Lineup(tuple(_original(originals[i]) for i in order), rows))


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


def _exhibit(entry: Entry, example: Example, bare: Example | None) -> Exhibit:
    pictures = [_original(example), replace(_rebuilt(entry, entry.strongest, example), caption="rebuilt", by="")]
    if bare is not None:
        address = png_address("example.reconstruction", bare.reconstruction)
        alt = f"The same picture rebuilt from the undefended model, SSIM {fixed(bare.ssim, 2)}"
        pictures.append(Picture(address, alt, "no defense"))
    figures = f"SSIM {fixed(example.ssim, 2)}, MSE {fixed(example.mse, 4)}"
    return Exhibit(RANKS[example.rank], tuple(pictures), f"“{example.label}” · {figures}")


def _original(example: Example) -> Picture:
    address = png_address("example.original", example.original)
    return Picture(address, f"Original {_which(example)}", "original")


def _rebuilt(entry: Entry, attack: AttackInfo, example: Example) -> Picture:
    seen, ssim, name = level_of(example.ssim).value, fixed(example.ssim, 2), attack.attack.name
    made = f"What the attack {name} rebuilds of {_which(example)}, from the model {entry.name}"
    address = png_address("example.reconstruction", example.reconstruction)
    # A name under every picture would say nothing where there is but one attack.
    return Picture(address, f"{made}: {seen}, SSIM {ssim}", ssim, name if len(entry.card.attacks) > 1 else "")


def _which(example: Example) -> str:
    return f"test picture {example.index}, class {example.label}"


def _examples(card: Card, attack: str) -> dict[int, Example]:
    # The same attack is the fairer comparison where it was run.
    same = [each for each in card.attacks if each.attack.name == attack]
    return {example.index: example for example in (same or [strongest_attack(card)])[0].examples}


def _lettered(lineup: Lineup) -> Lineup:
    """Attacks by letters, in the order in which they appear, where a name would not fit under its picture."""
    every = [picture.by for _, pictures in lineup.rows for picture in pictures if picture is not None and picture.by]
    letters = {name: _letter(number) for number, name in enumerate(dict.fromkeys(every))}
    if max((len(name) for name in letters), default=0) <= _FITS:
        return lineup
    rows = tuple(
        (entry, tuple(picture and replace(picture, by=letters.get(picture.by, "")) for picture in pictures))
        for entry, pictures in lineup.rows
    )
    return replace(lineup, rows=rows, key=tuple((letter, name) for name, letter in letters.items()))


def _letter(number: int) -> str:
    """A, B, …, Z, A2, B2 and so on."""
    again, position = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[position] + (str(again + 1) if again else "")


def _closest(card: Card) -> dict[int, tuple[AttackInfo, Example]]:
    """Of each fixed picture the reconstruction with the highest SSIM, and whose it is; of equals the first."""
    found: dict[int, tuple[AttackInfo, Example]] = {}
    for attack in card.attacks:
        for example in attack.examples:
            if example.rank != "fixed":
                continue
            if example.index not in found or example.ssim > found[example.index][1].ssim:
                found[example.index] = (attack, example)
    return found
