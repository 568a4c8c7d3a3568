"""A server as a process, and what it uses (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# An engine that takes no time but wants its images decoded; the null engine wants none.
DECODING = ("--engine", "timed", "--timed-alpha-ms", "0", "--timed-beta-ms", "0")
SERVER = [sys.executable, "-m", "resnet50_server", "serve", "--listen", "127.0.0.1:0"]


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, int]]:
    """Run a server; give its address and process id."""
    if "--variants" not in arguments:
        arguments = ("--variants", "IMAGENET1K_V2", *arguments)
    command = [*SERVER, "--log-level", "error", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # a pipe, as asked for
    try:
        yield process.stdout.readline().split()[-1], process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    # The CPU-time clock of another process, of nanoseconds where /proc counts in 10 ms; its number
    # is made as clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | 2)


def resident_kib(pid: int) -> int:
    """Return the memory that a process holds, in KiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
