"""Two network devices between which each packet takes its own time, and so overtakes others.

Like `tc netem`, for kernels without it: python -m benchmarks.delay_bridge NEAR FAR DELAY_MS
JITTER_MS makes two TUN devices and carries packets between them until it is told to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time

TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LONGEST_PACKET = 65536
# More would be a queue that no network has.
_MOST_PACKETS = 20_000
# Read before those that are due are passed on, which wait meanwhile.
_MOST_AT_ONCE = 64


class DelayBridge:
    """The bridge as a process; a context manager, within which its devices are there.

    Args:
        near: Name of the one device.
        far: Of the other.
        delay_ms: How long a packet takes.
        jitter_ms: How much longer or shorter each one may.

    Attributes:
        carried: Packets, once it has ended.
        overtaken: How many of them one that came later has overtaken.
    """

    def __init__(self, near: str, far: str, delay_ms: float, jitter_ms: float) -> None:
        self.carried = self.overtaken = 0
        self._command = [
            sys.executable,
            "-m",
            "benchmarks.delay_bridge",
            near,
            far,
            str(delay_ms),
            str(jitter_ms),
        ]

    def __enter__(self) -> DelayBridge:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None  # a pipe, as asked for
        if self._process.stdout.readline() != "ready\n":
            self._process.wait()
            raise RuntimeError(f"no TUN devices can be made: {TUN} has to be there, and open to us")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        said, _stderr = self._process.communicate(timeout=60)
        self.carried, self.overtaken = map(int, said.split())


def device(name: str) -> int:
    """Make a TUN device, which is there until its file is closed; return the file."""
    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return file


def carry(near: int, far: int, delay_s: float, jitter_s: float) -> tuple[int, int]:
    """Carry packets until SIGTERM; return how many, and how many of them were overtaken."""
    ended, wakes = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    print("ready", flush=True)
    numbers = itertools.count()
    carried = overtaken = 0
    newest = {near: -1, far: -1}
    under_way: list[tuple[float, int, int, bytes]] = []
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, *_ = select.select([near, far, ended], [], [], wait_s)
        if ended in readable:
            return carried, overtaken
        for file in readable:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_MOST_AT_ONCE):
                    packet = os.read(file, _LONGEST_PACKET)
                    due = time.monotonic() + delay_s + random.uniform(-jitter_s, jitter_s)
                    if len(under_way) < _MOST_PACKETS:
                        out = far if file == near else near
                        heapq.heappush(under_way, (due, next(numbers), out, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, number, file, packet = heapq.heappop(under_way)
            # A device that is down, or whose queue is full, loses it, as networks do.
            with contextlib.suppress(OSError):
                os.write(file, packet)
            carried += 1
            overtaken += number < newest[file]
            newest[file] = max(newest[file], number)


if __name__ == "__main__":
    sums = carry(device(sys.argv[1]), device(sys.argv[2]), *(float(n) / 1000 for n in sys.argv[3:]))
    print(*sums)
