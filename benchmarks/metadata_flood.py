"""Metadata that is not UTF-8: python -m benchmarks.metadata_flood [--write].

One connection makes 300 calls a second, each with 450 metadata pairs whose value is the byte 255;
HPACK packs a pair into a byte, and no token is needed for it. A normal client makes 20 calls a
second meanwhile, one after the other, and its answers are counted: without the flood, with the same
flood in ASCII, with the flood. The calls go to inference and to health checks in turn.

With --write, the figures go into docs/benchmarks/reliability.md; `make metadata-flood` does that.
"""

from __future__ import annotations

import argparse
import io
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks import page
from benchmarks.process import DECODING, cpu_s, server
from resnet50_client import Client, Resnet50Error, RetryPolicy

PATHS = (b"/resnet50.v1.InferenceService/Classify", b"/grpc.health.v1.Health/Check")
PAIRS, CALLS_PER_S = 450, 300
PACE_S, TIMEOUT_S = 0.05, 2.0
# Frame types and flags, RFC 9113.
HEADERS, SETTINGS = 1, 4
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class Flood:
    """Makes calls on a connection of its own, in raw HTTP/2, until it is closed.

    Args:
        address: The server's, HOST:PORT.
        value: Of each pair; at most 126 bytes.
        pairs: How many a call has.
        calls_per_s: How many calls it makes a second.
        more: Further header fields, in HPACK.
    """

    def __init__(
        self,
        address: str,
        value: bytes,
        pairs: int = PAIRS,
        calls_per_s: float = CALLS_PER_S,
        more: bytes = b"",
    ) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
        self._value, self._pairs, self._calls_per_s = value, pairs, calls_per_s
        self._more = more
        self._closed = threading.Event()
        self.calls = 0
        self._threads = [threading.Thread(target=one) for one in (self._send, self._read)]
        for one in self._threads:
            one.start()

    def close(self) -> None:
        """End it."""
        self._closed.set()
        self._threads[0].join()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._threads[1].join()
        self._socket.close()

    def _send(self) -> None:
        due = time.monotonic()
        while not self._closed.wait(max(0.0, due - time.monotonic())):
            path = PATHS[self.calls % len(PATHS)]
            # The first pair enters the table, as entry 62; the others are that one again.
            first = literal(0x40, b"a", self._value) if self.calls == 0 else b"\xbe"
            block = (
                b"\x83\x86"  # :method POST, :scheme http
                + (b"\x04" + text(path))
                + (b"\x01" + text(b"localhost"))
                + literal(0, b"content-type", b"application/grpc")
                + literal(0, b"te", b"trailers")
                + self._more
                + (first + b"\xbe" * (self._pairs - 1))
            )
            number = 2 * self.calls + 1
            try:
                self._socket.sendall(frame(HEADERS, END_STREAM | END_HEADERS, number, block))
            except OSError:  # the server has closed the connection
                return
            self.calls += 1
            due += 1 / self._calls_per_s

    def _read(self) -> None:
        """Take what is answered, and throw it away."""
        acknowledged = False
        while True:
            try:
                if not self._socket.recv(1 << 16):
                    return
                if not acknowledged:
                    acknowledged = True
                    self._socket.sendall(frame(SETTINGS, ACK, 0, b""))
            except OSError:
                return


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(kind: int, name: bytes, value: bytes) -> bytes:
    """Return a header field in HPACK, its name spelled out."""
    return bytes([kind]) + text(name) + text(value)


def text(value: bytes) -> bytes:
    """Return a string in HPACK, not compressed."""
    assert len(value) < 127
    return bytes([len(value)]) + value


@dataclass(frozen=True)
class Answers:
    """Answers to a normal client.

    Attributes:
        answered: How many calls were answered.
        failed: How many were not.
        p99_s: The 99th percentile of how long they took, in seconds.
        cores: CPU time of the server, in processors.
    """

    answered: int
    failed: int
    p99_s: float
    cores: float

    def __str__(self) -> str:
        return (
            f"{self.answered} answers, {self.failed} failures, p99 {self.p99_s * 1e3:.0f} ms,"
            f" server {self.cores:.2f} cores"
        )


def call(client: Client, pid: int, seconds: float) -> Answers:
    """Call for some time, `PACE_S` from the start of one call to the next if it is answered."""
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG")
    image, failed, took = file.getvalue(), 0, []
    began, before = time.monotonic(), cpu_s(pid)
    while (started := time.monotonic()) < began + seconds:
        try:
            client.classify(image)
            took.append(time.monotonic() - started)
        except Resnet50Error:
            failed += 1
        time.sleep(max(0.0, started + PACE_S - time.monotonic()))
    cores = (cpu_s(pid) - before) / (time.monotonic() - began)
    p99_s = statistics.quantiles(took, n=100)[98] if len(took) > 1 else float("inf")
    return Answers(len(took), failed, p99_s, cores)


@contextmanager
def flooded(address: str, value: bytes | None) -> Iterator[None]:
    """Flood a server meanwhile; with None leave it alone."""
    if value is None:
        yield
        return
    flood = Flood(address, value)
    try:
        yield
    finally:
        flood.close()


def trial(seconds: float, turns: int) -> Iterator[str]:
    """Run it, in interleaved turns; return the outcome."""
    kinds = {"quiet": None, "ASCII": b"x", "not UTF-8": b"\xff"}
    counted: dict[str, list[Answers]] = {name: [] for name in kinds}
    with server(*DECODING) as (address, pid):
        retry = RetryPolicy(attempts=1)
        with Client(address, timeout_s=TIMEOUT_S, retry=retry) as client:
            call(client, pid, 1.0)
            for _ in range(turns):
                for name, value in kinds.items():
                    with flooded(address, value):
                        counted[name].append(call(client, pid, seconds))
    for name, answers in counted.items():
        middle = sorted(answers, key=lambda one: one.answered)[len(answers) // 2]
        yield f"{name}: {middle}"
    shares = {
        name: statistics.median(
            flood.answered / other.answered
            for flood, other in zip(counted["not UTF-8"], counted[name], strict=True)
        )
        for name in ("quiet", "ASCII")
    }
    yield (
        f"answers under the flood ÷ quiet: {shares['quiet']:.2f} (goal: ≥ 0.80);"
        f" ÷ the same flood in ASCII: {shares['ASCII']:.2f}"
    )


def main() -> int:
    """Print the outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn; default 8")
    parser.add_argument("--turns", type=int, default=3, help="of each kind; default 3")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments = parser.parse_args()
    written = page.report(trial(arguments.seconds, arguments.turns), "The clients share the cores.")
    if arguments.write:
        page.write("metadata-flood", written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
