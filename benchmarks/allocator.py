"""The allocator that benchmarks are run with: memory once taken stays with the process, as under ``make demo``."""

from __future__ import annotations

import os
import sys

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
"""For glibc. By default what is freed goes back to the system, and page faults are timed in place of the work."""


def keep_memory() -> dict[str, str]:
    """Start the program again under these settings, unless it has them; one that is set otherwise is left so.

    Returns:
        The settings that hold.
    """
    if not KEPT.keys() <= os.environ.keys():  # glibc looks once, when a program starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], KEPT | os.environ)
    return {name: os.environ[name] for name in KEPT}
