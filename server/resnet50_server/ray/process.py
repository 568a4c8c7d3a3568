"""A server as a child process: its addresses, its last lines, its end."""

from __future__ import annotations

import asyncio
import collections
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import suppress

LISTENING, METRICS, COMPLAINT = "listening on ", "metrics on ", "resnet50-server: "
# Lines of stderr that are kept for errors.
LAST_LINES = 10
LINE_LIMIT_BYTES = 2**20
# After SIGTERM and the drain.
KILL_GRACE_S = 10.0
# Time limit of reading the rest of stderr: another process may have inherited it.
STDERR_END_S = 2.0


class ServerEnded(Exception):
    """A server could not start, or has ended; the text has its exit code and its last lines."""


class ServerProcess:
    """`resnet50-server serve` as a child process, which stops when this process ends.

    Args:
        flags: Its flags.
        host: Host to listen on.
        port: Port; 0 for a free one.
        socket: Path of a Unix socket to listen on as well.

    Attributes:
        address: Its host:port; "" before it has started.
        metrics_url: URL of its metrics; "" before it has started.
    """

    def __init__(self, flags: list[str], host: str, port: int, socket: str) -> None:
        bracketed = f"[{host}]" if ":" in host else host
        self._command = [
            *(sys.executable, "-m", "resnet50_server", "serve", *flags, "--stop-with-stdin"),
            *(f"--listen={bracketed}:{port}", f"--listen=unix:{socket}"),
        ]
        self._process: Process | None = None
        self._last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._reading: list[asyncio.Task[None]] = []
        self.address = ""
        self.metrics_url = ""

    @property
    def pid(self) -> int:
        """Process ID; 0 before it has started."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, and wait until it has loaded its variants.

        Raises:
            ServerEnded: It has ended instead, or the node cannot start a process.
        """
        self._last_lines.clear()
        self.address = self.metrics_url = ""
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=LINE_LIMIT_BYTES
            )
        except OSError as error:  # e.g. too many processes or open files
            raise ServerEnded(f"resnet50-server serve cannot be started: {error}") from error
        ready = asyncio.Event()
        self._reading = [
            asyncio.create_task(self._read_stdout(process, ready)),
            asyncio.create_task(self._read_stderr(process)),
        ]
        ended = asyncio.create_task(process.wait())
        started = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait((ended, started), return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
            if not ready.is_set():
                # Also if the caller was cancelled.
                with suppress(ProcessLookupError):
                    process.terminate()
            ended.cancel()
        if not ready.is_set():
            raise ServerEnded(await self.wait())

    async def wait(self) -> str:
        """Wait until it ends; return its exit code and last lines as one line."""
        assert self._process is not None  # it was started
        code = await self._process.wait()
        await asyncio.wait(self._reading, timeout=STDERR_END_S)
        for task in self._reading:
            task.cancel()
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        # Lines for people name the reason; others precede it.
        said = [one for one in self._last_lines if one.startswith(COMPLAINT)]
        lines = " | ".join(said or self._last_lines)
        return f"resnet50-server serve ended with {ended}: {lines or 'its log is empty'}"

    async def stop(self, timeout_s: float) -> None:
        """Stop it: it completes the calls in flight, and refuses others.

        Args:
            timeout_s: It is killed after this time in seconds.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), timeout_s)
        except asyncio.TimeoutError:  # the built-in one only from Python 3.11 on
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _read_stdout(self, process: Process, ready: asyncio.Event) -> None:
        """Read the addresses that it prints once it is ready; the metrics' is the last line."""
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            if line.startswith(LISTENING) and "unix:" not in line:
                self.address = line.removeprefix(LISTENING)
            elif line.startswith(METRICS):
                self.metrics_url = line.removeprefix(METRICS)
                ready.set()

    async def _read_stderr(self, process: Process) -> None:
        """Pass its log on, and keep the last lines."""
        assert process.stderr is not None
        async for line in _lines(process.stderr):
            self._last_lines.append(line.strip())
            sys.stderr.write(f"{line}\n")


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Read a pipe to its end; of a line above `LINE_LIMIT_BYTES` only the rest is returned."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # too long: read on, or the pipe fills and the server waits
            continue
        if not line:
            return
        yield line.decode("utf-8", "replace").rstrip("\n")
