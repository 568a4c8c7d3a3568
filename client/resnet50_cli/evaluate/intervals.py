"""Confidence intervals and tests of accuracies, all at 95%.

Sources: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
(1927); T. Tango, Equivalence test and confidence interval for the difference in proportions for the
paired-sample design, Statistics in Medicine 17 (1998); Q. McNemar, Note on the sampling error of
the difference between correlated proportions or percentages, Psychometrika 12 (1947).
"""

from __future__ import annotations

import math
from collections.abc import Callable

# The quantile 0.975 of the standard normal distribution.
Z = 1.959963984540054
# Halvings of an interval of length 2: beyond the precision of a float.
_HALVINGS = 60


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    Args:
        successes: 0 to `trials`.
        trials: At least 1.

    Returns:
        The lower and the upper limit, 0 to 1.
    """
    share, z2 = successes / trials, Z * Z
    middle = share + z2 / (2 * trials)
    spread = Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    # At the ends the limits are exactly 0 and 1, except for rounding.
    low = 0.0 if successes == 0 else (middle - spread) / scale
    high = 1.0 if successes == trials else (middle + spread) / scale
    return low, high


def paired_difference(only_first: int, only_second: int, trials: int) -> tuple[float, float]:
    """Return Tango's score interval of the difference of two proportions of the same trials.

    It inverts a score test that is McNemar's test at a difference of 0, so the two never disagree:
    the interval excludes 0 exactly if `mcnemar` is below 0.05.

    Args:
        only_first: Trials in which only the first succeeded.
        only_second: Trials in which only the second succeeded.
        trials: All trials, at least 1.

    Returns:
        Lower and upper limit of the second proportion minus the first one, -1 to 1.
    """
    score = _paired_score(only_second, only_first, trials)
    estimate = (only_second - only_first) / trials
    low = -1.0 if estimate == -1 else _root(lambda delta: score(delta) - Z, -1.0, estimate)
    high = 1.0 if estimate == 1 else _root(lambda delta: score(delta) + Z, estimate, 1.0)
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's test, without continuity correction.

    Args:
        only_first: Trials in which only the first succeeded.
        only_second: Trials in which only the second succeeded.
    """
    discordant = only_first + only_second
    if not discordant:
        return 1.0
    return math.erfc(abs(only_first - only_second) / math.sqrt(2 * discordant))


def _paired_score(gained: int, lost: int, trials: int) -> Callable[[float], float]:
    """Return Tango's score statistic as a decreasing function of the difference, -1 to 1."""

    def score(delta: float) -> float:
        # The maximum likelihood estimate of the probability to lose, given the difference.
        b = (2 * trials - gained + lost) * delta - gained - lost
        c = -lost * delta * (1 - delta)
        lose = (math.sqrt(max(0.0, b * b - 8 * trials * c)) - b) / (4 * trials)
        variance = trials * (2 * lose + delta * (1 - delta))
        distance = gained - lost - trials * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    return score


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of a decreasing function by bisection."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
