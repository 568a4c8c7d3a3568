"""Servers that are killed under load: python -m benchmarks.kills [--kills 12] [--write].

Two server processes behind the SDK's round robin. One of them gets SIGKILL every 10 s and is
started again at once, in turn; one that is not back by then is waited for; both clients make single
calls, uploads, lists and ordered streams meanwhile, and each answer is compared with plain torch's.
The exit code is 1 if a call failed or was answered wrongly, or a frame of a stream was not
answered exactly once and in its turn.

With --write, what is printed goes into docs/benchmarks/reliability.md; `make kills` does that.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import page
from benchmarks.expected import Expected, large_pictures, make, pictures
from benchmarks.frames import many, stream
from benchmarks.ledger import CANCELLED, LOST, REFUSED, RIGHT, WRONG, Ledger
from benchmarks.load import KINDS, Callers, Load, Shape, unary, upload
from benchmarks.process import ServerProcess
from benchmarks.timeline import Timeline
from resnet50_client import CallObserver, ObservedCall, Resnet50Error

NAME = "mine"
SHAPES: dict[str, Shape] = {
    "single call": unary,
    "upload": upload,
    "list": functools.partial(many, broken=0.0),
    "ordered stream": functools.partial(stream, broken=0.0, count=(20, 120)),
}


class Retries(CallObserver):
    """Counts attempts that the SDK retried; those of gRPC itself do not show."""

    def __init__(self) -> None:
        self.count = 0

    def call_retried(self, call: ObservedCall, error: Resnet50Error, pause_s: float) -> None:
        """Count one."""
        self.count += 1


@dataclass
class Outcome:
    """Outcome of the trial.

    Attributes:
        ledger: Outcomes of the calls.
        retries: Retries of the SDK.
        back_s: How long each server took to be back, in seconds.
        late: How many of them were not back when the next kill was due.
        seconds: How long it all took.
    """

    ledger: Ledger
    retries: Retries = field(default_factory=Retries)
    back_s: list[float] = field(default_factory=list)
    late: int = 0
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """Say it."""
        ledger, kills = self.ledger, len(self.back_s)
        failed = ledger.count(LOST) + ledger.count(WRONG)
        unaccounted = ledger.begun - sum(
            ledger.count(how) for how in (RIGHT, REFUSED, CANCELLED, WRONG, LOST)
        )
        yield (
            f"two servers, one killed by SIGKILL {kills} times in {self.seconds:.0f} s, in turn:"
            f" {ledger.begun} images, {ledger.count(RIGHT)} answered rightly,"
            f" {ledger.count(WRONG)} wrongly, {ledger.count(LOST)} lost;"
            f" {failed} failed, {unaccounted} unaccounted for"
        )
        shapes = ", ".join(f"{ledger.count(RIGHT, name)} of {name}" for name in ledger.shapes())
        yield f"of these {shapes}; frames exactly once and in order"
        yield (
            f"the SDK made {self.retries.count} attempts again, besides those that gRPC makes by"
            f" itself; the longest call took {ledger.longest_s():.1f} s (frames: from their source"
            f" to their answer); a server was back after {statistics.median(self.back_s):.1f} s"
            f" ({min(self.back_s):.1f} to {max(self.back_s):.1f}), {self.late} times after the"
            " next kill was due"
        )


def free_addresses(count: int) -> list[str]:
    """Return addresses without a listener."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]


async def trial(
    folder: Path, kills: int, every_s: float, flags: list[str], few: int | None = None
) -> Outcome:
    """Run it.

    Args:
        folder: Where its files go.
        kills: How many.
        every_s: Between them, in seconds.
        flags: Of the servers.
        few: How many of the pictures are shown; None for all.
    """
    checkpoint = make("A", folder / "A")
    shown, large = pictures()[:few], large_pictures()[:few]
    expected = await asyncio.to_thread(Expected, [checkpoint], [*shown, *large])
    outcome = Outcome(Ledger())
    timeline = Timeline()
    timeline.starts("", NAME)
    timeline.starts(NAME, checkpoint.digest)
    addresses = free_addresses(2)
    options = {"observers": [outcome.retries]}
    ledger = outcome.ledger
    load = Load(addresses, expected, shown, large, timeline, ledger, ("", NAME), options)
    servers: list[ServerProcess] = []

    def start(number: int) -> ServerProcess:
        return ServerProcess(
            *("--listen", addresses[number], "--variants", f"{NAME}={checkpoint.folder}"),
            *("--graph-cache-dir", str(folder / "cache"), "--log-level", "warning", *flags),
            log=folder / f"server-{number}.log",
        )

    try:
        servers += [start(number) for number in range(2)]
        await asyncio.gather(*(asyncio.to_thread(one.wait_until_ready) for one in servers))
        callers = Callers(load)
        for kind in KINDS:
            for name, shape in SHAPES.items():
                callers.start(shape, kind, name=name)
        began = time.monotonic()
        due = began + every_s
        while len(outcome.back_s) < kills:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            number = len(outcome.back_s) % 2
            servers[number].kill()
            killed = time.monotonic()
            servers[number] = start(number)
            await asyncio.to_thread(servers[number].wait_until_ready)
            outcome.back_s.append(time.monotonic() - killed)
            due += every_s
            if time.monotonic() > due:
                outcome.late += 1
                due = time.monotonic()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await callers.stop()
        outcome.seconds = time.monotonic() - began
        ledger.close()
        for number, server in enumerate(servers):
            if not server.alive:
                ledger.broken(f"server {number} has ended: {server.said_last()}")
    finally:
        for server in servers:
            server.kill()
    return outcome


def main() -> int:
    """Print the outcomes of the calls; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=12, help="how many; default 12")
    parser.add_argument("--every-s", type=float, default=10.0, help="between kills; default 10")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments, flags = parser.parse_known_args()  # the rest is the servers'
    with tempfile.TemporaryDirectory(prefix="resnet50-kills-") as folder:
        outcome = asyncio.run(trial(Path(folder), arguments.kills, arguments.every_s, flags))
    return page.conclude("kills", outcome, arguments.write)


if __name__ == "__main__":
    sys.exit(main())
