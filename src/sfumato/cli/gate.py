"""What ``--fail-if`` comes to: the exit code, the lines of those that fail, the same as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console

from sfumato.audit.card import Card
from sfumato.audit.gate import Condition, Violation, check, gated
from sfumato.report.format import listing

FAILED = 4
"""Exit code where a condition holds."""


@dataclass(frozen=True)
class Gate:
    """Conditions held against cards.

    Attributes:
        conditions: What was set; without any, nothing is checked.
        checked: Labels of the defenses that were held against them.
        spared: Labels of the undefended models beside these, which were not.
        violations: Every condition that holds, for every defense for which it does.
    """

    conditions: tuple[Condition, ...]
    checked: tuple[str, ...]
    spared: tuple[str, ...]
    violations: tuple[Violation, ...]

    @classmethod
    def over(cls, cards: Sequence[Card], conditions: Sequence[Condition]) -> Self:
        """Check conditions on cards.

        Raises:
            InputError: A condition is about something that a card does not have.
        """
        chosen = gated(cards)
        checked = tuple(card.defense.label for card in chosen)
        spared = tuple(card.defense.label for card in cards if card not in chosen)
        return cls(tuple(conditions), checked, spared, tuple(check(cards, conditions)))

    def as_json(self) -> dict[str, Any] | None:
        """Ready for JSON; ``None`` without conditions, which is not the same as none that holds."""
        if not self.conditions:
            return None
        return {
            "conditions": [str(condition) for condition in self.conditions],
            "checked": list(self.checked),
            "not_checked": list(self.spared),
            "violations": [
                {
                    "defense": one.defense,
                    "run": one.run,
                    "condition": str(one.condition),
                    "attack": one.condition.attack,
                    "metric": one.condition.metric,
                    "statistic": one.condition.statistic,
                    "operator": one.condition.operator,
                    "limit": one.condition.limit,
                    # JSON knows no infinity, which is the PSNR of an exact copy.
                    "measured": one.measured if math.isfinite(one.measured) else None,
                    "message": str(one),
                }
                for one in self.violations
            ],
        }

    def tell(self, console: Console | None = None) -> int:
        """Print the outcome on ``console``, and each violation on the error stream.

        Returns:
            The exit code.
        """
        if console is not None and self.conditions:
            console.print(f"Gate: {self._outcome()}", soft_wrap=True, highlight=False, markup=False)
        complaint = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        for violation in self.violations:
            complaint.print(f"sfumato: {violation}")
        return FAILED if self.violations else 0

    def _outcome(self) -> str:
        word = "failed" if self.violations else "passed"
        conditions = ", ".join(str(condition) for condition in self.conditions)
        text = f"{word}. Held against {listing(list(self.checked))}: {conditions}."
        return f"{text} Undefended and not checked: {listing(list(self.spared))}." if self.spared else text
