"""`resnet50 top`: rates between two scrapes, quantiles, and what several servers do total."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from resnet50_metrics.interval import Interval, quantile
from resnet50_metrics.scrape import Scrape, parse
from resnet50_metrics.server_metrics import ServerMetrics
from tests.support.exporting import Exported


def scraped(exported: Exported, time_s: float) -> Scrape:
    return Scrape(time_s, parse(generate_latest(exported.registry).decode()))


def metrics(before: Scrape | None, after: Scrape) -> ServerMetrics:
    return ServerMetrics.of(Interval.between(before, after), 1000.0)


def numbers(value: object) -> Iterator[float]:
    """Return every number in a metrics."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from numbers(one)
    elif hasattr(value, "__dict__"):
        yield from numbers(vars(value))


@pytest.fixture
def exported() -> Exported:
    found = Exported()
    found.load("IMAGENET1K_V2", default=True)
    found.answer("IMAGENET1K_V2", 1000)
    return found


def test_rates_are_of_the_time_between_two_scrapes(exported):
    before = scraped(exported, 10.0)
    exported.answer("IMAGENET1K_V2", 80, total_s=0.03, batch=8)
    exported.requests.labels("Embed", "IMAGENET1K_V2", "INTERNAL").inc(2)
    exported.shed.labels("max_queue_size").inc(6)
    exported.cancelled.labels("queue").inc(4)
    exported.busy.labels("cpu").inc(1.5)
    exported.cpu.inc(3.0)
    exported.queue_images.labels("IMAGENET1K_V2").set(7)
    exported.queue_age_s.labels("IMAGENET1K_V2").set(0.25)
    exported.alpha_s.labels("IMAGENET1K_V2").set(0.002)
    seen = metrics(before, scraped(exported, 12.0))
    assert (seen.images_per_s, seen.requests_per_s, seen.failed_per_s) == (40.0, 40.0, 1.0)
    assert (seen.refused_per_s, seen.cancelled_per_s) == ({"max_queue_size": 3.0}, {"queue": 2.0})
    assert (seen.busy, seen.cpu_cores, seen.ready) == ({"cpu": 0.75}, 1.5, True)
    (variant,) = seen.variants
    assert (variant.name, variant.default, variant.loaded) == ("IMAGENET1K_V2", True, True)
    assert variant.engines == ("onnxruntime cpu fp32",)
    assert (variant.batch_mean, variant.queue_images, variant.queue_age_ms) == (8.0, 7.0, 250.0)
    assert (variant.alpha_ms, variant.beta_ms) == (2.0, None)
    # All 30 ms are in the bucket from 10 to 50 ms; the 1000 of before do not count.
    assert variant.stages["total"].p50_ms == pytest.approx(30.0)
    assert variant.stages["total"].p99_ms == pytest.approx(49.6)
    classify, embed = seen.methods
    assert (classify.name, classify.per_s, embed.per_s) == (
        "Classify",
        {"OK": 40.0},
        {"INTERNAL": 1.0},
    )
    assert classify.latency.p50_ms == pytest.approx(30.0)


def test_the_first_scrape_gives_values_but_no_rates(exported):
    seen = metrics(None, scraped(exported, 10.0))
    assert (seen.images_per_s, seen.requests_per_s, seen.refused_per_s) == (None, None, None)
    assert (seen.ready, seen.queue_images, seen.variants[0].name) == (True, 0.0, "IMAGENET1K_V2")
    assert seen.variants[0].stages["total"].p50_ms is None


@pytest.mark.parametrize("started_s", [2000.0, None], ids=["by start time", "by counters"])
def test_a_restarted_server_has_no_rates_for_one_interval(started_s):
    first = Exported(started_s and started_s - 500.0)
    first.load("digits")
    first.answer("digits", 1000)
    before = scraped(first, 10.0)
    again = Exported(started_s)
    again.load("digits")
    again.answer("digits", 900)
    middle = scraped(again, 12.0)
    assert metrics(before, middle).images_per_s is None
    again.answer("digits", 20)
    assert metrics(middle, scraped(again, 14.0)).images_per_s == 10.0


def test_reset_counters_are_never_negative(exported):
    before = scraped(exported, 10.0)
    for family in (exported.images, exported.stages, exported.batch_size, exported.requests):
        family.clear()
    exported.load("IMAGENET1K_V2", default=True)
    exported.answer("IMAGENET1K_V2", 20)
    seen = metrics(before, scraped(exported, 12.0))
    assert seen.images_per_s == 10.0
    assert all(number >= 0 for number in numbers(seen))


