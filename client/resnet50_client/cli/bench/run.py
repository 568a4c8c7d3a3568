"""One load against a server, from the first call to the figures."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Sequence

from resnet50.v1 import image_pb2

from ...profile import Profile
from .calls import CLEAR_TEXT, calls_of
from .cost import OwnCost, ProcessTree
from .load import Generator
from .plan import Plan
from .record import Record
from .result import GeneratorCost, Run
from .statistics import Summary, curve, histogram, summary

TICK_S = 0.01
# Above it, this process may be what is slow: the rest of a core is what its bursts need.
BUSY_SHARE = 0.8
# Of the p99 latency: a larger part than this would not be the server's.
LATE_SHARE = 0.2
LATE_MS = 1.0


def measure(
    plan: Plan,
    images: Sequence[image_pb2.Image],
    stop: threading.Event | None = None,
    watch: Callable[[Record], None] | None = None,
    access: Profile = CLEAR_TEXT,
) -> Run:
    """Make the load of a plan, and say what became of it; blocks until it is over.

    Args:
        plan: What to do.
        images: What to send.
        stop: Ends it before its time, once set; what is under way is waited for.
        watch: Is given the record at the start, for whoever wants to look on.
        access: Says how servers are spoken to; its addresses and deadline are the plan's.

    Raises:
        ValueError: An address or `server_pid` is wrong.
    """
    # epoll rounds timeouts up to whole milliseconds, so calls would be up to one late; select()
    # does not, and there are but two files to look at: gRPC polls its sockets by itself.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        return loop.run_until_complete(measuring(plan, images, stop, watch, access))
    finally:
        _cancel_what_is_left(loop)
        loop.close()


def _cancel_what_is_left(loop: asyncio.AbstractEventLoop) -> None:
    """After an interruption: end what still runs, so that nothing complains of it."""
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
    watch: Callable[[Record], None] | None = None,
    access: Profile = CLEAR_TEXT,
) -> Run:
    """Do as `measure`, within a running event loop, whose other work then counts as this one's."""
    clock = asyncio.get_running_loop().time
    tree = ProcessTree(plan.server_pid) if plan.server_pid is not None else None
    try:
        async with calls_of(plan, images, access) as call:
            record = Record(clock(), plan.warm_up_s, plan.duration_s, plan.timeout_s, plan.requests)
            if watch is not None:
                watch(record)
            generator = Generator(plan, call, record)
            observer = _Observer(record, generator, tree, stop or threading.Event())
            observing = asyncio.create_task(observer.observe(), name="bench observer")
            await generator.run()
            await generator.drain()
            record.close(clock())  # if it had enough before its time
            observer.over()
            await observing
    finally:
        if tree is not None:
            tree.close()
    return _run(plan, record, observer.own, tree, observer.stopped)


class _Observer:
    """Looks on while load is made: costs, the loop's lag, and whether it is to stop.

    Args:
        record: Says when measuring begins and ends.
        generator: Is stopped.
        tree: The server's processes, if they are looked at.
        stop: Stops it, once set.
    """

    def __init__(
        self,
        record: Record,
        generator: Generator,
        tree: ProcessTree | None,
        stop: threading.Event,
    ) -> None:
        self.own = OwnCost()
        self.stopped = False
        self._record = record
        self._generator = generator
        self._costs: list[OwnCost | ProcessTree] = [self.own] if tree is None else [self.own, tree]
        self._stop = stop
        self._begun = self._ended = self._over = False

    def over(self) -> None:
        """Say that the last call has ended."""
        self._end()
        self._over = True

    async def observe(self) -> None:
        """Look on until `over`."""
        clock = asyncio.get_running_loop().time
        while not self._over:
            now = clock()
            if not self._begun and now >= self._record.counts_from:
                self._begun = True
                for cost in self._costs:
                    cost.begin()
            if now >= self._record.ends:
                self._end()
            planned = now + TICK_S
            if not self._begun:
                planned = min(planned, self._record.counts_from)
            await asyncio.sleep(planned - now)
            if self._begun and not self._ended:
                self.own.loop_lag_ms.append((clock() - planned) * 1e3)
            if self._stop.is_set() and not self.stopped:
                self.stopped = True
                self._record.close(clock())
                self._generator.stop()

    def _end(self) -> None:
        """Stop counting costs; what comes later is only waited for."""
        if self._begun and not self._ended:
            self._ended = True
            for cost in self._costs:
                cost.end()


def _run(
    plan: Plan, record: Record, own: OwnCost, tree: ProcessTree | None, interrupted: bool
) -> Run:
    duration_s = record.duration_s
    throughput = record.answered / duration_s if duration_s else 0.0
    pairs = zip(record.latency_ms, record.total_ms, strict=True)
    generator = GeneratorCost(own.cpu_share, summary(own.loop_lag_ms), summary(record.late_ms))
    latency_ms = summary(record.latency_ms)
    batches = sum(count / max(1, size) for size, count in record.batch_sizes.items())
    return Run(
        load=plan.load,
        duration_s=duration_s,
        interrupted=interrupted,
        calls=record.calls,
        offered_per_s=record.calls / duration_s if duration_s else 0.0,
        throughput_per_s=throughput,
        goodput_per_s=record.on_time / duration_s if duration_s else 0.0,
        good_share=record.good / record.calls if record.calls else 0.0,
        errors=record.errors,
        dropped=record.dropped,
        latency_ms=latency_ms,
        latency_curve=curve(record.latency_ms),
        latency_histogram=histogram(record.latency_ms),
        stages_ms={
            "decode": summary(record.decode_ms),
            "queue": summary(record.queue_ms),
            "compute": summary(record.compute_ms),
            "server": summary(record.total_ms),
            "outside": summary([max(0.0, latency - total) for latency, total in pairs]),
        },
        batch_sizes=dict(sorted(record.batch_sizes.items())),
        mean_batch_size=len(record.latency_ms) / batches if batches else None,
        generator=generator,
        server=tree.cost(throughput) if tree is not None else None,
        warnings=doubts(generator, latency_ms),
    )


def doubts(generator: GeneratorCost, latency_ms: Summary) -> list[str]:
    """Say where the load generator may be what was measured."""
    found = []
    if generator.cpu_share > BUSY_SHARE:
        found.append(
            f"the load generator used {generator.cpu_share:.0%} of a core and may be the"
            " bottleneck: make the load from several processes or another machine"
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
