"""Comparison of two variants' answers, and its statistics."""

from __future__ import annotations

import numpy as np
import pytest

from resnet50_server.rollout.comparison import (
    WINDOW,
    Comparison,
    Output,
    RecentValues,
    SplitStats,
)


def output_of(label: str, *vector: float, compute_s: float = 0.001) -> Output:
    return Output(label, np.array(vector, dtype=np.float32), compute_s)


def test_comparison_adds_up():
    comparison = Comparison()
    comparison.add(output_of("cat", 1.0, 0.0), output_of("cat", 3.0, 0.0, compute_s=0.004))
    comparison.add(output_of("cat", 1.0, 0.0), output_of("dog", 0.0, 5.0, compute_s=0.002))
    comparison.add(output_of("dog", 1.0, 1.0), output_of("dog", -1.0, -1.0, compute_s=0.003))
    assert (comparison.images, comparison.agreed) == (3, 2)
    assert comparison.cosines == pytest.approx(1.0 + 0.0 - 1.0)
    assert comparison.min_cosine == pytest.approx(-1.0)
    assert comparison.variant_s.quantile(0.5) == 0.001
    assert comparison.candidate_s.quantile(0.5) == 0.003


def test_vector_of_zeros_has_no_direction():
    comparison = Comparison()
    comparison.add(output_of("cat", 0.0, 0.0), output_of("cat", 1.0, 0.0))
    assert (comparison.cosines, comparison.min_cosine) == (0.0, 0.0)


def test_vectors_of_any_length_have_cosines():
    comparison = Comparison()
    for scale in (1e-30, 1e30):
        comparison.add(output_of("cat", scale, scale), output_of("cat", scale, scale))
    assert comparison.cosines == pytest.approx(2.0)
    assert comparison.min_cosine <= 1.0


def test_quantiles_are_of_the_latest_numbers_only():
    latest = RecentValues()
    assert latest.quantile(0.5) == 0.0
    for number in range(3 * WINDOW):
        latest.add(number)
    assert latest.quantile(0.0) == 2 * WINDOW
    assert latest.quantile(0.5) == 2 * WINDOW + WINDOW / 2 - 1
    assert latest.quantile(0.99) == 2 * WINDOW + 0.99 * WINDOW - 1
    assert latest.quantile(1.0) == 3 * WINDOW - 1


def test_time_of_a_tally_begins_with_it():
    now = [5.0]
    stats = SplitStats("a" * 64, "b" * 64, lambda: now[0])
    now[0] = 7.5
    assert stats.elapsed_s == 2.5
