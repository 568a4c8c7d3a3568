from __future__ import annotations

import numpy as np
import pytest

from resnet50_bench.statistics import GROWTH, curve, histogram, summary


def test_quantiles_are_numbers_that_were_seen():
    found = summary(np.random.default_rng(0).permutation(np.arange(1, 1001)))
    assert (found.p50, found.p90, found.p99, found.p99_9) == (500, 900, 990, 999)
    assert (found.count, found.mean, found.max) == (1000, 500.5, 1000)


@pytest.mark.parametrize(
    ("count", "missing"),
    [
        (1, {"p50", "p90", "p99", "p99_9"}),
        (9, {"p90", "p99", "p99_9"}),
        (10, {"p99", "p99_9"}),
        (99, {"p99", "p99_9"}),
        (100, {"p99_9"}),
        (999, {"p99_9"}),
        (1000, set()),
    ],
)
def test_quantiles_that_too_few_numbers_bear_are_left_out(count, missing):
    found = summary(range(count))
    names = ("p50", "p90", "p99", "p99_9")
    assert {name for name in names if getattr(found, name) is None} == missing
    assert found.max == count - 1


def test_nothing_has_no_quantiles():
    found = summary([])
    assert (found.count, found.mean, found.p50, found.max) == (0, None, None, None)
    assert (curve([]), histogram([])) == ([], [])


def test_curve_rises_from_the_least_to_the_most():
    numbers = np.random.default_rng(0).exponential(10, 5000)
    points = curve(numbers)
    shares, values = zip(*points, strict=True)
    assert list(values) == sorted(values)
    assert (shares[0], values[0]) == (0.0, pytest.approx(numbers.min(), rel=1e-5))
    assert shares[-1] == pytest.approx(1 - 1 / 5000)
    assert values[-1] == pytest.approx(np.sort(numbers)[-2], rel=1e-5)  # only one lies above
    half = min(points, key=lambda point: abs(point[0] - 0.5))
    assert half[1] == pytest.approx(np.quantile(numbers, half[0]), rel=0.01)
    assert len(points) <= 120


def test_histogram_holds_every_number_once_within_its_bounds():
    numbers = np.random.default_rng(0).exponential(10, 5000)
    classes = histogram(numbers)
    assert sum(count for _, count in classes) == 5000
    for upper, count in classes:
        inside = (numbers <= upper * (1 + 1e-5)) & (numbers > upper / GROWTH * (1 - 1e-5))
        assert inside.sum() == pytest.approx(count, abs=1)
