"""Real servers: in this process on port 0, or as a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from resnet50_server.batching.queue import VariantQueue
from resnet50_server.context import RequestContext
from resnet50_server.engines.base import Engine
from resnet50_server.events import ServerEvents
from resnet50_server.server import Server
from resnet50_server.settings import Settings
from tests.support import processes
from tests.support.processes import ForkedProcess

Value = TypeVar("Value")

# An engine that takes no time.
DECODING = {"engine": "timed", "timed_alpha_ms": 0.0, "timed_beta_ms": 0.0}

# A condition that tests wait for holds within a second; a loaded machine takes longer.
UNTIL_S = 60.0


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    """Run a server in this event loop; by default the null engine behind one variant."""
    defaults: dict[str, Any] = {
        "listen": ["127.0.0.1:0"],
        "variants": ["IMAGENET1K_V2"],
        "engine": "null",
        "drain_timeout_s": 5.0,
    }
    server = Server(Settings(**defaults | settings))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        yield channel


def queues_of(server: Server) -> list[VariantQueue]:
    """Return the queues of a server's variants."""
    return [
        queue
        for scheduler in server.parts.devices.schedulers.values()
        for queue in scheduler.queues
    ]


class _Calls(ServerEvents):
    """Keeps the calls that a server gets."""

    def __init__(self) -> None:
        self.seen: list[RequestContext] = []

    def call_started(self, call: RequestContext) -> None:
        self.seen.append(call)


def watched(server: Server) -> list[RequestContext]:
    """Return the list to which the calls that a server gets from now on are added."""
    calls = _Calls()
    server.parts.events.add(calls)
    return calls.seen


def engines_of(server: Server) -> list[Engine]:
    """Return a server's engines: patch these, not their class, whose other instances may still
    compute what a stopped server has left behind."""
    return [queue.engine for queue in queues_of(server)]


def computed(server: Server) -> list[list[NDArray[np.uint8]]]:
    """Return the list to which the images of each batch are added from now on."""
    (engine,) = engines_of(server)
    run = engine.run
    batches: list[list[NDArray[np.uint8]]] = []

    def record(images: list[NDArray[np.uint8]], *arguments: Any) -> Any:
        batches.append([np.array(image) for image in images])
        return run(images, *arguments)

    setattr(engine, "run", record)  # noqa: B010
    return batches


def gate(server: Server) -> threading.Event:
    """Make the engine wait for an event before each batch."""
    (engine,) = engines_of(server)
    run, opened = engine.run, threading.Event()

    def wait(*arguments: Any) -> Any:
        opened.wait(60)
        return run(*arguments)

    setattr(engine, "run", wait)  # noqa: B010
    return opened


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fail within a minute, naming the condition, if it does not."""
    limit = time.monotonic() + UNTIL_S
    while not condition():
        if time.monotonic() > limit:
            code = getattr(condition, "__code__", None)
            where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
            raise AssertionError(f"did not happen within {UNTIL_S:g} s{where}")
        await asyncio.sleep(0.005)


async def until_result(
    ask: Callable[[], Awaitable[Value]], accepted: Callable[[Value], object]
) -> Value:
    """Call a function until its result is accepted, and return that; fail within a minute."""
    limit = time.monotonic() + UNTIL_S
    while not accepted(result := await ask()):
        assert time.monotonic() < limit, f"within {UNTIL_S:g} s: {result!r}"
        await asyncio.sleep(0.005)
    return result


class ServerProcess:
    """`resnet50-server serve` as a process; `address` is known once it is ready.

    It is a fork of one that has imported the server (`processes`).

    Args:
        arguments: Of the command.
        environment: Beside this process's own; starts a new interpreter, which reads all of it.
        fault: One of `faulty_server`.
    """

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        fault: str | None = None,
    ) -> None:
        serve = ["serve", "--listen", "127.0.0.1:0", *arguments]
        self.address = ""
        self.process: ForkedProcess | subprocess.Popen[str]
        if environment is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "resnet50_server", *serve],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | environment,
            )
        elif fault is not None:
            entry = "tests.support.faulty_server:main"
            self.process = processes.start("resnet50-server", fault, *serve, entry=entry)
        elif {"null", "timed"}.isdisjoint(arguments):
            self.process = processes.start("resnet50-server with torch", *serve)
        else:
            self.process = processes.start("resnet50-server", *serve)

    def wait_until_listening(self) -> str:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line + self.process.stderr.read()
        self.address = line.removeprefix("listening on ").strip()
        return self.address

    def wait_until_ended(self) -> tuple[int, str]:
        """Wait for its own end; return the exit code and what was written to stderr."""
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode is not None
        return self.process.returncode, errors

    def terminate(self) -> tuple[int, str]:
        """Send SIGTERM; return the exit code and what was written to stderr."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_until_ended()


@contextlib.contextmanager
def server_processes() -> Iterator[Callable[..., ServerProcess]]:
    """Start server processes that do not outlive the block."""
    started: list[ServerProcess] = []

    def start(*arguments: str, **options) -> ServerProcess:
        started.append(ServerProcess(*arguments, **options))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.process.kill()
            one.process.communicate()
