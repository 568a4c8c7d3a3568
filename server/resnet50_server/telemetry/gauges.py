"""Gauges computed at scrape time: queue lengths, busy threads, loaded variants."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from resnet50_server.runtime.loop import LoopTimeout, call_on_loop

from .logs import lines_dropped
from .snapshot import (
    CacheSnapshot,
    ServerSnapshot,
    SplitSnapshot,
    VariantsFileSnapshot,
    VariantSnapshot,
)

log = logging.getLogger(__name__)

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)

# How long a scrape waits for the event loop. Prometheus itself waits for 10 s.
READ_TIMEOUT_S = 2.0

_SERVER: Sequence[tuple[str, str, Callable[[ServerSnapshot], float]]] = (
    ("resnet50_ready", "1 while /readyz returns 200, else 0.", lambda s: s.ready),
    (
        "resnet50_in_flight_requests",
        "Images and frames between admission and response (max_requests).",
        lambda s: s.requests,
    ),
    (
        "resnet50_in_flight_bytes",
        "Encoded size of the images and frames in flight (max_request_bytes).",
        lambda s: s.bytes,
    ),
    ("resnet50_open_streams", "Open streams of frames (max_streams).", lambda s: s.streams),
    (
        "resnet50_decode_queue_calls",
        "Calls that wait for a decode thread.",
        lambda s: s.decode_waiting,
    ),
    (
        "resnet50_decode_threads_busy",
        "Decode threads that run a call.",
        lambda s: s.decode_busy,
    ),
    (
        "resnet50_decode_threads_stuck",
        "Decode threads whose image exceeds decode_timeout_s; they are replaced, up to a limit.",
        lambda s: s.decode_stuck,
    ),
)
_VARIANT: Sequence[tuple[str, str, Callable[[VariantSnapshot], float | None]]] = (
    ("resnet50_queue_images", "Images that wait for a batch.", lambda v: v.pending),
    (
        "resnet50_queue_age_seconds",
        "Wait of the oldest image in the queue; 0 if it is empty. Grows if the engine hangs.",
        lambda v: v.oldest_wait_s,
    ),
    (
        "resnet50_batch_latency_alpha_seconds",
        "Learned duration of a batch of b images, alpha + beta * b: seconds per batch.",
        lambda v: v.latency_s and v.latency_s[0],
    ),
    (
        "resnet50_batch_latency_beta_seconds",
        "Learned duration of a batch: seconds per image.",
        lambda v: v.latency_s and v.latency_s[1],
    ),
    (
        "resnet50_batch_size_limit",
        "Maximum images in a batch: max_batch_size, or less for half a minute after a batch did not"
        " fit into device memory.",
        lambda v: v.batch_size_limit,
    ),
    (
        "resnet50_variant_healthy",
        "1 while a loaded variant is in service, 0 while its requests are rejected.",
        lambda v: v.healthy,
    ),
)


class GaugeCollector(Collector):
    """Exports a snapshot of the server; constructed on its running event loop.

    Args:
        snapshot: Returns the current state; called on the event loop. If the loop does not run it
            within `READ_TIMEOUT_S`, the scrape goes without these gauges.
    """

    def __init__(self, snapshot: Callable[[], ServerSnapshot]) -> None:
        self._loop = asyncio.get_running_loop()
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not check names for duplicates."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the families of this moment; runs on the scraper's thread."""
        try:
            state = call_on_loop(self._loop, self._snapshot, READ_TIMEOUT_S)
        except LoopTimeout as error:
            log.warning("gauges missing from this scrape: %s", error)
            return ()
        return (
            *_of_server(state),
            *_of_variants(state.variants),
            *_of_splits(state.splits),
            *(() if state.cache is None else _of_cache(state.cache)),
            *(() if state.variants_file is None else _of_variants_file(state.variants_file)),
        )


def _of_server(state: ServerSnapshot) -> Iterator[Metric]:
    for name, text, value in _SERVER:
        yield GaugeMetricFamily(name, text, value=value(state))
    yield CounterMetricFamily(
        "resnet50_log_lines_dropped",
        "Log lines dropped because the reader of the log had stopped and 4 MiB were pending.",
        value=lines_dropped(),
    )
    for name, text, label, counts in (
        (
            "resnet50_engine_busy_seconds",
            "Compute time of a device, added when a batch ends; the rate is its utilization.",
            "device",
            state.busy_s,
        ),
        (
            "resnet50_cancelled",
            "Images and frames cancelled by their clients, by stage.",
            "stage",
            state.cancelled,
        ),
        (
            "resnet50_telemetry_errors",
            "Events that a listener failed to record; its data is incomplete, and the log has the"
            " error.",
            "observer",
            state.listener_errors,
        ),
    ):
        family = CounterMetricFamily(name, text, labels=[label])
        yield _filled(family, (([key], count) for key, count in counts.items()))


