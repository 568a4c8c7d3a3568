"""What stands somewhere in the server and is read for each scrape: queues, threads, variants.

A scrape comes on a thread of its own, and all of this belongs to the event loop, so it is read
there, in one turn. If the loop does not answer, a scrape goes without.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from resnet50_server.events import CompositeEvents
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.decode_pool import DecodePool
from resnet50_server.inference.response_cache import CacheStats, ResponseCache
from resnet50_server.lifecycle.devices import Devices
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import Traffic
from resnet50_server.runtime.loop import LoopTimeout, call_on_loop

from .logs import lines_dropped
from .metrics import ANSWERED, Metrics

log = logging.getLogger(__name__)

# How long a scrape waits for the event loop. Prometheus itself waits for 10 s.
READ_TIMEOUT_S = 2.0
FAILED = "failed"
# So often is it looked how late the loop wakes.
LAG_EVERY_S = 0.1


class Readings(Collector):
    """Reads the parts of a server; made on its running event loop.

    Args:
        metrics: Where else is counted who gave up; shows zeros for variants that are loaded later.
        admission: How much is inside.
        decode_pool: What decodes.
        variants: What is served.
        devices: What computes.
        traffic: What is compared.
        ready: Whether the server takes images.
        observers: Whose errors are counted.
        cache: Keeps answers, if anything does.
    """

    def __init__(
        self,
        metrics: Metrics,
        admission: Admission,
        decode_pool: DecodePool,
        variants: VariantRegistry,
        devices: Devices,
        traffic: Traffic,
        ready: Callable[[], bool],
        observers: CompositeEvents,
        cache: ResponseCache | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._admission = admission
        self._decode_pool = decode_pool
        self._variants = variants
        self._devices = devices
        self._traffic = traffic
        self._ready = ready
        self._observers = observers
        self._cache = cache
        variants.on_loaded(lambda name: metrics.expect([name]))
        variants.on_removed(metrics.forget)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not compare names with others'."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return what is read now."""
        try:
            return call_on_loop(self._loop, lambda: list(self._read()), READ_TIMEOUT_S)
        except LoopTimeout as error:
            log.warning("gauges missing from this scrape: %s", error)
            return ()

    def _read(self) -> Iterator[Metric]:
        yield _gauge("resnet50_ready", "1 if the server takes images, else 0.", self._ready())
        admission, pool = self._admission, self._decode_pool
        yield _gauge(
            "resnet50_inside_requests",
            "Images and frames between admission and answer.",
            admission.requests,
        )
        yield _gauge("resnet50_inside_bytes", "Their encoded lengths.", admission.bytes)
        yield _gauge("resnet50_open_streams", "Streams that are open.", admission.streams)
        yield _gauge(
            "resnet50_decode_queue_calls", "Calls that wait for a decode thread.", pool.waiting
        )
        yield _gauge("resnet50_decode_threads_busy", "Decode threads that run a call.", pool.busy)
        yield _gauge(
            "resnet50_decode_threads_stuck",
            "Decode threads that an image has held for longer than decode_timeout_s.",
            pool.stuck,
        )
        yield self._busy()
        yield self._cancelled()
        yield CounterMetricFamily(
            "resnet50_log_lines_dropped",
            "Lines of the log that were dropped, because nobody took those before them.",
            value=lines_dropped(),
        )
        yield self._telemetry_errors()
        yield from self._of_variants()
        yield from self._of_splits()
        if self._cache is not None:
            yield from self._of_cache(self._cache)

    def _busy(self) -> Metric:
        busy = CounterMetricFamily(
            "resnet50_engine_busy_seconds",
            "How long a device has computed batches that have ended; 1 a second is all it can.",
            labels=["device"],
        )
        for device, scheduler in self._devices.schedulers.items():
            busy.add_metric([device], scheduler.busy_s)
        return busy

    def _of_variants(self) -> Iterator[Metric]:
        images = _family("resnet50_queue_images", "Images that wait for a batch.")
        age = _family(
            "resnet50_queue_age_seconds", "How long the first of them has waited; 0 without any."
        )
        alpha = _family("resnet50_batch_latency_alpha_seconds", "What a batch costs, as learned.")
        beta = _family(
            "resnet50_batch_latency_beta_seconds", "What each image of a batch costs, as learned."
        )
        limit = _family(
            "resnet50_batch_size_limit",
            "How many images a batch may hold; less than asked for while memory is short.",
        )
        healthy = _family(
            "resnet50_variant_healthy", "1 if a loaded variant is in service, 0 if it is not."
        )
        info = GaugeMetricFamily(
            "resnet50_variant_info",
            "1 for each variant that is loaded.",
            labels=["variant", "digest", "engine", "device", "precision", "default"],
        )
        for spec in self._variants.specs:
            held = self._variants.loaded_variant(spec)
            if held is None:
                continue
            queue, name, built = held.queue, [spec.name], held.built
            images.add_metric(name, len(queue.waiting))
            waited_s = self._loop.time() - queue.oldest() if len(queue.waiting) else 0.0
            age.add_metric(name, waited_s)
            limit.add_metric(name, queue.limit.now(self._loop.time()))
            healthy.add_metric(name, float(queue.health.problem is None))
            if queue.latency.known:
                alpha.add_metric(name, queue.latency.alpha_s)
                beta.add_metric(name, queue.latency.beta_s)
            default = str(spec is self._variants.default).lower()
            info.add_metric(
                [*name, built.digest, built.kind, built.device, built.precision, default], 1.0
            )
        yield from (images, age, alpha, beta, limit, healthy, info)

    def _of_splits(self) -> Iterator[Metric]:
        """Give what was counted of the splits that are listed, so that no other has a series."""
        names = ["variant", "candidate"]
        answers = CounterMetricFamily(
            "resnet50_split_answers",
            "Requests and frames for a variant with a traffic split, by who took them.",
            labels=[*names, "side", "outcome"],
        )
        shadows = CounterMetricFamily(
            "resnet50_split_shadows",
            "Images that the variant answered and the candidate was to compute as well.",
            labels=[*names, "outcome"],
        )
        agreed = CounterMetricFamily(
            "resnet50_split_agreed",
            "Images on whose first category both agree.",
            labels=names,
        )
        cosines = CounterMetricFamily(
            "resnet50_split_cosines",
            "Sum of the cosines of their embeddings, none of whose numbers is negative.",
            labels=names,
        )
        ended = GaugeMetricFamily(
            "resnet50_split_ended",
            "1 for a split that the server has ended by itself, 0 for one that holds.",
            labels=names,
        )
        for trial in self._traffic.trials:
            tally, pair = trial.tally, [trial.split.variant, trial.split.candidate]
            for side, share in (
                ("variant", tally.variant_answers),
                ("candidate", tally.candidate_answers),
            ):
                answers.add_metric([*pair, side, ANSWERED], share.answered)
                answers.add_metric([*pair, side, FAILED], share.failed)
            shadows.add_metric([*pair, "compared"], tally.comparison.images)
            shadows.add_metric([*pair, "skipped"], tally.skipped)
            shadows.add_metric([*pair, FAILED], tally.failed)
            agreed.add_metric(pair, tally.comparison.agreed)
            cosines.add_metric(pair, tally.comparison.cosines)
            ended.add_metric(pair, float(bool(trial.ended)))
        yield from (answers, shadows, agreed, cosines, ended)

    def _of_cache(self, cache: ResponseCache) -> Iterator[Metric]:
        lookups = CounterMetricFamily(
            "resnet50_cache_lookups",
            "Images looked for in the response cache, by what came of it.",
            labels=["variant", "outcome"],
        )
        loaded = {spec.name: CacheStats() for spec in self._variants.specs}
        for name, of in (loaded | cache.stats).items():
            lookups.add_metric([name, "hit"], of.hits)
            lookups.add_metric([name, "shared"], of.shared)
            lookups.add_metric([name, "miss"], of.misses)
        yield lookups
        yield CounterMetricFamily(
            "resnet50_cache_evictions",
            "Answers that were dropped to make room for others.",
            value=cache.evictions,
        )
        yield _gauge("resnet50_cache_answers", "Answers that are kept.", len(cache))
        yield _gauge("resnet50_cache_bytes", "How much memory they take.", cache.memory_bytes)

    def _cancelled(self) -> Metric:
        given_up = [one.cancelled for one in self._devices.schedulers.values()]
        cancelled = CounterMetricFamily(
            "resnet50_cancelled",
            "Images and frames whose callers gave up, by where they were.",
            labels=["stage"],
        )
        for stage, count in (
            *self._metrics.gave_up_at.items(),
            ("decode", self._decode_pool.cancelled),
            ("queue", sum(one.waiting for one in given_up)),
            ("batch", sum(one.computing for one in given_up)),
        ):
            cancelled.add_metric([stage], count)
        return cancelled

    def _telemetry_errors(self) -> Metric:
        errors = CounterMetricFamily(
            "resnet50_telemetry_errors",
            "Events that an observer (metrics, traces, request log, traffic splits) failed on.",
            labels=["observer"],
        )
        for observer, count in self._observers.errors.items():
            errors.add_metric([observer], count)
        return errors


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["variant"])


class LagWatch:
    """Looks how late the event loop wakes; made, and closed, on it.

    Args:
        lag: Takes it, in seconds.
    """

    def __init__(self, lag: Histogram) -> None:
        self._lag = lag
        self._loop = asyncio.get_running_loop()
        self._plan()

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _plan(self) -> None:
        self._due = self._loop.time() + LAG_EVERY_S
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._lag.observe(max(0.0, self._loop.time() - self._due))
        self._plan()
