"""A process that makes a part of a benchmark's calls; `processes` is the other end.

The parent sends the plan of a run; the worker connects and sends `Ready`; the parent sends the time
of the start, the same for all workers, in `time.monotonic`; the worker sends its progress, and at
the end its recording, or the exception that ended the run.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from resnet50.v1 import image_pb2
from resnet50_client._profiles import Profile

from .plan import Plan
from .recorder import Progress
from .recording import Recording
from .runner import record, run_to_end

PROGRESS_S = 0.5


@dataclass(frozen=True)
class Ready:
    """The worker is connected and waits for the start."""


@dataclass(frozen=True)
class Start:
    """Start of the load, in `time.monotonic` seconds."""

    time_s: float


@dataclass(frozen=True)
class Stop:
    """End the run early."""


@dataclass
class _Run:
    """A run that the parent has requested."""

    plan: Plan
    start: Future[float] = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)


def work(connection: Connection, serialized: Sequence[bytes], access: Profile) -> None:
    """Record runs until the parent ends.

    Args:
        connection: Connection to the parent.
        serialized: The images to send, serialized.
        access: Connection options; addresses and timeout are the plans'.
    """
    # A terminal sends these to all its processes; the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    images = [image_pb2.Image.FromString(one) for one in serialized]
    runs: queue.SimpleQueue[_Run] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, runs), daemon=True).start()
    while True:
        run = runs.get()
        try:
            recording = run_to_end(_record(run, images, access, connection))
        except Exception as error:
            connection.send(error)
        else:
            connection.send(recording)


def _receive(connection: Connection, runs: queue.SimpleQueue[_Run]) -> None:
    """Receive the parent's messages; end this process if the parent has ended."""
    run: _Run | None = None
    try:
        while True:
            message = connection.recv()
            if isinstance(message, Plan):
                run = _Run(message)
                runs.put(run)
            elif isinstance(message, Start) and run is not None:
                run.start.set_result(message.time_s)
            elif isinstance(message, Stop) and run is not None:
                run.stop.set()
    except (EOFError, OSError):
        # Nothing is left to finish, and calls in flight must not delay the end.
        os._exit(0)


async def _record(
    run: _Run, images: Sequence[image_pb2.Image], access: Profile, connection: Connection
) -> Recording:
    async def start() -> float:
        connection.send(Ready())
        time_s = await asyncio.wrap_future(run.start)
        # Event loops have the clock of `time.monotonic`.
        await asyncio.sleep(max(0.0, time_s - time.monotonic()))
        return time_s

    reporting: list[asyncio.Task[None]] = []

    def on_start(progress: Callable[[], Progress]) -> None:
        reporting.append(asyncio.create_task(_report(progress, connection), name="bench progress"))

    try:
        return await record(run.plan, images, run.stop, on_start, access, start=start)
    finally:
        for task in reporting:
            task.cancel()


async def _report(progress: Callable[[], Progress], connection: Connection) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        connection.send(progress())
