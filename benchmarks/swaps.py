"""Weights that are replaced under load: python -m benchmarks.swaps [--swaps 100] [--write].

Both clients call a server without a pause while LoadVariant puts two checkpoints in each other's
place, again and again; before and after that they call it without any swap. Each answer is compared
with plain torch's for the weights whose digest it carries, and a call that begins after a swap has
to be answered by the new ones. The exit code is 1 if a call failed or was answered wrongly, or if
the server holds more memory after the last swap than after the fifth.

With --write, the figures go into docs/benchmarks/reliability.md; `make swaps` does that. Other
arguments are the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import page
from benchmarks.expected import Checkpoint, Expected, large_pictures, make, pictures
from benchmarks.frames import many, stream
from benchmarks.ledger import LOST, RIGHT, WRONG, Ledger
from benchmarks.load import KINDS, Callers, Load, Shape, unary, upload
from benchmarks.process import ServerProcess, resident_kib
from benchmarks.resources import open_places
from benchmarks.store import SECRET, Administrator, Store
from benchmarks.timeline import Timeline
from resnet50_client import CallObserver, ObservedCall
from resnet50_client.admin import AsyncAdminClient

NAME = "mine"
SHAPES: dict[str, Shape] = {
    "single call": unary,
    "upload": upload,
    "list": functools.partial(many, broken=0.0),
    "ordered stream": functools.partial(stream, broken=0.0, count=(10, 40)),
}
QUIET_S = 30.0
# Between two calls of a caller at most, in seconds: what waits then is not the load's own doing.
CALL_PAUSE_S = {"single call": 0.1}
OTHERS_PAUSE_S = 3.0
# Between the end of a swap and the next one.
PAUSE_S = 0.5
# The swap from which memory is compared: allocators and caches have filled by then.
WARM = 5
# How much more memory may be held after the last swap.
MEMORY_SHARE = 0.05
DRAINED_WITHIN_S = 60.0
SINGLE = ("Classify", "Embed")


class Latencies(CallObserver):
    """Sorts the single calls of a client by whether weights were replaced meanwhile."""

    def __init__(self) -> None:
        self.quiet_s: list[float] = []
        self.swapping_s: list[float] = []
        self.replaced: list[tuple[float, float]] = []
        self._calls: list[tuple[float, float]] = []

    def call_ended(self, call: ObservedCall) -> None:
        """Note a call."""
        if call.method.rpartition("/")[2] in SINGLE and call.code == "OK":
            now = time.monotonic()
            self._calls.append((now - call.duration_s, now))

    def sort(self) -> None:
        """Sort them, once all swaps are known."""
        for began, ended in self._calls:
            during = any(began <= last and first <= ended for first, last in self.replaced)
            (self.swapping_s if during else self.quiet_s).append(ended - began)


@dataclass
class Outcome:
    """Outcome of the trial.

    Attributes:
        ledger: Outcomes of the calls.
        latencies: Of single calls.
        replaced_s: How long each swap took, in seconds.
        warm_mib: The server's memory after the fifth swap, all that was replaced being gone.
        last_mib: The same after the last one.
        places: Permits that are not released.
    """

    ledger: Ledger
    latencies: Latencies = field(default_factory=Latencies)
    replaced_s: list[float] = field(default_factory=list)
    warm_mib: float = 0.0
    last_mib: float = 0.0
    places: dict[str, float] = field(default_factory=dict)

    def judge(self, swaps: int) -> None:
        """Note the promises that were broken by the server as a whole."""
        if self.places:
            self.ledger.broken(f"still inside: {self.places}")
        if len(self.replaced_s) != swaps:
            self.ledger.broken(f"{len(self.replaced_s)} of {swaps} swaps were made")
        if self.last_mib > self.warm_mib * (1 + MEMORY_SHARE):
            self.ledger.broken(f"memory: {self.warm_mib:.0f} MiB, then {self.last_mib:.0f} MiB")

    def lines(self) -> Iterator[str]:
        """Say it."""
        ledger, took = self.ledger, sorted(self.replaced_s)
        weights = ", ".join(f"{label} {count}" for label, count in sorted(ledger.weights.items()))
        yield (
            f"{len(took)} swaps under load, both clients: {ledger.begun} images,"
            f" {ledger.count(RIGHT)} answered rightly under the digest that they carry ({weights}),"
            f" {ledger.count(WRONG)} wrongly, {ledger.count(LOST)} lost; places still taken when"
            f" all had been answered: {sum(self.places.values()):g}"
        )
        yield (
            f"a swap takes {statistics.median(took):.1f} s, median ({took[0]:.1f} to"
            f" {took[-1]:.1f}): reading, building, warming up and comparing with PyTorch on the"
            " cores that also answer"
        )
        quiet, swapping = self.latencies.quiet_s, self.latencies.swapping_s
        yield (
            f"single calls while no weights are replaced: p50 {quantile_ms(quiet, 50):.0f}, p99"
            f" {quantile_ms(quiet, 99):.0f} ms ({len(quiet)}); while they are: p50"
            f" {quantile_ms(swapping, 50):.0f}, p99 {quantile_ms(swapping, 99):.0f} ms"
            f" ({len(swapping)})"
        )
        yield (
            f"memory, all that was replaced being gone: {self.warm_mib:.0f} MiB after swap {WARM},"
            f" {self.last_mib:.0f} MiB after swap {len(took)}"
            f" ({self.last_mib / self.warm_mib - 1:+.1%})"
        )


def quantile_ms(seconds: list[float], percent: int) -> float:
    """Return a percentile in milliseconds."""
    return statistics.quantiles(seconds, n=100)[percent - 1] * 1e3


async def trial(folder: Path, swaps: int, quiet_s: float, flags: list[str]) -> Outcome:
    """Run it."""
    store, timeline, outcome = Store(folder), Timeline(), Outcome(Ledger())
    checkpoints = [make(label, store.variants / label) for label in "AB"]
    shown, large = pictures(), large_pictures()
    expected = await asyncio.to_thread(Expected, checkpoints, [*shown, *large])
    store.put(NAME, checkpoints[0].folder)
    timeline.starts(NAME, checkpoints[0].digest)
    timeline.starts("", NAME)
    options = {"token": SECRET, "observers": [outcome.latencies]}
    server = store.server([NAME], *flags)
    try:
        await asyncio.to_thread(server.wait_until_ready)
        load = Load(
            server.address, expected, shown, large, timeline, outcome.ledger, ("", NAME), options
        )
        async with AsyncAdminClient(server.address, token=SECRET) as client:
            administrator = Administrator(store, client, timeline, outcome.ledger)
            callers = Callers(load)
            for kind in KINDS:
                for name, shape in SHAPES.items():
                    pause_s = CALL_PAUSE_S.get(name, OTHERS_PAUSE_S)
                    callers.start(shape, kind, pause_s, name)
            await asyncio.sleep(quiet_s)
            await swap(administrator, checkpoints, swaps, server, outcome)
            await asyncio.sleep(quiet_s)
            await callers.stop()
        outcome.replaced_s = administrator.replaced_s
        outcome.places = await open_places(server.metrics_url)
        outcome.latencies.sort()
        outcome.ledger.close()
        outcome.judge(swaps)
        if not server.alive or server.stop() != 0:
            outcome.ledger.broken("the server did not end well")
        if outcome.ledger.faults:
            print(f"the server said last:\n{server.said_last()}", file=sys.stderr)
    finally:
        server.kill()
    return outcome


async def swap(
    administrator: Administrator,
    checkpoints: list[Checkpoint],
    swaps: int,
    server: ServerProcess,
    outcome: Outcome,
) -> None:
    """Make the swaps, and look at the memory after the fifth and after the last."""
    for number in range(1, swaps + 1):
        began = time.monotonic()
        await administrator.replace(NAME, checkpoints[number % 2])
        outcome.latencies.replaced.append((began, time.monotonic()))
        await asyncio.sleep(PAUSE_S)
        if number in (WARM, swaps):
            mib = await drained_mib(administrator, server.pid, outcome.ledger)
            if number == WARM:
                outcome.warm_mib = mib
            outcome.last_mib = mib


async def drained_mib(administrator: Administrator, pid: int, ledger: Ledger) -> float:
    """Return a server's memory in MiB, once everything that was replaced has gone."""
    ends = time.monotonic() + DRAINED_WITHIN_S
    while not await administrator.drained():
        if time.monotonic() > ends:
            ledger.broken(f"a replaced variant has not gone after {DRAINED_WITHIN_S:g} s")
            break
        await asyncio.sleep(0.1)
    samples = []
    for _ in range(20):
        await asyncio.sleep(0.1)
        samples.append(resident_kib(pid) / 1024)
    return statistics.median(samples)


def main() -> int:
    """Print the outcome; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=100, help="how many, 6 at least; default 100")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments, flags = parser.parse_known_args()
    if arguments.swaps <= WARM:
        parser.error(f"--swaps: memory is compared with that after swap {WARM}; make more")
    with tempfile.TemporaryDirectory(prefix="resnet50-swaps-") as folder:
        outcome = asyncio.run(trial(Path(folder), arguments.swaps, QUIET_S, flags))
    return page.conclude("swaps", outcome, arguments.write)


if __name__ == "__main__":
    sys.exit(main())
