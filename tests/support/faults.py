"""Real faults: a full disk, another time of day, a line that is cut or goes silent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any


def on_small_disks(command: list[str], *folders: Path, size: str) -> list[str]:
    """Return what runs a command that sees a small file system of its own in each of some folders.

    It goes with the command; `seen_by` leads into it. Needs no rights: the command is root in a
    namespace of its own.
    """
    mounts = [f"mount -t tmpfs -o size={size} small {shlex.quote(str(one))}" for one in folders]
    return ["unshare", "-rm", "sh", "-ec", "; ".join([*mounts, 'exec "$@"']), "sh", *command]


def seen_by(process: subprocess.Popen, path: Path) -> Path:
    """Return where `path` lies as a process sees it."""
    return Path(f"/proc/{process.pid}/root{path}")


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Lose root's right to read everything, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# The time of day of a process under it is ahead by the seconds in a file; the
# clock that never jumps stays as it is, and so do the times of files, which the kernel writes.
JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *ahead_s;

__attribute__((constructor)) static void map(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    ahead_s = mmap(0, sizeof *ahead_s, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (ahead_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *ahead_s;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out) *out = exact.tv_sec;
    return exact.tv_sec;
}
"""


class JumpingClock:
    """The time of day of processes that are started with `environment`.

    Args:
        folder: Where its files go.
    """

    def __init__(self, folder: Path) -> None:
        source, library = folder / "clock.c", folder / "clock.so"
        self._ahead = folder / "ahead"
        self.jump(0)
        source.write_text(JUMPING_CLOCK)
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60
        )
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(self._ahead)}

    def jump(self, ahead_s: int) -> None:
        """Set the clock so far ahead of the real one, or behind it."""
        with self._ahead.open("r+b" if self._ahead.exists() else "wb") as file:
            file.write(struct.pack("q", ahead_s))


class Line:
    """A TCP line to a server that can be cut, or go silent as a broken proxy does.

    Attributes:
        address: Where clients connect to.
        sent: Bytes that clients have sent through it.
        cut_at: Cut it once so many have been; None: do not.
        connections: How many there have been.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.address = ""
        self.sent = 0
        self.cut_at: int | None = None
        self.connections = 0

    def cut(self) -> None:
        """Reset every connection, both ways."""
        for task in self._tasks:
            task.cancel()
        for one in self._open:
            # Nothing lingers: data in transit is lost, and both ends are sent an RST.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        self._open.clear()

    def silence(self) -> None:
        """Take whatever comes and pass nothing on, neither bytes nor ends."""
        self._flows.clear()

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            self.connections += 1
            self._open.add(client)
            self._start(self._join(client))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, client: socket.socket) -> None:
        server = socket.socket()
        self._open.add(server)
        for one in (client, server):
            one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(server, self._target)
        self._start(self._pass(client, server, True))
        self._start(self._pass(server, client, False))

    async def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 65536):
                if up:
                    self.sent += len(data)
                    if self.cut_at is not None and self.sent >= self.cut_at:
                        self.cut_at = None
                        self.cut()
                        return
                if self._flows.is_set():
                    await loop.sock_sendall(sink, data)
            await self._flows.wait()
            sink.shutdown(socket.SHUT_WR)


@contextlib.asynccontextmanager
async def line_to(address: str) -> AsyncIterator[Line]:
    """Open a line to a server of this or another process."""
    line = Line(address)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        line.address = f"127.0.0.1:{listener.getsockname()[1]}"
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, line.accept, listener)
        try:
            yield line
        finally:
            loop.remove_reader(listener)
            line.cut()
