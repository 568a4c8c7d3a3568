"""Selection of canary callers, and counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resnet50_server.errors import InvalidRequest
from resnet50_server.rollout.split import (
    WINDOW,
    Comparison,
    Output,
    RecentValues,
    Split,
    SplitStats,
)

KEYS = [f"user-{number}" for number in range(100_000)]


def canaries(percent: float, keys=KEYS, variant: str = "V1", candidate: str = "V2") -> set[str]:
    split = Split(variant, candidate, canary_percent=percent)
    return {key for key in keys if split.is_canary(key)}


@pytest.mark.parametrize("percent", [0.01, 0.5, 5.0, 37.21, 99.99])
def test_share_of_callers_is_what_was_asked_for(percent):
    share = percent / 100
    spread = math.sqrt(len(KEYS) * share * (1 - share))
    assert abs(len(canaries(percent)) - len(KEYS) * share) < 4 * spread


def test_none_and_all_are_none_and_all():
    some = KEYS[:2000]
    split = Split("V1", "V2", canary_percent=0.0, shadow_percent=1.0)
    assert not any(split.is_canary(key) for key in some)
    assert canaries(100.0, some) == set(some)


def test_who_is_among_few_is_among_more():
    smaller: set[str] = set()
    for percent in (0.01, 1.0, 5.0, 20.0, 20.01, 100.0):
        larger = canaries(percent, KEYS[:20_000])
        assert smaller < larger
        smaller = larger


def test_another_split_picks_other_callers():
    some = KEYS[:20_000]
    one = canaries(50.0, some)
    for names in (("V1", "fine-tune"), ("V2", "V1")):
        both = one & canaries(50.0, some, *names)
        assert abs(len(both) - len(some) / 4) < 4 * math.sqrt(len(some) * 3 / 16)


def test_routing_hash_is_stable_across_releases():
    keys = ["ada", "grace", "token:cameras", "address:10.0.0.7", "caméra", *KEYS[:15]]
    assert canaries(30.0, keys) == {
        *("caméra", "token:cameras", "user-0", "user-2", "user-8", "user-9", "user-13")
    }


def test_split_of_nonsense_is_refused():
    for field, values in {
        "canary_percent": (-0.01, 100.01, math.nan, math.inf, 0.005, 12.345),
        "shadow_percent": (-1.0, 101.0, math.nan),
    }.items():
        for value in values:
            with pytest.raises(InvalidRequest, match=rf"split\.{field}: is "):
                Split("V1", "V2", **{field: value})
    with pytest.raises(InvalidRequest, match="nothing would be compared"):
        Split("V1", "V2")
    with pytest.raises(InvalidRequest, match=r"split\.candidate: is V1, as the variant"):
        Split("V1", "V1", canary_percent=5.0)
    for steps in range(10_001):  # none is refused for how floats are stored
        Split("V1", "V2", canary_percent=steps / 100, shadow_percent=1.0)


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
