"""The tables of results, by model and by attack. One list of columns each serves text, Markdown, CSV, JSON and page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

from rich.table import Table
from rich.text import Text

from sfumato.audit.card import Card
from sfumato.errors import InputError, one_of
from sfumato.report.comparison import Entry, entries
from sfumato.report.format import MISSING, amount, arguments, fixed, milliseconds, octets, percent
from sfumato.report.standings import Standing, standings

Value = str | float | int | None
Better = Literal["higher", "lower", "none"]
By = Literal["model", "attack"]
Row = TypeVar("Row")

_WORDS = frozenset({"defense", "attack", "threat_model", "trained_on", "arguments"})
"""Keys of columns that hold words, not figures."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One figure: where it comes from, how it is written, what it means. A row is an entry or a standing.

    Args:
        key: Name in CSV and JSON, and never changed: other programs read it.
        title: Name for people, below ``group`` where there is one.
        value: The raw figure of a row.
        show: The figure as people read it.
        meaning: What it says in plain words, for someone who knows nothing of the field.
        group: What several neighboring columns have in common.
        private: Which direction keeps the picture more private.
    """

    key: str
    title: str
    value: Callable[[Row], Value]
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
        return self.key not in _WORDS

    def text(self, row: Row) -> str:
        """The cell as people read it."""
        value = self.value(row)
        if value is None:
            return MISSING
        return value if isinstance(value, str) else self.show(value)


def _quality(part: str, figure: str) -> Callable[[Entry], Value]:
    return attrgetter(f"strongest.{part}.{figure}")


def _of(path: str) -> Callable[[Standing], Value]:
    return attrgetter(f"attack.{path}")


def _digits(count: int) -> Callable[[float], str]:
    return lambda value: fixed(value, count)


def _count(value: float) -> str:
    return f"{value:,.0f}"


_MSE = "Mean squared error of the pixels (0 to 1): how far the attacker’s picture is from the original."
_PSNR = "The same error in decibels (peak signal-to-noise ratio), as engineers quote it."
_SSIM = "Structural similarity: 1 is an exact copy, near 0 nothing in common. Closest to what people see."
_WINS = "The share of the judged test pictures on which this attack comes closest of all. Of equals, the first counts."
_TRAIN = {
    "train": "On the model’s training pictures, from which the attacker’s own were taken: what leaks of people whose "
    "pictures the model has learned from.",
    "auxiliary": "Of attackers with other pictures than the model’s: on the set that theirs were taken from. The model "
    "has not learned from it, so these figures do not say what leaks of people whose pictures it has learned from.",
}
_TEST = "On test pictures that neither model nor attacker has seen: what leaks of users."

COLUMNS: tuple[Column[Entry], ...] = (
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


ATTACK_COLUMNS: tuple[Column[Standing], ...] = (
    Column("defense", "Defense", lambda s: s.entry.name, str, "What protects the model."),
    Column("attack", "Attack", _of("attack.name"), str, "The attack; how each was run stands below."),
    Column("threat_model", "Attacker", _of("threat_model"), str, "What the attacker knows of the device’s half."),
    Column("trained_on", "Learned from", _of("trained_on"), str, "Which pictures the attacker learned from."),
    Column(
        "observations", "Observations", _of("observations"), _count,
        "How often the attacker intercepts the feature of the same picture. It averages what it sees.",
    ),
    Column("images", "Own pictures", _of("images"), _count, "Pictures of its own that the attacker could learn from."),
    Column(
        "queries", "Queries", _of("queries"), _count,
        "Pictures that the attacker sent through the device’s half, repetitions included.",
    ),
    Column("train_mse", "train", _of("train.mse"), _digits(4), _MSE, "MSE", "higher"),
    Column("test_mse", "test", _of("test.mse"), _digits(4), _MSE, "MSE", "higher"),
    Column("train_psnr", "train", _of("train.psnr"), _digits(1), _PSNR, "PSNR (dB)", "lower"),
    Column("test_psnr", "test", _of("test.psnr"), _digits(1), _PSNR, "PSNR (dB)", "lower"),
    Column("train_ssim", "train", _of("train.ssim"), _digits(3), _SSIM, "SSIM", "lower"),
    Column("test_ssim", "test", _of("test.ssim"), _digits(3), _SSIM, "SSIM", "lower"),
    Column("ssim_wins", "by SSIM", lambda s: s.ssim_wins, percent, _WINS, "Wins"),
    Column("mse_wins", "by MSE", lambda s: s.mse_wins, percent, _WINS, "Wins"),
    Column(
        "identity", "Recognized", _of("identity"), percent,
        "Reconstructions in which an independent classifier still finds what, or whom, the original shows. It was "
        "trained on the model’s training pictures, but apart from it and without a defense. How many of the originals "
        "it recognizes stands in the verdict. It may miss what a person or a better classifier would see.",
        "", "lower",
    ),
    Column(
        "arguments", "Arguments", lambda s: arguments(s.attack.attack.arguments), str, "How the attack was set up."
    ),
)  # fmt: skip

_BRIEF: dict[By, frozenset[str]] = {
    "model": frozenset({"defense", "test_accuracy", "attack", "test_mse", "test_psnr", "test_ssim", "payload_bytes"}),
    "attack": frozenset(
        {"defense", "attack", "threat_model", "observations", "images", "test_mse", "test_ssim", "ssim_wins"}
    ),
}
_OWN = ("threat_model", "observations", "images", "queries", "ssim_wins", "identity")
"""What needs an explanation beside the table by attack, once the one by model is explained."""


@dataclass(frozen=True)
class Explanation:
    """What a column, or a group of columns with one meaning, says in plain words."""

    title: str
    meaning: str
    direction: str


def explanations(members: Sequence[Entry]) -> list[Explanation]:
    """One line per figure, to go under the table of these models."""
    figures = {column.figure: column for column in COLUMNS[1:]}
    result = [
        Explanation(
            name,
            column.meaning,
            "" if column.private == "none" else f"{column.private.capitalize()} is more private.",
        )
        for name, column in figures.items()
    ]
    origins = {attack.trained_on for entry in members for attack in entry.card.attacks}
    train = " ".join(text for origin, text in _TRAIN.items() if origin in origins)
    return [*result, Explanation("Train", train, ""), Explanation("Test", _TEST, "")]


def attack_explanations(shown: Sequence[Column[Standing]] = ATTACK_COLUMNS) -> list[Explanation]:
    """One line for each figure that only the table by attack has, of the columns that are shown."""
    return [Explanation(column.group or column.title, column.meaning, "") for column in shown if column.key in _OWN]


def rows(cards: Sequence[Card], *, by: By = "model") -> list[dict[str, Value]]:
    """The raw figures, one dictionary a row, keyed by :attr:`Column.key`; ``None`` where there is none.

    Args:
        cards: One per model.
        by: ``"model"``: a row a card. ``"attack"``: a row for each attack of each card, the strongest first.

    Raises:
        InputError: There is no card, or rows of another kind are asked for.
    """
    columns, members = _table(cards, by)
    return [{column.key: column.value(row) for column in columns} for row in members]


def json_table(cards: Sequence[Card], *, by: By = "model") -> str:
    """The raw figures as a JSON list."""
    return json.dumps(rows(cards, by=by), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def csv_table(cards: Sequence[Card], *, by: By = "model") -> str:
    """The raw figures as CSV with a header; empty where there is none."""
    columns, _ = _table(cards, by)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [column.key for column in columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(cards, by=by))
    return buffer.getvalue()


def markdown_table(cards: Sequence[Card], *, by: By = "model") -> str:
    """The table for people as GitHub-flavored Markdown; arrows point to the more private direction."""
    columns, members = _table(cards, by)
    lines = [
        [_markdown(f"{column.full_title} {column.arrow}".strip()) for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([_markdown(column.text(row)) for column in columns] for row in members),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(cards: Sequence[Card], *, by: By = "model") -> Table:
    """The figures that fit a terminal; the page and the other tables have them all."""
    columns, members = _table(cards, by)
    table = Table(caption="↑ higher is more private, ↓ lower is more private", caption_justify="left")
    columns = [column for column in columns if column.key in _BRIEF[by]]
    for column in columns:
        # Text, not a string: square brackets in a label are no markup.
        header = Text(f"{column.full_title} {column.arrow}".strip())
        table.add_column(header, justify="right" if column.numeric else "left")
    for row in members:
        table.add_row(*(Text(column.text(row)) for column in columns))
    return table


def _table(cards: Sequence[Card], by: By) -> tuple[Sequence[Column[Any]], Sequence[Any]]:
    if by not in _BRIEF:
        raise InputError("by", by, one_of(_BRIEF, by))
    members = entries(cards)
    if by == "model":
        return COLUMNS, members
    return ATTACK_COLUMNS, [standing for entry in members for standing in standings(entry)]


def _markdown(text: str) -> str:
    line = re.sub(r"\s+", " ", text).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
