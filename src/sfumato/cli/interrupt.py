"""Ctrl-C: at once as long as nothing was trained, then at the next step with a checkpoint, twice at once again."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

NOTHING_YET = "this call has trained nothing yet; what earlier ones did is kept"
CHECKPOINT_KEPT = "the last checkpoint is kept, the same command goes on from it"


def program() -> list[str]:
    """How this program can be called again: the one of a checkout's environment is seldom on the path."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("sfumato", "__main__.py"):
        return [sys.executable, "-m", "sfumato"]
    found = shutil.which("sfumato")
    elsewhere = called.name == "sfumato" and (found is None or Path(found).resolve() != called.resolve())
    return [sys.argv[0] if elsewhere else "sfumato"]


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether the user asked to stop; restores the handlers afterwards.

    Until it is called for the first time nobody would listen, and there is nothing that a checkpoint could keep: images
    are downloaded, decoded or checked. A signal raises ``KeyboardInterrupt`` then, and so does the second one later on;
    its argument says in words what is kept. SIGTERM is taken the same way: schedulers send it before they kill.
    """
    asked, listening = threading.Event(), threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not listening.is_set():
            raise KeyboardInterrupt(NOTHING_YET)
        if asked.is_set():
            raise KeyboardInterrupt(CHECKPOINT_KEPT)
        asked.set()

    def should_stop() -> bool:
        listening.set()
        return asked.is_set()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield should_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
