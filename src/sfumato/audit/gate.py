"""The gate: conditions under which an audit fails, checked on cards alone, for continuous integration.

A condition is ``[ATTACK:]METRIC[.STATISTIC] OP NUMBER``, with blanks wherever they please, such as ``ssim>0.5``,
``mse.min < 0.01`` or ``decoder:ssim.p90>=0.6``. The audit fails where it *holds*.

- Figures of attacks are of the test images, and of the worst case: on each image, the best of all attacks, or of those
  that ``ATTACK`` names: ``decoder`` all decoders, ``decoder (observations=16)`` the one that a card calls so, and
  ``decoder()`` the one that it calls ``decoder``.
  ``identity`` is the highest share of a single attack: cards do not say which pictures were recognized.
- ``STATISTIC`` sums up the images. ``p90`` is the smallest figure that at least 90 % of the images do not exceed:
  ``ssim.p90>0.6`` holds where on more than a tenth of the images SSIM is above 0.6. ``mse.p10<0.01`` holds where on a
  tenth or more MSE is below 0.01.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from sfumato.audit.card import AttackInfo, Card
from sfumato.audit.reference import is_undefended
from sfumato.errors import InputError, one_of, raise_all, together


@dataclass(frozen=True)
class Metric:
    """What a condition can be about.

    Args:
        meaning: In words.
        figures: From a card and those of its attacks that are looked at: a figure for each judged test image, or one.
        of_attacks: Whether a condition may name an attack.
        per_image: Whether there is a figure for each image, to be summed up by a statistic.
    """

    meaning: str
    figures: Callable[[Card, Sequence[AttackInfo]], list[float]]
    of_attacks: bool = False
    per_image: bool = False


def _best(better: Callable[[list[float]], float], columns: Iterable[Sequence[float]]) -> list[float]:
    """The best figure on each image; an attack that judged fewer images judged the first of them."""
    return [better([figure for figure in row if figure is not None]) for row in zip_longest(*columns)]


def _ssim(_: Card, attacks: Sequence[AttackInfo]) -> list[float]:
    return _best(max, (attack.test_ssim for attack in attacks))


def _mse(_: Card, attacks: Sequence[AttackInfo]) -> list[float]:
    return _best(min, (attack.test_mse for attack in attacks))


def _psnr(card: Card, attacks: Sequence[AttackInfo]) -> list[float]:
    return [-10 * math.log10(mse) if mse > 0 else math.inf for mse in _mse(card, attacks)]


def _identity(_: Card, attacks: Sequence[AttackInfo]) -> list[float]:
    return [max(attack.identity for attack in attacks if attack.identity is not None)]


def _accuracy(card: Card, _: Sequence[AttackInfo]) -> list[float]:
    return [card.utility.test_accuracy]


def _suspicions(card: Card, _: Sequence[AttackInfo]) -> list[float]:
    return [float(len(card.suspicions))]


METRICS: Mapping[str, Metric] = {
    "ssim": Metric("the highest SSIM of any attack on each image", _ssim, of_attacks=True, per_image=True),
    "mse": Metric("the lowest MSE of any attack on each image", _mse, of_attacks=True, per_image=True),
    "psnr": Metric("the highest PSNR of any attack on each image, in dB", _psnr, of_attacks=True, per_image=True),
    "identity": Metric(
        "the highest share of an attack's reconstructions that an independent classifier recognizes",
        _identity,
        of_attacks=True,
    ),
    "accuracy": Metric("the model's accuracy on test images, 0 to 1", _accuracy),
    "suspicions": Metric("how many reasons the evaluation gives to distrust it", _suspicions),
}

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

SHAPE = "[ATTACK:]METRIC[.STATISTIC] OP NUMBER, such as ssim>0.5 or decoder:mse.p10<=0.01"
_STATISTICS = "one of mean, min, max, p1 to p99"
_OPERATORS = f"one of {', '.join(OPERATORS)}"
GRAMMAR = f"{SHAPE}; METRIC {one_of(METRICS)}; STATISTIC {_STATISTICS}; OP {_OPERATORS}"

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ATTACK = re.compile(r"[^:<>]+")
_CONDITION = re.compile(
    rf"\s*(?:(?P<attack>{_ATTACK.pattern}):)?\s*(?P<metric>\w+)\s*(?:\.\s*(?P<statistic>\w+)\s*)?"
    rf"(?P<operator>[<>]=?)\s*(?P<limit>{_NUMBER})\s*",
    re.ASCII,
)
_STATISTIC = re.compile(r"mean|min|max|p[1-9]\d?", re.ASCII)
_FIELD = "fail_if"


@dataclass(frozen=True)
class Condition:
    """One way to fail. ``str`` gives the text that :func:`parse` reads.

    Args:
        metric: A key of :data:`METRICS`.
        operator: A key of :data:`OPERATORS`.
        limit: A finite number.
        statistic: ``mean``, ``min``, ``max``, or ``p1`` to ``p99``; other than ``mean`` only for figures per image.
        attack: Only attacks of this name; ``None`` for all. Only for figures of attacks.

    Raises:
        InputError: No such metric, operator or statistic, or one that does not go with the metric.
    """

    metric: str
    operator: str
    limit: float
    statistic: str = "mean"
    attack: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError("metric", self.metric, f"{one_of(METRICS, self.metric)}; in {SHAPE}")
        if self.operator not in OPERATORS:
            raise InputError("operator", self.operator, _OPERATORS)
        if not math.isfinite(self.limit):
            raise InputError("limit", self.limit, "a finite number")
        if not _STATISTIC.fullmatch(self.statistic):
            raise InputError("statistic", self.statistic, _STATISTICS)
        metric = METRICS[self.metric]
        if self.statistic != "mean" and not metric.per_image:
            raise InputError("statistic", self.statistic, f"none: {self.metric} is a single figure")
        if self.attack is None:
            return
        if not metric.of_attacks:
            raise InputError("attack", self.attack, f"none: {self.metric} is no figure of an attack")
        if not _ATTACK.fullmatch(self.attack) or self.attack != self.attack.strip():
            raise InputError("attack", self.attack, "an attack's name")

    def __str__(self) -> str:
        return f"{self.subject}{self.operator}{_number(self.limit)}"

    @property
    def subject(self) -> str:
        """What is measured: the condition without operator and limit."""
        scope = "" if self.attack is None else f"{self.attack}:"
        return f"{scope}{self.metric}{'' if self.statistic == 'mean' else f'.{self.statistic}'}"

    def names(self, label: str, kind: str) -> bool:
        """Whether it is about the attack that a card calls so, or about all of its kind.

        Where the two are one word, ``decoder`` is the kind, and ``decoder()`` the attack with no argument of its own.
        """
        return self.attack is None or self.attack in (label, kind, f"{label}()")

    def holds(self, measured: float) -> bool:
        """Whether a model with this figure fails."""
        return OPERATORS[self.operator](measured, self.limit)


@dataclass(frozen=True)
class Violation:
    """A condition that holds for a model, which therefore fails.

    Attributes:
        defense: Label of the model's defense; with the run's address where several cards have the same label.
        run: Address of the model's run.
        condition: What was set.
        measured: What was reached; infinite for the PSNR of an exact copy.
    """

    defense: str
    run: str
    condition: Condition
    measured: float

    def __str__(self) -> str:
        limit = _number(self.condition.limit)
        bound = {">": f"above {limit}", ">=": f"{limit} or above", "<": f"below {limit}", "<=": f"{limit} or below"}
        return (
            f"{self.defense}: {self.condition.subject} is {self._shown()}, and must not be "
            f"{bound[self.condition.operator]}"
        )

    def _shown(self) -> str:
        """In four digits, unless these would lie on the other side of the limit."""
        short = f"{self.measured:.4g}"
        return short if self.condition.holds(float(short)) else repr(self.measured)


def parse(text: str, *, field: str = _FIELD) -> Condition:
    """Read a condition; names may be written in capitals.

    Args:
        text: As the module's documentation describes it.
        field: Where it was written, for the error.

    Raises:
        InputError: It is none; the nearest metric is suggested.

    >>> parse(" SSIM.p90 >= 0.60 ")
    Condition(metric='ssim', operator='>=', limit=0.6, statistic='p90', attack=None)
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        # Without quotes, the shell takes what stands behind > for a file.
        hint = "" if set(text) & set("<>") else "; in quotes, for > and < mean something to a shell"
        raise InputError(field, text, f"{GRAMMAR}{hint}")
    attack, statistic = found["attack"], found["statistic"]
    try:
        return Condition(
            metric=found["metric"].lower(),
            operator=found["operator"],
            limit=float(found["limit"]),
            statistic="mean" if statistic is None else statistic.lower(),
            attack=None if attack is None else attack.strip(),
        )
    except InputError as error:
        raise InputError(field, text, f"for its {error.field}, {error.accepted}") from error


