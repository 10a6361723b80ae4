"""Who is compared with whom: cards in order, with names that are unique, each with its undefended twin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sfumato.audit.card import AttackInfo, Card
from sfumato.audit.reference import is_undefended
from sfumato.errors import InputError
from sfumato.report.format import call


@dataclass(frozen=True)
class Entry:
    """One card among the others.

    Args:
        number: Position in the report, from 1; plots and tables share it.
        name: The defense's label, made unique where several cards share it.
        card: The card.
        baseline: The undefended card on the same data, network and cut; ``None`` if there is none or
            this is one.
    """

    number: int
    name: str
    card: Card
    baseline: Card | None

    @property
    def undefended(self) -> bool:
        """Whether nothing protects this model."""
        return is_undefended(self.card)

    @property
    def strongest(self) -> AttackInfo:
        """The attack that reconstructs test images best."""
        return strongest_attack(self.card)


def strongest_attack(card: Card) -> AttackInfo:
    """The attack with the highest SSIM on test images; of equal ones the one with the lower MSE."""
    return max(card.attacks, key=strength)


def strength(attack: AttackInfo) -> tuple[float, float]:
    """What attacks are ordered by: the stronger, the larger."""
    return attack.test.ssim, -attack.test.mse


def judged_images(card: Card) -> int:
    """How many test images the attacks were judged on."""
    return max(len(attack.test_ssim) for attack in card.attacks)


def per_image_ssim(card: Card) -> list[float]:
    """The highest SSIM that any attack reaches on each judged test image.

    Attacks judged on fewer images cannot be aligned with the others and are left out.
    """
    longest = judged_images(card)
    columns = [attack.test_ssim for attack in card.attacks if len(attack.test_ssim) == longest]
    return [max(row) for row in zip(*columns)]


def entries(cards: Iterable[Card]) -> tuple[Entry, ...]:
    """Put cards in the report's order: the undefended first, otherwise as given, none twice.

    Raises:
        InputError: There is no card.
    """
    unique: dict[str, Card] = {}
    for card in cards:
        unique.setdefault(card.fingerprint(), card)
    if not unique:
        raise InputError("cards", [], "at least one card")
    ordered = sorted(unique.values(), key=lambda card: not is_undefended(card))
    return tuple(
        Entry(number, name, card, _baseline(card, ordered))
        for number, (name, card) in enumerate(zip(_names(ordered), ordered), start=1)
    )


def by_data(members: Sequence[Entry]) -> list[list[Entry]]:
    """Entries grouped by data set: figures on different pictures do not belong on one axis."""
    groups: dict[str, list[Entry]] = {}
    for entry in members:
        groups.setdefault(entry.card.data.checksum, []).append(entry)
    return list(groups.values())


def seeds(members: Sequence[Entry], entry: Entry) -> set[int]:
    """The seeds with which this entry's defense was trained on the same data, network and cut."""
    same = (other.card for other in members if _recipe(other.card) == _recipe(entry.card))
    return {card.training.seed for card in same}


def _recipe(card: Card) -> tuple[object, ...]:
    parts = tuple(call(part) for part in card.defense.parts)
    return (card.defense.label, parts, card.model.edge_from, *_setting(card))


def _setting(card: Card) -> tuple[object, ...]:
    return (card.data.checksum, card.model.backbone, card.model.width, card.model.cut)


def _baseline(card: Card, others: Sequence[Card]) -> Card | None:
    if is_undefended(card):
        return None
    twins = [other for other in others if is_undefended(other) and _setting(other) == _setting(card)]
    # The same seed gives the same initial weights and batches, so less of the difference is chance.
    return min(twins, key=lambda other: other.training.seed != card.training.seed, default=None)


def _names(cards: Sequence[Card]) -> list[str]:
    names = []
    for card in cards:
        alike = [other for other in cards if other.defense.label == card.defense.label]
        different = [index for index in range(4) if len({_facets(other)[index] for other in alike}) > 1]
        shown = [_facets(card)[index] for index in different]
        if sum([_facets(other)[i] for i in different] == shown for other in alike) > 1:
            shown.append(f"run {card.run[:8]}")
        names.append(f"{card.defense.label} ({', '.join(shown)})" if shown else card.defense.label)
    return [f"{name} #{i + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _facets(card: Card) -> tuple[str, str, str, str]:
    model = card.model
    return (
        card.data.source,
        f"{model.backbone} ×{model.width:g}",
        f"cut {model.cut}",
        f"seed {card.training.seed}",
    )
