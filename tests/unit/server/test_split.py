"""Selection of canary callers."""

from __future__ import annotations

import math

import pytest

from resnet50_server.errors import InvalidRequest
from resnet50_server.rollout.split import Split

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
