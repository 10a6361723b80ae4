"""What can be said along curves: error at matched accuracy, and entropy against error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.bench.aggregate import Spread, spread
from sfumato.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Accuracy and the attacker's MSE at several strengths of one defense with one seed, in any order.

    Raises:
        InputError: No point, or not as many of one as of the other, or a value that is not finite.
    """

    accuracy: tuple[float, ...]
    mse: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.accuracy or len(self.accuracy) != len(self.mse):
            sizes = (len(self.accuracy), len(self.mse))
            raise InputError("curve", sizes, "as many errors as accuracies, at least one")
        if not all(map(math.isfinite, (*self.accuracy, *self.mse))):
            raise InputError("curve", (self.accuracy, self.mse), "finite values")


@dataclass(frozen=True)
class Match:
    """Two curves with one seed, on the accuracies that both reach.

    Attributes:
        low: Lowest accuracy that both reach.
        high: Highest.
        without: Mean MSE of the one curve over that range.
        with_it: Of the other.
    """

    low: float
    high: float
    without: float
    with_it: float

    @property
    def gain(self) -> float:
        """How much more error the other curve leaves, as a fraction."""
        return self.with_it / self.without - 1 if self.without else math.inf


@dataclass(frozen=True)
class Matched:
    """Two defenses at matched accuracy.

    Attributes:
        by_seed: Seed to what was found, for every seed that both defenses have.
        apart: The seeds whose curves share no accuracy, with both ranges: nothing can be said there.
    """

    by_seed: Mapping[int, Match]
    apart: Mapping[int, tuple[tuple[float, float], tuple[float, float]]]

    @property
    def gain(self) -> Spread | None:
        """Over the seeds whose curves overlap."""
        return spread({seed: match.gain for seed, match in self.by_seed.items()}) if self.by_seed else None


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        rho: −1 to 1; ``None`` where it is not defined: fewer than three points, or one side constant.
        p_value: Of no association, two-sided, from Student's t; rough for few points.
        count: Number of points.
    """

    rho: float | None
    p_value: float | None
    count: int


def monotone(curve: Curve) -> tuple[Floats, Floats]:
    """The knots of the falling curve nearest to the points: accuracies, rising, and errors, never rising.

    A defense that is turned up loses accuracy and gains error, so whatever rises with accuracy is chance. Isotonic
    regression removes it by averaging neighbors; points of one accuracy are averaged first.
    """
    from sklearn.isotonic import IsotonicRegression  # slow to import, and few commands need it

    fit = IsotonicRegression(increasing=False).fit(np.array(curve.accuracy), np.array(curve.mse))
    knots = np.unique(np.array(curve.accuracy))
    return knots, np.asarray(fit.predict(knots), dtype=np.float64)


def mse_at(curve: Curve, accuracy: Sequence[float] | Floats) -> Floats:
    """Error at given accuracies, by straight lines between the knots of :func:`monotone`.

    Raises:
        InputError: An accuracy outside the curve's range, where nothing was measured.
    """
    knots, errors = monotone(curve)
    asked = np.asarray(accuracy, dtype=np.float64)
    if asked.size and (asked.min() < knots[0] or asked.max() > knots[-1]):
        raise InputError("accuracy", asked.tolist(), f"between {knots[0]:.4g} and {knots[-1]:.4g}, the curve's range")
    return np.interp(asked, knots, errors)


def match(without: Curve, with_it: Curve) -> Match | None:
    """Compare two curves over the accuracies that both reach; ``None`` where there are none.

    The means over the range are exact for the straight lines: trapezoids over the knots of both.
    """
    low = max(min(without.accuracy), min(with_it.accuracy))
    high = min(max(without.accuracy), max(with_it.accuracy))
    if low > high:
        return None
    knots = np.unique([low, high, *without.accuracy, *with_it.accuracy])
    knots = knots[(knots >= low) & (knots <= high)]
    first, second = (_mean_over(knots, mse_at(curve, knots)) for curve in (without, with_it))
    return Match(low, high, first, second)


def match_seeds(without: Mapping[int, Curve], with_it: Mapping[int, Curve]) -> Matched:
    """Compare two defenses seed by seed, so that what a seed does to both cancels."""
    found: dict[int, Match] = {}
    apart: dict[int, tuple[tuple[float, float], tuple[float, float]]] = {}
    for seed in sorted(set(without) & set(with_it)):
        pair = (without[seed], with_it[seed])
        result = match(*pair)
        if result is None:
            first, second = ((min(curve.accuracy), max(curve.accuracy)) for curve in pair)
            apart[seed] = (first, second)
        else:
            found[seed] = result
    return Matched(found, apart)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Spearman's correlation; tied values share their mean rank."""
    from scipy.stats import spearmanr  # slow to import, and few commands need it

    count = len(first)
    if count != len(second):
        raise InputError("correlation", (count, len(second)), "as many values of one as of the other")
    if count < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return Correlation(None, None, count)
    result = spearmanr(first, second)
    return Correlation(float(result.statistic), float(result.pvalue), count)


def _mean_over(x: Floats, y: Floats) -> float:
    """Mean of a piecewise linear function over the range of its knots."""
    if len(x) == 1:
        return float(y[0])
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (x[-1] - x[0]))
