from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.bench import Curve, match, match_seeds, monotone, mse_at, rank_correlation
from sfumato.errors import InputError

# The first call imports scikit-learn or scipy.
patient = settings(deadline=None)
values = st.integers(0, 20).map(lambda i: i / 20)
curves = st.lists(st.tuples(values, values), min_size=1, max_size=8).map(
    lambda points: Curve(tuple(a for a, _ in points), tuple(m for _, m in points))
)


def slow_monotone(curve):
    """The min-max formula of isotonic regression: of every knot, the least of the greatest means of its stretches."""
    knots = sorted(set(curve.accuracy))
    at = [[m for a, m in zip(curve.accuracy, curve.mse) if a == knot] for knot in knots]

    def mean(start, stop):
        found = [m for points in at[start : stop + 1] for m in points]
        return sum(found) / len(found)

    last = len(knots) - 1
    return knots, [min(max(mean(s, t) for t in range(i, last + 1)) for s in range(i + 1)) for i in range(len(knots))]


def slow_mse_at(curve, accuracy):
    knots, errors = slow_monotone(curve)
    for i, knot in enumerate(knots):
        if knot == accuracy:
            return errors[i]
        if knot > accuracy:
            share = (accuracy - knots[i - 1]) / (knot - knots[i - 1])
            return errors[i - 1] + share * (errors[i] - errors[i - 1])
    raise AssertionError("outside")


@patient
@given(curves)
def test_monotone_is_the_slow_one(curve):
    knots, errors = monotone(curve)
    slow_knots, slow_errors = slow_monotone(curve)
    assert knots.tolist() == slow_knots
    assert errors.tolist() == pytest.approx(slow_errors, abs=1e-12)
    assert np.all(np.diff(errors) <= 1e-12)


def test_a_falling_curve_is_left_as_it_is():
    knots, errors = monotone(Curve((0.8, 0.6, 0.7), (0.01, 0.05, 0.02)))
    assert knots.tolist() == [0.6, 0.7, 0.8]
    assert errors.tolist() == pytest.approx([0.05, 0.02, 0.01])


def test_neighbors_that_rise_are_averaged_and_equal_accuracies_too():
    _, errors = monotone(Curve((0.6, 0.7, 0.8), (0.03, 0.05, 0.01)))
    assert errors.tolist() == pytest.approx([0.04, 0.04, 0.01])
    knots, errors = monotone(Curve((0.6, 0.6), (0.03, 0.05)))
    assert (knots.tolist(), errors.tolist()) == ([0.6], pytest.approx([0.04]))


@patient
@given(curves, st.floats(0, 1))
def test_interpolation_is_the_slow_one(curve, share):
    low, high = min(curve.accuracy), max(curve.accuracy)
    accuracy = min(high, low + share * (high - low))
    assert mse_at(curve, [accuracy])[0] == pytest.approx(slow_mse_at(curve, accuracy), abs=1e-9)


def test_nothing_is_extrapolated():
    curve = Curve((0.5, 0.7), (0.04, 0.02))
    assert mse_at(curve, [0.5, 0.55, 0.7]).tolist() == pytest.approx([0.04, 0.035, 0.02])
    for outside in (0.49, 0.71):
        with pytest.raises(InputError, match=r"between 0\.5 and 0\.7"):
            mse_at(curve, [outside])


@pytest.mark.parametrize(
    ("accuracy", "mse"), [((), ()), ((0.1,), ()), ((0.1,), (0.1, 0.2)), ((math.nan,), (0.1,)), ((0.1,), (math.inf,))]
)
def test_what_is_no_curve_is_refused(accuracy, mse):
    with pytest.raises(InputError, match="curve"):
        Curve(accuracy, mse)


def test_two_lines_are_compared_exactly():
    # Means over 0.5 to 0.7 of 0.1 − 0.1·a and of twice that: the values in the middle, at a = 0.6.
    one = Curve((0.4, 0.7), (0.06, 0.03))
    two = Curve((0.5, 0.9), (0.10, 0.02))
    found = match(one, two)
    assert (found.low, found.high) == (0.5, 0.7)
    assert (found.without, found.with_it) == pytest.approx((0.04, 0.08))
    assert found.gain == pytest.approx(1.0)


