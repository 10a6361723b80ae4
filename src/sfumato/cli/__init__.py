"""The command line: ``sfumato audit``, ``train``, ``attack``, ``report`` and ``list``."""

from sfumato.cli.commands import app, main, run

__all__ = ["app", "main", "run"]
