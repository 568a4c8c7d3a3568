"""Run one load against a server and compute the results."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

from resnet50.v1 import image_pb2
from resnet50_client._profiles import Profile

from .calls import PLAINTEXT, calls_of
from .load_generator import Generator
from .plan import Plan
from .recorder import Progress, Recorder
from .recording import Recording, run_of, throughput_per_s
from .resource_usage import GeneratorMeter, ProcessTreeMeter
from .run import Run

TICK_S = 0.01

OnStart: TypeAlias = Callable[[Callable[[], Progress]], None]
"""Called at the start of a run with a function that returns its progress, from any thread."""

Result = TypeVar("Result")


def measure(
    plan: Plan,
    images: Sequence[image_pb2.Image],
    stop: threading.Event | None = None,
    on_start: OnStart | None = None,
    access: Profile = PLAINTEXT,
) -> Run:
    """Run the load of a plan in this process and return the results; blocks until it is complete.

    Args:
        plan: The benchmark.
        images: The images to send.
        stop: Ends the run early when set, after calls in flight complete.
        on_start: See `OnStart`.
        access: Connection options; addresses and timeout are the plan's.

    Raises:
        ValueError: An address or `server_pid` is invalid, or the plan needs several processes.
    """
    if plan.processes != 1:
        raise ValueError(f"processes: is {plan.processes}, must be 1 in this process")
    return run_to_end(measuring(plan, images, stop, on_start, access))


def run_to_end(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in an event loop with precise timers, and cancel the tasks that it leaves."""
    # epoll rounds timeouts up to whole milliseconds, which would delay calls. select() does not,
    # and suffices for two file descriptors, because gRPC polls its sockets by itself.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        return loop.run_until_complete(coroutine)
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
    on_start: OnStart | None = None,
    access: Profile = PLAINTEXT,
) -> Run:
    """As `measure`, within a running event loop, whose other work counts as the generator's."""
    tree = ProcessTreeMeter(plan.server_pid) if plan.server_pid is not None else None
    try:
        recording = await record(plan, images, stop, on_start, access, tree)
    finally:
        if tree is not None:
            tree.close()
    server = tree.usage(throughput_per_s([recording])) if tree is not None else None
    return run_of(plan, [recording], server)


async def record(
    plan: Plan,
    images: Sequence[image_pb2.Image],
    stop: threading.Event | None = None,
    on_start: OnStart | None = None,
    access: Profile = PLAINTEXT,
    tree: ProcessTreeMeter | None = None,
    start: Callable[[], Awaitable[float]] | None = None,
) -> Recording:
    """Make the calls of a plan and record them; arguments as of `measure`, and two more.

    Args:
        plan: The benchmark.
        images: The images to send.
        stop: Ends the run early when set, after calls in flight complete.
        on_start: See `OnStart`.
        access: Connection options; addresses and timeout are the plan's.
        tree: Measures the server's processes during the measured time.
        start: Called when all is prepared; waits for the start of the load and returns it, in loop
            time. Default: the load starts at once.
    """
    clock = asyncio.get_running_loop().time
    async with calls_of(plan, images, access) as call:
        starts = await start() if start is not None else clock()
        recorder = Recorder(starts, plan.warm_up_s, plan.duration_s, plan.timeout_s, plan.requests)
        if on_start is not None:
            on_start(recorder.progress)
        generator = Generator(plan, call, recorder)
        observer = _Observer(recorder, generator, tree, stop or threading.Event())
        observing = asyncio.create_task(observer.observe(), name="bench observer")
        try:
            await generator.run()
            await generator.drain()
            recorder.close(clock())  # if it reached `requests` early
        finally:
            observer.over()
            await observing
    return recorder.recording(observer.own, observer.stopped)


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