def test_a_kink_inside_the_range_counts():
    # Falls from 0.05 to 0.01 over a tenth of the range and stays there: mean (0.1·0.03 + 0.9·0.01).
    kinked = Curve((0.0, 0.1, 1.0), (0.05, 0.01, 0.01))
    flat = Curve((0.0, 1.0), (0.02, 0.02))
    assert match(kinked, flat).without == pytest.approx(0.012)
    assert match(flat, kinked).with_it == pytest.approx(0.012)


@patient
@given(curves, curves)
def test_a_match_is_the_mean_over_cells_without_kinks(one, two):
    found = match(one, two)
    low, high = max(min(one.accuracy), min(two.accuracy)), min(max(one.accuracy), max(two.accuracy))
    if low > high:
        assert found is None
        return
    # Midpoints of cells: exact where no kink falls inside a cell, and kinks are on twentieths.
    cells = max(1, round(20 * (high - low)))
    grid = low + (high - low) * (np.arange(cells) + 0.5) / cells
    for curve, mean in ((one, found.without), (two, found.with_it)):
        assert mean == pytest.approx(np.mean([slow_mse_at(curve, a) for a in grid]), abs=1e-9)


@patient
@given(curves)
def test_a_curve_gains_nothing_over_itself(curve):
    found = match(curve, curve)
    assert found.without == found.with_it


def test_a_single_point_is_compared_where_it_is():
    curve, point = Curve((0.5, 0.7), (0.04, 0.02)), Curve((0.6,), (0.06,))
    found = match(curve, point)
    assert (found.low, found.high) == (0.6, 0.6)
    assert found.gain == pytest.approx(1.0)
    assert match(curve, Curve((0.8,), (0.06,))) is None


def test_nothing_to_gain_over_an_exact_copy():
    assert match(Curve((0.5,), (0.0,)), Curve((0.5,), (0.1,))).gain == math.inf


def test_seeds_are_compared_one_by_one_and_what_does_not_overlap_is_told():
    without = {0: Curve((0.5, 0.7), (0.04, 0.02)), 1: Curve((0.5, 0.7), (0.04, 0.02)), 2: Curve((0.5, 0.6), (0.1, 0.1))}
    with_it = {
        0: Curve((0.5, 0.7), (0.08, 0.04)),
        1: Curve((0.5, 0.7), (0.06, 0.03)),
        2: Curve((0.7, 0.8), (0.1, 0.1)),
        3: Curve((0.5,), (0.1,)),
    }
    found = match_seeds(without, with_it)
    assert set(found.by_seed) == {0, 1}
    assert found.gain.mean == pytest.approx(0.75)
    assert found.gain.deviation == pytest.approx(0.5 / 2**0.5)
    assert found.apart == {2: ((0.5, 0.6), (0.7, 0.8))}
    assert match_seeds({2: without[2]}, {2: with_it[2]}).gain is None


def slow_ranks(found):
    return [sum(other < value for other in found) + (found.count(value) + 1) / 2 for value in found]


@patient
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=15))
def test_spearman_is_pearson_of_ranks(pairs):
    first, second = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    found = rank_correlation(first, second)
    if len(pairs) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        assert (found.rho, found.p_value) == (None, None)
    else:
        assert found.rho == pytest.approx(np.corrcoef(slow_ranks(first), slow_ranks(second))[0, 1], abs=1e-9)
    assert found.count == len(pairs)


def test_spearman_sees_order_alone():
    entropy = [-3.0, -2.0, -1.0, 0.0]
    assert rank_correlation(entropy, [math.exp(h) for h in entropy]).rho == pytest.approx(1.0)
    assert rank_correlation(entropy, [-(h**3) for h in entropy]).rho == pytest.approx(-1.0)
    # One swap of neighbors among four: 1 − 6·2/(4·15).
    swapped = rank_correlation(entropy, [1, 2, 4, 3])
    assert swapped.rho == pytest.approx(0.8)
    # Student's t with 2 degrees of freedom has a closed form: p = 1 − t/√(t² + 2), which is 1 − ρ.
    assert swapped.p_value == pytest.approx(0.2)
    with pytest.raises(InputError, match="as many"):
        rank_correlation([1, 2, 3], [1, 2])
