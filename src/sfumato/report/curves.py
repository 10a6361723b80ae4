"""What more of something buys an attacker: the leak against observations, own pictures and queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from sfumato.attacks.auto import DERIVED
from sfumato.audit.card import AttackInfo
from sfumato.report.comparison import Entry
from sfumato.report.format import arguments, fixed, listing
from sfumato.report.verdict import SSIM_GAIN

Budget = Literal["observations", "images", "queries"]


@dataclass(frozen=True)
class _What:
    title: str
    axis: str
    attacker: Callable[[int], str]
    spent: Callable[[AttackInfo], int | None]


def _often(count: int) -> str:
    return "sees the same picture once" if count == 1 else f"sees the same picture {count:,} times and averages"


BUDGETS: dict[Budget, _What] = {
    "observations": _What(
        "Seeing the same picture more often",
        "observations of the same picture",
        _often,
        lambda attack: attack.observations,
    ),
    "images": _What(
        "Having more pictures of one’s own",
        "pictures of the attacker’s own",
        lambda count: f"has {count:,} pictures of its own",
        lambda attack: attack.images,
    ),
    "queries": _What(
        "Sending more pictures through the device’s half",
        "pictures sent through the device’s half",
        lambda count: f"sends {count:,} pictures through the device’s half",
        lambda attack: attack.queries,
    ),
}
"""What an attacker may have more or less of. Its name is that of the argument by which attacks are given it."""


@dataclass(frozen=True)
class Curve:
    """One attack on one model with more and more of a budget.

    Args:
        entry: The model.
        points: What was spent and the SSIM on test images that it led to, by what was spent; two or more.
    """

    entry: Entry
    points: tuple[tuple[int, float], ...]

    @property
    def gain(self) -> float:
        """SSIM with the most less SSIM with the least."""
        return self.points[-1][1] - self.points[0][1]


@dataclass(frozen=True)
class Panel:
    """One attack on several models: the curves of one plot.

    Args:
        budget: What there is more and more of.
        attack: Kind and threat model, and the arguments by which it differs from other panels of the same budget.
        curves: One a model, in the models' order.
    """

    budget: Budget
    attack: str
    curves: tuple[Curve, ...]

    @property
    def what(self) -> _What:
        """The budget in words."""
        return BUDGETS[self.budget]


def panels(members: Sequence[Entry]) -> list[Panel]:
    """All plots that models judged on the same pictures give; a curve needs two different amounts.

    Args:
        members: Of one data set.
    """
    return [panel for budget in BUDGETS for panel in _panels(members, budget)]


def explain(panel: Panel) -> str:
    """What a plot says, in sentences for someone who knows nothing of the field."""
    texts = []
    spans = sorted(panel.curves, key=_span)
    for (low, high), curves in groupby(spans, key=_span):
        ordered = sorted(curves, key=lambda curve: curve.entry.number)
        changes = [
            f"{fixed(c.points[-1][1], 2)} instead of {fixed(c.points[0][1], 2)} ({c.entry.name})" for c in ordered
        ]
        attacker = panel.what.attacker
        texts.append(
            f"An attacker who {attacker(high)} gets a similarity (SSIM) of {listing(changes)}, "
            f"compared with one who {attacker(low)}."
        )
    return f"{' '.join(texts)} {_weigh(panel)}"


def describe(panel: Panel) -> str:
    """The plot for those who do not see it: every point."""
    lines = [
        f"{curve.entry.name}: " + ", ".join(f"{fixed(ssim, 2)} at {spent:,}" for spent, ssim in curve.points)
        for curve in panel.curves
    ]
    return (
        f"Line plot of the attacker’s SSIM on test pictures against {panel.what.axis}, "
        f"for the attack {panel.attack}. {'; '.join(lines)}."
    )


def _weigh(panel: Panel) -> str:
    helped = [curve for curve in panel.curves if curve.gain >= SSIM_GAIN]
    if not helped:
        return f"That makes no difference that counts (less than {SSIM_GAIN:g})."
    if len(helped) == len(panel.curves):
        every = "It helps" if len(helped) == 1 else "It helps against every one of them"
        return f"{every}: figures for the smaller amount understate the leak."
    most = listing([curve.entry.name for curve in helped])
    return f"It helps against {most}, where figures for the smaller amount understate the leak; elsewhere it does not."


def _panels(members: Sequence[Entry], budget: Budget) -> list[Panel]:
    groups = _groups(members, budget)
    firsts = [attacks[0][1] for attacks in groups.values()]
    made = []
    for attacks in groups.values():
        first = attacks[0][1]
        alike = [_rest(other, budget) for other in firsts if _name(other) == _name(first)]
        told = {name: value for name, value in _rest(first, budget).items() if _differs(name, alike)}
        title = f"{_name(first)}, {arguments(told)}" if told else _name(first)
        made.append(Panel(budget, title, _curves(attacks, budget)))
    return made


def _name(attack: AttackInfo) -> str:
    return f"{attack.kind}, {attack.threat_model}"


def _span(curve: Curve) -> tuple[int, int]:
    return curve.points[0][0], curve.points[-1][0]


def _groups(members: Sequence[Entry], budget: Budget) -> dict[str, list[tuple[Entry, AttackInfo]]]:
    """Attacks that are the same but for one budget, where some model faced two amounts of it."""
    found: dict[str, list[tuple[Entry, AttackInfo]]] = {}
    for entry in members:
        for attack in entry.card.attacks:
            if BUDGETS[budget].spent(attack) is not None:
                found.setdefault(_signature(attack, budget), []).append((entry, attack))
    return {signature: attacks for signature, attacks in found.items() if _curves(attacks, budget)}


def _signature(attack: AttackInfo, budget: Budget) -> str:
    return f"{_name(attack)}, {arguments(_rest(attack, budget))}"


def _rest(attack: AttackInfo, budget: Budget) -> dict[str, Any]:
    """Everything that has to be equal along a curve. Queries follow from the rest unless they are the budget.

    So does how many epochs an attack trains for where it learns from more or fewer images along the curve: from those
    that it owns or may send, or may send so often out of a limited number of queries.
    """
    had = {"observations": attack.observations, "images": attack.images, "trained_on": attack.trained_on}
    told = attack.attack.arguments | had
    shared_out = budget != "observations" or told.get("queries") is not None
    return {name: told[name] for name in told if name != budget and not (shared_out and name in DERIVED)}


def _differs(name: str, every: Sequence[dict[str, Any]]) -> bool:
    return any(each.get(name) != every[0].get(name) for each in every)


def _curves(attacks: Sequence[tuple[Entry, AttackInfo]], budget: Budget) -> tuple[Curve, ...]:
    made = []
    for number in sorted({entry.number for entry, _ in attacks}):
        own = [(entry, attack) for entry, attack in attacks if entry.number == number]
        reached: dict[int, float] = {}
        for _, attack in own:
            spent = BUDGETS[budget].spent(attack) or 0
            # Of two that spent the same, the stronger: an attacker would keep it.
            reached[spent] = max(attack.test.ssim, reached.get(spent, -1.0))
        # One that was given no more and spent more has trained for longer.
        given = {attack.attack.arguments.get(budget) for _, attack in own}
        if len(reached) > 1 and len(given) > 1:
            made.append(Curve(own[0][0], tuple(sorted(reached.items()))))
    return tuple(made)