def test_a_variant_that_appears_counts_from_zero(exported):
    before = scraped(exported, 10.0)
    exported.load("digits")
    exported.answer("digits", 6)
    seen = metrics(before, scraped(exported, 12.0))
    assert [one.name for one in seen.variants] == ["IMAGENET1K_V2", "digits"]
    assert seen.variants[1].images_per_s == 3.0


def test_what_a_scrape_left_out_does_not_come_back_as_a_burst(exported):
    """A server whose event loop is stuck leaves out what belongs to it."""
    exported.cancelled.labels("queue").inc(100_000)
    stuck = scraped(exported, 10.0)
    for name in ("resnet50_cancelled_total", "resnet50_ready", "resnet50_variant_info"):
        del stuck.series[name]
    without = metrics(scraped(exported, 8.0), stuck)
    assert (without.ready, without.cancelled_per_s) == (None, None)
    assert (without.variants[0].name, without.variants[0].loaded) == ("IMAGENET1K_V2", None)
    assert metrics(stuck, scraped(exported, 12.0)).cancelled_per_s is None


def test_a_server_that_exports_little_is_read_as_far_as_it_goes():
    seen = metrics(Scrape(1.0, {}), Scrape(2.0, parse("# TYPE resnet50_ready gauge\n")))
    assert list(numbers(seen)) in ([], [0])
    assert (seen.variants, seen.methods) == ((), ())


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 0.3), (0.25, 0.1), (0.1, 0.04), (0.99, 0.5), (0.75, 0.5)]
)
def test_quantiles_are_interpolated_as_prometheus_does(share, expected):
    assert quantile(share, {0.1: 10, 0.5: 30, math.inf: 40}) == pytest.approx(expected)


def test_quantiles_of_nothing_are_unknown():
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {0.1: 0.0, math.inf: 0.0}) is None
    assert quantile(0.5, {0.1: 0.0, 0.2: 0.0, math.inf: 5.0}) == 0.2


def two_servers() -> list[Interval]:
    found = []
    for images, alpha_s, ready in ((10, 0.002, 1), (30, 0.005, 0)):
        exported = Exported(started_s=images)
        exported.load("digits", digest=f"{images}" * 32)
        before = scraped(exported, 10.0)
        exported.answer("digits", images, total_s=0.02 if images == 10 else 0.2)
        exported.alpha_s.labels("digits").set(alpha_s)
        exported.queue_images.labels("digits").set(images)
        exported.queue_age_s.labels("digits").set(alpha_s)
        exported.ready.set(ready)
        exported.busy.labels("cpu").inc(alpha_s * 100)
        # Each its own interval: rates are added, not counts.
        found.append(Interval.between(before, scraped(exported, 10.0 + images / 10)))
    return found


def test_servers_are_summed_or_the_worst_is_shown():
    seen = ServerMetrics.of(Interval.total(two_servers()), 1000.0)
    (variant,) = seen.variants
    assert variant.images_per_s == pytest.approx(20.0)
    assert (variant.queue_images, variant.queue_age_ms, variant.alpha_ms) == (40.0, 5.0, 5.0)
    assert (seen.ready, seen.uptime_s) == (False, 970.0)
    assert len(variant.digests) == 2
    assert seen.busy is not None
    assert seen.busy["cpu"] == pytest.approx((0.2 / 1.0 + 0.5 / 3.0) / 2)
    # Half of them took 20 ms and half 200 ms: quantiles are of all, not a mean of means.
    assert variant.stages["total"].p50_ms == pytest.approx(50.0)
    assert variant.stages["total"].p99_ms == pytest.approx(492.0)


def histogram(buckets: dict[str, float]) -> Interval:
    return Interval(
        {"x_bucket": {frozenset({("le", le)}): rate for le, rate in buckets.items()}}, {}
    )


def test_histograms_of_servers_meet_on_the_bounds_that_both_have():
    one = histogram({"1.0": 1.0, "2.0": 3.0, "+Inf": 3.0})
    other = histogram({"2.0": 4.0, "5.0": 5.0, "+Inf": 5.0})
    assert Interval.total([one, other]).buckets("x") == {2.0: 7.0, math.inf: 8.0}


def test_server_without_rates_does_not_hide_others():
    first, second = two_servers()
    total = Interval.total([Interval({}, first.now), second])
    assert ServerMetrics.of(total, 1000.0).images_per_s == pytest.approx(10.0)