def _of_variants(variants: Sequence[VariantSnapshot]) -> Iterator[Metric]:
    for name, text, value in _VARIANT:
        values = (([one.name], value(one)) for one in variants)
        yield _filled(GaugeMetricFamily(name, text, labels=["variant"]), values)
    info = GaugeMetricFamily(
        "resnet50_variant_info",
        "1 for each loaded variant.",
        labels=["variant", "digest", "engine", "device", "precision", "default"],
    )
    for one in variants:
        default = str(one.default).lower()
        info.add_metric([one.name, one.digest, one.engine, one.device, one.precision, default], 1.0)
    yield info


def _of_splits(splits: Sequence[SplitSnapshot]) -> Iterator[Metric]:
    pair = ["variant", "candidate"]
    answers = CounterMetricFamily(
        "resnet50_split_answers",
        "Requests and frames for a variant with a traffic split, by side and outcome.",
        labels=[*pair, "side", "outcome"],
    )
    shadows = CounterMetricFamily(
        "resnet50_split_shadows",
        "Images answered by the variant and selected for the candidate too, by outcome.",
        labels=[*pair, "outcome"],
    )
    agreed = CounterMetricFamily(
        "resnet50_split_agreed",
        "Compared images whose first category has the same label.",
        labels=pair,
    )
    cosines = CounterMetricFamily(
        "resnet50_split_cosines",
        "Sum of the cosines of compared embeddings, which are never negative.",
        labels=pair,
    )
    ended = GaugeMetricFamily(
        "resnet50_split_ended",
        "1 once the server has ended a split, until it is deleted or set again; otherwise 0.",
        labels=pair,
    )
    for one in splits:
        names = [one.variant, one.candidate]
        _filled(answers, (([*names, *key], count) for key, count in one.answers.items()))
        _filled(shadows, (([*names, key], count) for key, count in one.shadows.items()))
        agreed.add_metric(names, one.agreed)
        cosines.add_metric(names, one.cosines)
        ended.add_metric(names, float(one.ended))
    yield from (answers, shadows, agreed, cosines, ended)


def _of_cache(cache: CacheSnapshot) -> Iterator[Metric]:
    yield _filled(
        CounterMetricFamily(
            "resnet50_cache_lookups",
            "Lookups in the response cache by outcome: hit, miss, or shared (coalesced).",
            labels=["variant", "outcome"],
        ),
        ((list(key), count) for key, count in cache.lookups.items()),
    )
    yield CounterMetricFamily(
        "resnet50_cache_evictions",
        "Results evicted from the response cache to make room.",
        value=cache.evictions,
    )
    yield GaugeMetricFamily(
        "resnet50_cache_entries", "Results in the response cache.", value=cache.entries
    )
    yield GaugeMetricFamily(
        "resnet50_cache_bytes",
        "Memory of the response cache (response_cache_bytes).",
        value=cache.bytes,
    )


def _of_variants_file(file: VariantsFileSnapshot) -> Iterator[Metric]:
    yield _filled(
        GaugeMetricFamily(
            "resnet50_variants_file_info",
            "1 for the active revision of the variants file: the SHA-256 of that content.",
            labels=["revision"],
        ),
        [([file.revision], 1.0)],
    )
    yield _filled(
        CounterMetricFamily(
            "resnet50_variants_file_changes",
            "Changes of the variants file by outcome: applied or refused.",
            labels=["outcome"],
        ),
        (([key], count) for key, count in (("applied", file.applied), ("refused", file.refused))),
    )
    yield GaugeMetricFamily(
        "resnet50_variants_file_refused",
        "1 while the content of the variants file is refused and an earlier one is active, else 0.",
        value=float(bool(file.problem)),
    )
    yield GaugeMetricFamily(
        "resnet50_variants_file_differences",
        "Differences between the server and the active revision, as by administrators' changes.",
        value=len(file.differences),
    )


def _filled(family: Family, samples: Iterable[tuple[list[str], float | None]]) -> Family:
    """Add the samples that have a value."""
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, float(value))
    return family
