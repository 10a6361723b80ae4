"""What an audit does and writes down: the settings, the protocol, the card, and what to distrust."""

from sfumato.audit.card import Card
from sfumato.audit.protocol import attack_run, audit, check, train_all
from sfumato.audit.runs import Run, train_run
from sfumato.audit.settings import PRESETS, Settings, load_settings, preset, read_yaml

__all__ = [
    "PRESETS",
    "Card",
    "Run",
    "Settings",
    "attack_run",
    "audit",
    "check",
    "load_settings",
    "preset",
    "read_yaml",
    "train_all",
    "train_run",
]
