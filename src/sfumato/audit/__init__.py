"""What an audit does and writes down: the settings, the protocol, the card, and what to distrust."""

from sfumato.audit.calibration import (
    CALIBRATION_ATTACK,
    CALIBRATION_FITTING,
    Attacked,
    Bracket,
    Calibration,
    Sizes,
    images_of,
    measure,
    split_model_of,
    splits_of,
)
from sfumato.audit.card import Card
from sfumato.audit.protocol import attack_run, audit, check, train_all
from sfumato.audit.runs import Run, train_run
from sfumato.audit.settings import PRESETS, Settings, load_settings, preset, read_yaml

__all__ = [
    "CALIBRATION_ATTACK",
    "CALIBRATION_FITTING",
    "PRESETS",
    "Attacked",
    "Bracket",
    "Calibration",
    "Card",
    "Run",
    "Settings",
    "Sizes",
    "attack_run",
    "audit",
    "check",
    "images_of",
    "load_settings",
    "measure",
    "preset",
    "read_yaml",
    "split_model_of",
    "splits_of",
    "train_all",
    "train_run",
]
