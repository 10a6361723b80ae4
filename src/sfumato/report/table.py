"""The table of results. One list of columns serves Markdown, the terminal, CSV, JSON and the page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from rich.table import Table
from rich.text import Text

from sfumato.audit.card import Card
from sfumato.report.comparison import Entry, entries
from sfumato.report.format import MISSING, amount, fixed, milliseconds, octets, percent

Value = str | float | int | None
Better = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class Column:
    """One figure: where it comes from, how it is written, what it means.

    Args:
        key: Name in CSV and JSON, and never changed: other programs read it.
        title: Name for people, below ``group`` where there is one.
        value: The raw figure of an entry.
        show: The figure as people read it.
        meaning: What it says in plain words, for someone who knows nothing of the field.
        group: What several neighboring columns have in common.
        private: Which direction keeps the picture more private.
    """

    key: str
    title: str
    value: Callable[[Entry], Value]
    show: Callable[[float], str]
    meaning: str
    group: str = ""
    private: Better = "none"

    @property
    def full_title(self) -> str:
        """The title with its group."""
        return f"{self.group}, {self.title}" if self.group else self.title

    @property
    def figure(self) -> str:
        """What is measured, whichever pictures it is measured on."""
        return self.group if self.title in ("train", "test") else self.full_title

    @property
    def arrow(self) -> str:
        """The direction that is more private, as a sign."""
        return {"higher": "↑", "lower": "↓", "none": ""}[self.private]

    @property
    def numeric(self) -> bool:
        """Whether the column holds figures."""
        return self.key not in ("defense", "attack")

    def text(self, entry: Entry) -> str:
        """The cell as people read it."""
        value = self.value(entry)
        if value is None:
            return MISSING
        return value if isinstance(value, str) else self.show(value)


def _quality(part: str, figure: str) -> Callable[[Entry], Value]:
    return attrgetter(f"strongest.{part}.{figure}")


def _digits(count: int) -> Callable[[float], str]:
    return lambda value: fixed(value, count)


_MSE = "Mean squared error of the pixels (0 to 1): how far the attacker’s picture is from the original."
_PSNR = "The same error in decibels (peak signal-to-noise ratio), as engineers quote it."
_SSIM = "Structural similarity: 1 is an exact copy, near 0 nothing in common. Closest to what people see."
_TRAIN = "On training pictures: what leaks of people whose pictures the model has learned from."
_TEST = "On test pictures that neither model nor attacker has seen: what leaks of users."

COLUMNS: tuple[Column, ...] = (
    Column("defense", "Defense", lambda e: e.name, str, "What protects the model."),
    Column(
        "test_accuracy", "Test accuracy", lambda e: e.card.utility.test_accuracy, percent,
        "How many test pictures the protected model answers correctly. Higher is more useful.",
    ),
    Column(
        "attack", "Strongest attack", lambda e: e.strongest.attack.name, str,
        "The attack that comes closest on test pictures; the next six figures are its.",
    ),
    Column("train_mse", "train", _quality("train", "mse"), _digits(4), _MSE, "MSE", "higher"),
    Column("test_mse", "test", _quality("test", "mse"), _digits(4), _MSE, "MSE", "higher"),
    Column("train_psnr", "train", _quality("train", "psnr"), _digits(1), _PSNR, "PSNR (dB)", "lower"),
    Column("test_psnr", "test", _quality("test", "psnr"), _digits(1), _PSNR, "PSNR (dB)", "lower"),
    Column("train_ssim", "train", _quality("train", "ssim"), _digits(3), _SSIM, "SSIM", "lower"),
    Column("test_ssim", "test", _quality("test", "ssim"), _digits(3), _SSIM, "SSIM", "lower"),
    Column(
        "worst_case_ssim", "worst case", lambda e: e.card.worst_case.ssim, _digits(3),
        "The best of all attacks on each test picture, averaged. The verdict rests on it.", "SSIM", "lower",
    ),
    Column(
        "payload_bytes", "Payload", lambda e: e.card.cost.payload_bytes, octets,
        "What travels to the cloud for one picture.",
    ),
    Column(
        "edge_parameters", "parameters", lambda e: e.card.cost.edge_parameters, amount,
        "Numbers that the device has to store for its half of the network.", "Device",
    ),
    Column(
        "edge_macs", "MACs", lambda e: e.card.cost.edge_macs, amount,
        "Multiplications (with additions) that the device computes for one picture.", "Device",
    ),
    Column(
        "edge_latency_ms", "latency", lambda e: e.card.timing.edge_latency_ms, milliseconds,
        "Time the device’s half takes for one picture, on the machine of the audit.", "Device",
    ),
)  # fmt: skip


_BRIEF = frozenset({"defense", "test_accuracy", "attack", "test_mse", "test_psnr", "test_ssim", "payload_bytes"})


@dataclass(frozen=True)
class Explanation:
    """What a column, or a group of columns with one meaning, says in plain words."""

    title: str
    meaning: str
    direction: str


def explanations() -> list[Explanation]:
    """One line per figure, to go under the table."""
    figures = {column.figure: column for column in COLUMNS[1:]}
    result = [
        Explanation(
            name,
            column.meaning,
            "" if column.private == "none" else f"{column.private.capitalize()} is more private.",
        )
        for name, column in figures.items()
    ]
    return [*result, Explanation("Train", _TRAIN, ""), Explanation("Test", _TEST, "")]


def rows(cards: Sequence[Card]) -> list[dict[str, Value]]:
    """The raw figures, one dictionary per card, keyed by :attr:`Column.key`; ``None`` where there is none.

    Raises:
        InputError: There is no card.
    """
    return [{column.key: column.value(entry) for column in COLUMNS} for entry in entries(cards)]


def json_table(cards: Sequence[Card]) -> str:
    """The raw figures as a JSON list."""
    return json.dumps(rows(cards), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def csv_table(cards: Sequence[Card]) -> str:
    """The raw figures as CSV with a header; empty where there is none."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [column.key for column in COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(cards))
    return buffer.getvalue()


def markdown_table(cards: Sequence[Card]) -> str:
    """The table for people as GitHub-flavored Markdown; arrows point to the more private direction."""
    members = entries(cards)
    lines = [
        [_markdown(f"{column.full_title} {column.arrow}".strip()) for column in COLUMNS],
        ["---:" if column.numeric else "---" for column in COLUMNS],
        *([_markdown(column.text(entry)) for column in COLUMNS] for entry in members),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(cards: Sequence[Card]) -> Table:
    """The figures that fit a terminal: one row a card; the page and the other tables have them all."""
    members = entries(cards)
    table = Table(caption="↑ higher is more private, ↓ lower is more private", caption_justify="left")
    columns = [column for column in COLUMNS if column.key in _BRIEF]
    for column in columns:
        # Text, not a string: square brackets in a label are no markup.
        header = Text(f"{column.full_title} {column.arrow}".strip())
        table.add_column(header, justify="right" if column.numeric else "left")
    for entry in members:
        table.add_row(*(Text(column.text(entry)) for column in columns))
    return table


def _markdown(text: str) -> str:
    line = re.sub(r"\s+", " ", text).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
