"""Intervals and tests of `evaluate`, against scipy and published examples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, chi2, norm

from resnet50_cli.evaluate.intervals import Z, mcnemar, paired_difference, wilson

TABLES = [(0, 1, 44), (7, 1, 21), (20, 40, 160), (3, 9, 32), (0, 0, 400), (120, 95, 50_000)]


def test_quantile_is_that_of_95_percent():
    assert pytest.approx(float(norm.ppf(0.975))) == Z


@given(st.integers(1, 60_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_scipys(counts):
    expected = binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert wilson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 500), st.integers(0, 500))
def test_mcnemar_p_value_is_that_of_chi_squared(one, other):
    expected = chi2.sf((one - other) ** 2 / (one + other), 1) if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9)


def profile_score(only_first: int, only_second: int, trials: int, delta: float) -> float:
    """Return the score statistic with the likelihood maximised numerically.

    The probability that only the first succeeds is free, the difference is given.
    """
    same = trials - only_first - only_second

    def loss(first: float) -> float:
        second = first + delta
        rest = 1 - first - second
        if min(first, second, rest) < 0:
            return math.inf
        return -sum(
            count * math.log(max(share, 1e-300))
            for count, share in ((only_first, first), (only_second, second), (same, rest))
            if count
        )

    low, high = max(0.0, -delta), (1 - delta) / 2
    first = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    variance = trials * (2 * first + delta - delta**2)
    return (only_second - only_first - trials * delta) / math.sqrt(variance)


@pytest.mark.parametrize("table", TABLES)
def test_paired_interval_inverts_the_score_test(table):
    low, high = paired_difference(*table)
    estimate = (table[1] - table[0]) / table[2]
    assert -1 <= low <= estimate <= high <= 1
    for limit, side, quantile in ((low, -0.999, Z), (high, 0.999, -Z)):
        expected = brentq(lambda d, q=quantile: profile_score(*table, d) - q, estimate, side)
        assert limit == pytest.approx(expected, abs=2e-6)


def test_paired_interval_is_the_published_one():
    # Airway hyper-responsiveness before and after stem cell transplantation, Bentur et al. 2009;
    # interval and p-value as in Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014).
    assert paired_difference(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert mcnemar(7, 1) == pytest.approx(0.034, abs=5e-4)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400))
def test_paired_interval_and_mcnemar_agree(one, other, same):
    low, high = paired_difference(one, other, one + other + same)
    assert (low > 0 or high < 0) == (mcnemar(one, other) < 0.05)


def test_exchanged_variants_mirror_the_interval():
    low, high = paired_difference(5, 12, 90)
    assert paired_difference(12, 5, 90) == pytest.approx((-high, -low))


def test_intervals_of_extreme_counts_stay_in_range():
    assert wilson(0, 1)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    assert paired_difference(3, 0, 3)[0] == -1.0
    assert paired_difference(0, 3, 3)[1] == 1.0
    low, high = paired_difference(0, 0, 1)
    assert -1 < low < 0 < high < 1
