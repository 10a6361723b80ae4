"""From cards to what people read: tables, the plot, verdicts in words, and the auditor's page."""

from sfumato.report.comparison import Entry, entries
from sfumato.report.figures import privacy_utility_svg
from sfumato.report.page import render_page, write_page
from sfumato.report.standings import Standing, standings, tell_winners, winners
from sfumato.report.table import (
    ATTACK_COLUMNS,
    COLUMNS,
    Column,
    csv_table,
    json_table,
    markdown_table,
    rich_table,
    rows,
)
from sfumato.report.verdict import Cost, Level, Outcome, Verdict, judge, judge_all
from sfumato.report.wording import Words, conclude, describe

__all__ = [
    "ATTACK_COLUMNS",
    "COLUMNS",
    "Column",
    "Cost",
    "Entry",
    "Level",
    "Outcome",
    "Standing",
    "Verdict",
    "Words",
    "conclude",
    "csv_table",
    "describe",
    "entries",
    "json_table",
    "judge",
    "judge_all",
    "markdown_table",
    "privacy_utility_svg",
    "render_page",
    "rich_table",
    "rows",
    "standings",
    "tell_winners",
    "winners",
    "write_page",
]
