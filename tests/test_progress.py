"""What a person sees of long work."""

from __future__ import annotations

import io

from rich.console import Console

from sfumato.progress import Bar, Silent


def test_bar() -> None:
    out = io.StringIO()
    with Bar(Console(file=out, force_terminal=True, width=120)) as bar:
        bar.start("first task", 10, 4)
        bar.advance()
        bar.advance(2)
        bar.note("0.1234")
        bar.finish()
        bar.start("second task", 3)
    text = out.getvalue()
    for shown in ("first task", " 70%", "0.1234", "second task", "  0%"):
        assert shown in text


def test_silent_says_nothing(capsys) -> None:
    silent = Silent()
    silent.start("a task", 3)
    silent.advance()
    silent.note("a note")
    silent.finish()
    assert capsys.readouterr() == ("", "")
