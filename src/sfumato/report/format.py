"""Numbers and arguments as people read them: one place, so that table, page and plot never disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sfumato.audit.card import Part

MISSING = "–"
"""Shown where there is no figure: never a zero, which would read as a measurement."""

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def fixed(value: float | None, digits: int) -> str:
    """A decimal number with so many digits.

    >>> fixed(0.12345, 3), fixed(None, 3), fixed(-0.0001, 2)
    ('0.123', '–', '0.00')
    """
    # Adding zero turns the "-0.00" that rounding a tiny negative leaves into "0.00".
    return MISSING if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal.

    >>> percent(0.8734)
    '87.3 %'
    """
    return f"{fixed(100 * value, 1)} %"


def amount(value: float) -> str:
    """A count with a decimal prefix, three digits kept.

    >>> amount(0), amount(512), amount(85256), amount(21.9e6)
    ('0', '512', '85.3 k', '21.9 M')
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {prefix}"
    return f"{value:.0f}"


def octets(value: float) -> str:
    """A number of bytes with a decimal prefix.

    >>> octets(2048), octets(12)
    ('2.05 kB', '12 B')
    """
    text = amount(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def milliseconds(value: float) -> str:
    """A duration in milliseconds."""
    return f"{fixed(value, 2 if value < 10 else 1)} ms"


def count_word(count: int) -> str:
    """A small count as a word, a large one as figures.

    >>> count_word(3), count_word(1200)
    ('three', '1,200')
    """
    return _WORDS[count] if 0 <= count < len(_WORDS) else f"{count:,}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """The noun that fits the count.

    >>> plural(1, "picture"), plural(2, "picture"), plural(2, "is", "are")
    ('picture', 'pictures', 'are')
    """
    return one if count == 1 else (many or f"{one}s")


def listing(items: list[str], last: str = "and") -> str:
    """Items as a phrase.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def sentence(text: str) -> str:
    """``text`` with a capital first letter and the rest as it is.

    >>> sentence("one of three CEM models")
    'One of three CEM models'
    """
    return text[:1].upper() + text[1:]


def arguments(values: Mapping[str, Any]) -> str:
    """Named arguments, sorted by name so that the same card always reads the same.

    >>> arguments({"sigma": 0.025, "kind": "gauss"})
    'kind="gauss", sigma=0.025'
    """
    return ", ".join(f"{name}={_argument(values[name])}" for name in sorted(values))


def call(part: Part) -> str:
    """A part or an attack with its arguments.

    >>> call(Part(name="noise", arguments={"sigma": 0.025}))
    'noise(sigma=0.025)'
    """
    return f"{part.name}({arguments(part.arguments)})"


def _argument(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
