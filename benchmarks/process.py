"""A server as a process, and what it uses (Linux)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# An engine that takes no time.
DECODING = ("--engine", "timed", "--timed-alpha-ms", "0", "--timed-beta-ms", "0")
PROGRAM = [sys.executable, "-m", "resnet50_server", "serve"]
SERVER = [*PROGRAM, "--listen", "127.0.0.1:0"]


@contextmanager
def server(*arguments: str, checkout: Path | None = None) -> Iterator[tuple[str, int]]:
    """Run a server; give its address and process id.

    Args:
        *arguments: Of `serve`.
        checkout: Root of the tree whose server it is; None for the installed one.
    """
    if "--variants" not in arguments:
        arguments = ("--variants", "IMAGENET1K_V2", *arguments)
    command = [*SERVER, "--log-level", "error", *arguments]
    path = {} if checkout is None else {"PYTHONPATH": str(checkout / "server")}
    with listening(command, os.environ | path) as address_and_pid:
        yield address_and_pid


@contextmanager
def listening(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """Run a command whose first line ends with its address; give that and its process id."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None  # a pipe, as asked for
    try:
        yield process.stdout.readline().split()[-1], process.pid
    finally:
        process.terminate()
        process.wait()


class ServerProcess:
    """A server whose log is kept, and which may be killed and started again.

    Args:
        *arguments: Of `serve`, where it listens included.
        log: File that its log is added to.
        within: Prefix of its command, such as another network namespace.

    Attributes:
        pid: Its process id.
        address: Where it listens.
        metrics_url: Where its metrics are; empty without `--metrics-listen`.
        log: The file.
    """

    def __init__(self, *arguments: str, log: Path, within: Sequence[str] = ()) -> None:
        self.log = log
        self.address = self.metrics_url = ""
        self._metrics = "--metrics-listen" in arguments
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [*within, *PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        """Return once it answers.

        Raises:
            RuntimeError: It has ended instead; says what it logged.
        """
        self.address = self._printed("listening on ")
        if self._metrics:
            self.metrics_url = self._printed("metrics on ")

    @property
    def alive(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._close()

    def stop(self, timeout_s: float = 60.0) -> int:
        """End it as a supervisor does; return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(timeout_s)
        finally:
            self.kill()
        return status

    def said_last(self, length: int = 4000) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-length:]

    def _printed(self, what: str) -> str:
        assert self._process.stdout is not None  # a pipe, as asked for
        line = self._process.stdout.readline()
        if not line.startswith(what):
            raise RuntimeError(f"the server does not say {what!r} but {line!r}: {self.said_last()}")
        return line.removeprefix(what).strip()

    def _close(self) -> None:
        self._process.wait()
        assert self._process.stdout is not None  # a pipe, as asked for
        self._process.stdout.close()


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    # The CPU-time clock of another process, of nanoseconds where /proc counts in 10 ms; its number
    # is made as clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | 2)


def resident_kib(pid: int) -> int:
    """Return the memory that a process holds, in KiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def open_files(pid: int) -> int:
    """Return how many files and connections a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