def parse_all(entries: Sequence[object]) -> tuple[Condition, ...]:
    """Read conditions.

    Raises:
        InputError: Some are none, all at once.
    """
    conditions: list[Condition] = []
    errors: list[InputError] = []
    for i, entry in enumerate(entries):
        field = f"{_FIELD}[{i}]"
        try:
            if not isinstance(entry, str):
                raise InputError(field, entry, f"text: {GRAMMAR}")
            conditions.append(parse(entry, field=field))
        except InputError as error:
            errors += together(error)
    raise_all(errors)
    return tuple(conditions)


def unmeasured(condition: Condition, attacks: Iterable[tuple[str, str]], *, judged: bool) -> InputError | None:
    """What is wrong with a condition on a figure that an audit does not give.

    Args:
        condition: What was set.
        attacks: What the card calls, or will call, its attacks, and the kind of each.
        judged: Whether an independent classifier looks at the reconstructions.
    """
    known = list(attacks)
    if not any(condition.names(label, kind) for label, kind in known):
        accepted = f"an attack that is run: {one_of((label for label, _ in known), condition.attack)}"
        return InputError(_FIELD, str(condition), accepted)
    if condition.metric == "identity" and not judged:
        return InputError(_FIELD, str(condition), "a figure that was measured; identity is with evaluation.judge: true")
    return None


