"""Summary statistics: quantiles with enough samples, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Growth factor of histogram bounds: within 5% of any value.
GROWTH = 2 ** (1 / 8)
CURVE_POINTS = 120


@dataclass(frozen=True)
class Summary:
    """Mean and quantiles, in the numbers' unit.

    A quantile is one of the numbers (nearest rank); it is None with less than one number above
    it: p99.9 needs 1000 numbers.
    """

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p99_9: float | None
    max: float | None


def summary(numbers: Sequence[float]) -> Summary:
    """Return mean and quantiles of numbers in any order."""
    values = np.asarray(numbers, dtype=np.float64)
    count = len(values)
    return Summary(
        count=count,
        mean=_rounded(values.mean()) if count else None,
        p50=_quantile(values, 0.5),
        p90=_quantile(values, 0.9),
        p99=_quantile(values, 0.99),
        p99_9=_quantile(values, 0.999),
        max=_rounded(values.max()) if count else None,
    )


def curve(numbers: Sequence[float]) -> list[tuple[float, float]]:
    """Return the cumulative distribution as pairs of fraction and number, denser towards 1."""
    values = np.asarray(numbers, dtype=np.float64)
    if not len(values):
        return []
    # Equidistant on the plot's axis, the logarithm of the fraction above.
    above = np.geomspace(1.0, 1.0 / len(values), CURVE_POINTS)
    shares = np.unique(np.round(1.0 - above, 9))
    points = np.quantile(values, shares, method="inverted_cdf")
    return [(share, _rounded(point)) for share, point in zip(shares.tolist(), points, strict=True)]


def histogram(numbers: Sequence[float]) -> list[tuple[float, int]]:
    """Return pairs of a bucket's upper bound and its count.

    Empty buckets are omitted; a bucket's lower bound is its upper bound ÷ `GROWTH`.
    """
    values = np.maximum(np.asarray(numbers, dtype=np.float64), 1e-3)
    classes, counts = np.unique(
        np.ceil(np.log(values) / math.log(GROWTH) - 1e-9), return_counts=True
    )
    return [
        (_rounded(GROWTH**one), int(count))
        for one, count in zip(classes.tolist(), counts.tolist(), strict=True)
    ]


def _quantile(values: NDArray[np.float64], share: float) -> float | None:
    # 1000 * (1 - 0.999) is 1, except for rounding.
    if len(values) * (1.0 - share) <= 1.0 - 1e-6:
        return None
    return _rounded(np.quantile(values, share, method="inverted_cdf"))


def _rounded(number: float) -> float:
    """Round to six significant digits, for readable files."""
    return float(f"{number:.6g}")
