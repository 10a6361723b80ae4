"""A figure that comes with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A figure and how far it can be trusted.

    Attributes:
        value: The figure.
        error: Its standard error; 0 where it is exact.
    """

    value: float
    error: float = 0.0


def mean_of(values: Tensor) -> Estimate:
    """Mean of independent values (N,), N ≥ 2, with its standard error."""
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))
