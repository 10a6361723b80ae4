"""Progress that a person sees, or nobody."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBar


class Progress(Protocol):
    """Told of one task at a time."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A task of ``total`` steps begins, ``done`` of them done before."""

    def advance(self, steps: int = 1) -> None:
        """Some steps are done."""

    def note(self, text: str) -> None:
        """A short remark beside the bar, such as the last epoch's accuracy."""

    def finish(self) -> None:
        """The task is done."""


class Silent:
    """Says nothing."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, steps: int = 1) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""


class Bar:
    """A bar with the time it will still take, on a terminal; use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=None, visible=False, note="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:  # otherwise it would print an empty line
            self._bar.stop()

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Show a new task; the last one stays above it."""
        self._bar.start()  # not earlier: an error before the first task should find an empty terminal
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        self._bar.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Write beside the bar."""
        self._bar.update(self._task, note=text)

    def finish(self) -> None:
        """Leave the bar full."""
        self._bar.refresh()


class Titled:
    """Another progress under a longer title: ``title (what the task calls itself)``."""

    def __init__(self, inner: Progress, title: str) -> None:
        self._inner, self._title = inner, title
        self.advance, self.note, self.finish = inner.advance, inner.note, inner.finish

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin the task under the longer title."""
        self._inner.start(f"{self._title} ({title.removeprefix('attack: ')})", total, done)
