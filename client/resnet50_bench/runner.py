"""Run one load against a server and compute the results."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Sequence

from resnet50.v1 import image_pb2
from resnet50_client._profiles import Profile

from .calls import PLAINTEXT, calls_of
from .load_generator import Generator
from .plan import Plan
from .recorder import Recorder
from .resource_usage import GeneratorMeter, ProcessTreeMeter
from .result import GeneratorUsage, Run
from .statistics import Summary, curve, histogram, summary

TICK_S = 0.01
# Above this, the load generator may be the bottleneck: its bursts need the rest of a core.
BUSY_SHARE = 0.8
# Maximum fraction of the p99 latency that the load generator may cause.
LATE_SHARE = 0.2
LATE_MS = 1.0


def measure(
    plan: Plan,
    images: Sequence[image_pb2.Image],
    stop: threading.Event | None = None,
    on_start: Callable[[Recorder], None] | None = None,
    access: Profile = PLAINTEXT,
) -> Run:
    """Run the load of a plan and return the results; blocks until it is complete.

    Args:
        plan: The benchmark.
        images: The images to send.
        stop: Ends the run early when set, after calls in flight complete.
        on_start: Called with the recorder at the start.
        access: Connection options; addresses and timeout are the plan's.

    Raises:
        ValueError: An address or `server_pid` is invalid.
    """
    # epoll rounds timeouts up to whole milliseconds, which would delay calls. select() does not,
    # and suffices for two file descriptors, because gRPC polls its sockets by itself.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        return loop.run_until_complete(measuring(plan, images, stop, on_start, access))
    finally:
        _cancel_remaining(loop)
        loop.close()


def _cancel_remaining(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that an interruption left, so that asyncio does not warn about them."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())


async def measuring(
    plan: Plan,
    images: Sequence[image_pb2.Image],
    stop: threading.Event | None = None,
    on_start: Callable[[Recorder], None] | None = None,
    access: Profile = PLAINTEXT,
) -> Run:
    """As `measure`, within a running event loop, whose other work counts as the generator's."""
    clock = asyncio.get_running_loop().time
    tree = ProcessTreeMeter(plan.server_pid) if plan.server_pid is not None else None
    try:
        async with calls_of(plan, images, access) as call:
            recorder = Recorder(
                clock(), plan.warm_up_s, plan.duration_s, plan.timeout_s, plan.requests
            )
            if on_start is not None:
                on_start(recorder)
            generator = Generator(plan, call, recorder)
            observer = _Observer(recorder, generator, tree, stop or threading.Event())
            observing = asyncio.create_task(observer.observe(), name="bench observer")
            await generator.run()
            await generator.drain()
            recorder.close(clock())  # if it reached `requests` early
            observer.over()
            await observing
    finally:
        if tree is not None:
            tree.close()
    return _run(plan, recorder, observer.own, tree, observer.stopped)


class _Observer:
    """Measures resource usage and the loop's lag during a run, and stops it on request.

    Args:
        recorder: Defines when measuring begins and ends.
        generator: The load generator to stop.
        tree: The server's processes, if measured.
        stop: Stops the load generator when set.
    """

    def __init__(
        self,
        recorder: Recorder,
        generator: Generator,
        tree: ProcessTreeMeter | None,
        stop: threading.Event,
    ) -> None:
        self.own = GeneratorMeter()
        self.stopped = False
        self._recorder = recorder
        self._generator = generator
        self._costs: list[GeneratorMeter | ProcessTreeMeter] = (
            [self.own] if tree is None else [self.own, tree]
        )
        self._stop = stop
        self._started = self._ended = self._over = False

    def over(self) -> None:
        """End observation after the last call."""
        self._end()
        self._over = True

    async def observe(self) -> None:
        """Observe until `over` is called."""
        clock = asyncio.get_running_loop().time
        while not self._over:
            now = clock()
            if not self._started and now >= self._recorder.counts_from:
                self._started = True
                for cost in self._costs:
                    cost.begin()
            if now >= self._recorder.ends:
                self._end()
            planned = now + TICK_S
            if not self._started:
                planned = min(planned, self._recorder.counts_from)
            await asyncio.sleep(planned - now)
            if self._started and not self._ended:
                self.own.loop_lag_ms.append((clock() - planned) * 1e3)
            if self._stop.is_set() and not self.stopped:
                self.stopped = True
                self._recorder.close(clock())
                self._generator.stop()

    def _end(self) -> None:
        """Stop measuring; calls that are still in flight are only waited for."""
        if self._started and not self._ended:
            self._ended = True
            for cost in self._costs:
                cost.end()


def _run(
    plan: Plan,
    recorder: Recorder,
    own: GeneratorMeter,
    tree: ProcessTreeMeter | None,
    interrupted: bool,
) -> Run:
    duration_s = recorder.duration_s
    throughput = recorder.answered / duration_s if duration_s else 0.0
    pairs = zip(recorder.latency_ms, recorder.total_ms, strict=True)
    generator = GeneratorUsage(own.cpu_share, summary(own.loop_lag_ms), summary(recorder.late_ms))
    latency_ms = summary(recorder.latency_ms)
    batches = sum(count / max(1, size) for size, count in recorder.batch_sizes.items())
    return Run(
        load=plan.load,
        duration_s=duration_s,
        interrupted=interrupted,
        calls=recorder.calls,
        offered_per_s=recorder.calls / duration_s if duration_s else 0.0,
        throughput_per_s=throughput,
        goodput_per_s=recorder.on_time / duration_s if duration_s else 0.0,
        good_share=recorder.good / recorder.calls if recorder.calls else 0.0,
        errors=recorder.errors,
        dropped=recorder.dropped,
        latency_ms=latency_ms,
        latency_curve=curve(recorder.latency_ms),
        latency_histogram=histogram(recorder.latency_ms),
        stages_ms={
            "decode": summary(recorder.decode_ms),
            "queue": summary(recorder.queue_ms),
            "compute": summary(recorder.compute_ms),
            "server": summary(recorder.total_ms),
            "outside": summary([max(0.0, latency - total) for latency, total in pairs]),
        },
        batch_sizes=dict(sorted(recorder.batch_sizes.items())),
        mean_batch_size=len(recorder.latency_ms) / batches if batches else None,
        generator=generator,
        server=tree.usage(throughput) if tree is not None else None,
        warnings=measurement_warnings(generator, latency_ms),
    )


def measurement_warnings(generator: GeneratorUsage, latency_ms: Summary) -> list[str]:
    """Return warnings if the load generator may be the bottleneck."""
    found = []
    if generator.cpu_share > BUSY_SHARE:
        found.append(
            f"the load generator used {generator.cpu_share:.0%} of a core and may be the"
            " bottleneck: generate the load from several processes or another machine"
        )
    for name, late in (
        ("calls were made", generator.late_ms.p99),
        ("the load generator's event loop was", generator.loop_lag_ms.p99),
    ):
        if late is None or latency_ms.p99 is None or late < LATE_MS:
            continue
        if late > LATE_SHARE * latency_ms.p99:
            found.append(
                f"{name} {late:.1f} ms late at p99, a large part of the p99 latency of"
                f" {latency_ms.p99:.1f} ms: give the load generator a core of its own"
            )
    return found
