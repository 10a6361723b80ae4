"""The command line: ``sfumato audit``, ``train``, ``attack``, ``report``, ``bench`` and ``list``."""

from sfumato.cli import bench
from sfumato.cli.commands import app, run

__all__ = ["app", "bench", "run"]
