"""Summary statistics: quantiles with enough samples, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    ordered = np.sort(np.asarray(numbers, dtype=np.float64))
    count = len(ordered)
    return Summary(
        count=count,
        mean=_rounded(ordered.mean()) if count else None,
        p50=_quantile(ordered, 0.5),
        p90=_quantile(ordered, 0.9),
        p99=_quantile(ordered, 0.99),
        p99_9=_quantile(ordered, 0.999),
        max=_rounded(ordered[-1]) if count else None,
    )


def curve(numbers: Sequence[float]) -> list[tuple[float, float]]:
    """Return the cumulative distribution as pairs of fraction and number, denser towards 1."""
    ordered = np.sort(np.asarray(numbers, dtype=np.float64))
    if not len(ordered):
        return []
    # Equidistant on the plot's axis, the logarithm of the fraction above.
    above = np.geomspace(1.0, 1.0 / len(ordered), CURVE_POINTS)
    points = []
    for share in sorted({round(1.0 - one, 9) for one in above.tolist()}):
        points.append((share, _at(ordered, share)))
    return points


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


def _quantile(ordered: np.ndarray, share: float) -> float | None:
    # 1000 * (1 - 0.999) is 1, except for rounding.
    return _at(ordered, share) if len(ordered) * (1.0 - share) > 1.0 - 1e-6 else None


def _at(ordered: np.ndarray, share: float) -> float:
    """Return the smallest number that a fraction `share` of them does not exceed (nearest rank)."""
    rank = max(1, math.ceil(len(ordered) * share - 1e-9))
    return _rounded(ordered[rank - 1])


def _rounded(number: float) -> float:
    """Round to six significant digits, for readable files."""
    return float(f"{number:.6g}")
