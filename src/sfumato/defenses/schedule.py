"""How the pressure of a rate on the features grows as the learning rate decays."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["authors", "constant"]

_LAST_RATE = 4e-4  # the authors' last learning rate, at and below which the weight is 1


def pressure(schedule: Schedule, lr: float) -> float:
    """w(t) of CEM (Xia et al. 2025): ``authors`` 0.001/lr while lr > 0.0004 and 1 after, ``constant`` 1."""
    # A hair above the authors' last rate, which 0.05·0.2³ misses by one rounding.
    if schedule == "constant" or lr <= _LAST_RATE * (1 + 1e-6):
        return 1.0
    return 0.001 / lr
