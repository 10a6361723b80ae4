"""Benchmarks do not depend on what the shell that starts them has in its environment."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.allocator import KEPT, keep_memory

ROOT = Path(__file__).parents[1]


def test_starts_again_with_what_is_missing_and_only_once():
    code = "import json; from benchmarks.allocator import keep_memory; print(json.dumps(keep_memory()))"
    bare = {name: value for name, value in os.environ.items() if name not in KEPT}
    made = subprocess.run(
        [sys.executable, "-c", code],
        env=bare | {"MALLOC_TOP_PAD_": "65536"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(made.stdout) == KEPT | {"MALLOC_TOP_PAD_": "65536"}, "and what was set otherwise is left"


@pytest.mark.parametrize("name", ["attacks", "cem", "loop", "patrol"])
def test_every_benchmark_does_so_before_anything_is_timed(name, monkeypatch):
    def execve(path, arguments, environment):
        assert (path, arguments[0]) == (sys.executable, sys.executable)
        assert KEPT.items() <= environment.items()
        raise SystemExit("replaced by itself")

    monkeypatch.setattr(os, "execve", execve)
    for variable in KEPT:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit, match="replaced by itself"):
        importlib.import_module(f"benchmarks.{name}").main()


def test_who_has_them_goes_on(monkeypatch):
    monkeypatch.setattr(os, "execve", None)
    for variable, value in KEPT.items():
        monkeypatch.setenv(variable, value)
    assert keep_memory() == KEPT
