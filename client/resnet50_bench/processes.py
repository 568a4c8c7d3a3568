"""Load from several processes: each makes a part of the calls; their recordings are joined."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from operator import add
from types import TracebackType
from typing import Any

from resnet50.v1 import image_pb2
from resnet50_client._profiles import Profile

from .calls import PLAINTEXT
from .plan import Plan
from .recorder import Progress
from .recording import Recording, run_of, throughput_per_s
from .resource_usage import ProcessTreeMeter
from .run import Run
from .runner import OnStart
from .worker import Ready, Start, Stop, work

# From the message with the start of the load to the start.
START_DELAY_S = 0.1
POLL_S = 0.01
END_TIMEOUT_S = 5.0


class LoadProcesses:
    """Processes that make the calls of runs together; a context manager that ends them.

    Args:
        count: Number of processes.
        images: The images to send, the same for each process, which begins elsewhere in them.
        access: Connection options; addresses and timeout are the plans'.
    """

    def __init__(
        self, count: int, images: Sequence[image_pb2.Image], access: Profile = PLAINTEXT
    ) -> None:
        serialized = [one.SerializeToString() for one in images]
        context = multiprocessing.get_context("spawn")  # a fork would inherit gRPC's threads
        self._workers: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._progress = [Progress()] * count
        try:
            with _signals_blocked():
                for number in range(count):
                    first = number * len(serialized) // count
                    ours, theirs = context.Pipe()
                    self._connections.append(ours)
                    worker = context.Process(
                        target=work,
                        args=(theirs, serialized[first:] + serialized[:first], access),
                        name=f"load generator {number + 1}",
                        daemon=True,
                    )
                    worker.start()
                    theirs.close()
                    self._workers.append(worker)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LoadProcesses:
        """Return the processes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes."""
        self.close()

    def close(self) -> None:
        """End the processes, and cancel their calls."""
        for connection in self._connections:
            connection.close()
        for worker in self._workers:
            worker.join(END_TIMEOUT_S)
            if worker.is_alive():
                worker.kill()
                worker.join()

    def measure(
        self, plan: Plan, stop: threading.Event | None = None, on_start: OnStart | None = None
    ) -> Run:
        """Run the load of a plan and return the results of all processes; blocks.

        Args:
            plan: The benchmark, for as many processes.
            stop: Ends the run early when set, after calls in flight complete.
            on_start: See `OnStart`.

        Raises:
            ValueError: An address or `server_pid` is invalid.
            ChildProcessError: A process has ended.
        """
        stop = stop or threading.Event()
        tree = ProcessTreeMeter(plan.server_pid) if plan.server_pid is not None else None
        try:
            recordings = self._record(plan, stop, on_start, tree)
        finally:
            if tree is not None:
                tree.close()
        server = tree.usage(throughput_per_s(recordings)) if tree is not None else None
        return run_of(plan, recordings, server)

    def _record(
        self,
        plan: Plan,
        stop: threading.Event,
        on_start: OnStart | None,
        tree: ProcessTreeMeter | None,
    ) -> list[Recording]:
        count = len(self._workers)
        self._progress = [Progress()] * count
        for number in range(count):
            self._send(number, plan.part(number))
        waiting = set(range(count))
        while waiting:
            for number, _ in self._receive(waiting, Ready):
                waiting.discard(number)
        starts = time.monotonic() + START_DELAY_S
        for number in range(count):
            self._send(number, Start(starts))
        if on_start is not None:
            on_start(self._total_progress)
        measuring = _Measuring(tree, starts + plan.warm_up_s, plan.duration_s)
        recordings: dict[int, Recording] = {}
        waiting, stopped = set(range(count)), False
        while waiting:
            for number, recording in self._receive(waiting, Recording):
                recordings[number] = recording
                waiting.discard(number)
            measuring.update()
            if stop.is_set() and not stopped:
                stopped = True
                measuring.end()
                for number in waiting:
                    self._send(number, Stop())
        measuring.end()
        return [recordings[number] for number in range(count)]

    def _receive(self, waiting: set[int], kind: type[Any]) -> list[tuple[int, Any]]:
        """Return the messages of a kind that have arrived, with the numbers of their workers."""
        numbers = {id(self._connections[number]): number for number in waiting}
        received = []
        for connection in wait([self._connections[number] for number in waiting], POLL_S):
            number = numbers[id(connection)]
            try:
                message = self._connections[number].recv()
            except (EOFError, OSError) as error:
                raise self._ended(number) from error
            if isinstance(message, Exception):
                raise message
            if isinstance(message, Progress):
                self._progress[number] = message
            elif isinstance(message, kind):
                received.append((number, message))
        return received

    def _send(self, number: int, message: object) -> None:
        try:
            self._connections[number].send(message)
        except OSError as error:
            raise self._ended(number) from error

    def _ended(self, number: int) -> ChildProcessError:
        worker = self._workers[number]
        worker.join(END_TIMEOUT_S)
        return ChildProcessError(
            f"{worker.name} of {len(self._workers)} has ended with status {worker.exitcode};"
            " if it was killed for memory, use fewer images or processes"
        )

    def _total_progress(self) -> Progress:
        return reduce(add, self._progress)


class _Measuring:
    """Measures a server's processes during the measured time of a run.

    Args:
        tree: The server's processes; None to measure nothing.
        starts: Start of the measured time, in `time.monotonic` seconds.
        duration_s: Its duration in seconds.
    """

    def __init__(self, tree: ProcessTreeMeter | None, starts: float, duration_s: float) -> None:
        self._tree = tree
        self._starts = starts
        self._ends = starts + duration_s
        self._started = self._ended = False

    def update(self) -> None:
        """Begin or end measuring if it is time."""
        now = time.monotonic()
        if now >= self._starts and not self._started:
            self._started = True
            if self._tree is not None:
                self._tree.begin()
        if now >= self._ends:
            self.end()

    def end(self) -> None:
        """End measuring, if it has begun."""
        if self._started and not self._ended:
            self._ended = True
            if self._tree is not None:
                self._tree.end()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM; processes started meanwhile inherit that."""
    if sys.platform == "win32":
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Its start unblocks signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