def gated(cards: Sequence[Card]) -> list[Card]:
    """The cards that conditions are about: all with a defense, or all cards where none has one.

    An undefended model is audited beside others to measure them against it, and always leaks.
    """
    return [card for card in cards if not is_undefended(card)] or list(cards)


def check(cards: Sequence[Card], conditions: Sequence[Condition]) -> list[Violation]:
    """Find the conditions that hold, for every model that is :func:`gated`.

    Raises:
        InputError: A condition is about something that a card does not have; all at once.
    """
    chosen = gated(cards)
    errors = [
        InputError(error.field, error.value, f"{error.accepted} (card of {card.defense.label})")
        for card in chosen
        for condition in conditions
        if (error := _unmeasured_on(card, condition)) is not None
    ]
    raise_all(errors)
    measured = [(card, condition, measure(card, condition)) for card in chosen for condition in conditions]
    return [
        Violation(_name(card, chosen), card.run, condition, figure)
        for card, condition, figure in measured
        if condition.holds(figure)
    ]


def measure(card: Card, condition: Condition) -> float:
    """The figure that a condition is about; infinite for the PSNR of an exact copy.

    Raises:
        InputError: The card does not have it.
    """
    error = _unmeasured_on(card, condition)
    if error is not None:
        raise error
    return _summed_up(METRICS[condition.metric].figures(card, _attacks(card, condition)), condition.statistic)


def _attacks(card: Card, condition: Condition) -> list[AttackInfo]:
    return [attack for attack in card.attacks if condition.names(attack.attack.name, attack.kind)]


def _unmeasured_on(card: Card, condition: Condition) -> InputError | None:
    judged = all(attack.identity is not None for attack in _attacks(card, condition))
    return unmeasured(condition, [(attack.attack.name, attack.kind) for attack in card.attacks], judged=judged)


def _summed_up(figures: list[float], statistic: str) -> float:
    if statistic == "mean":
        return math.fsum(figures) / len(figures)
    share = {"min": 0, "max": 100}[statistic] if statistic in ("min", "max") else int(statistic[1:])
    # In whole numbers: 0.07 times 100 is more than 7.
    rank = max(1, -(-share * len(figures) // 100))
    return sorted(figures)[rank - 1]


def _name(card: Card, others: Sequence[Card]) -> str:
    alike = [other for other in others if other.defense.label == card.defense.label]
    return card.defense.label if len(alike) == 1 else f"{card.defense.label} (run {card.run[:8]})"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
