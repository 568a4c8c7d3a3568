"""A server under everything at once: python -m benchmarks.soak [--minutes 120] [--write].

Both clients make single calls, uploads, lists, ordered and latest streams; some callers give up,
allow too little time, or send what is wrong. Meanwhile a variant is replaced every 20 s by another
checkpoint of the same name, the default changes, another variant comes and goes, and a corrupt
checkpoint is refused. Each answer is compared with what plain torch says of that picture under the
weights whose digest the answer carries, and these have to be weights that may answer at that time.

The exit code is 1 if an answer was wrong or a call lost, a call is unaccounted for, places stay
taken in the server, or it holds more at the end than at the beginning. With --write, the
figures go into docs/benchmarks/reliability.md; `make soak` does that. Other arguments are the
server's.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import page
from benchmarks.expected import Checkpoint, Expected, large_pictures, make, pictures
from benchmarks.frames import latest, many, stream
from benchmarks.ledger import CANCELLED, LOST, REFUSED, RIGHT, WRONG, Ledger
from benchmarks.load import KINDS, Callers, Load, Shape, unary, upload
from benchmarks.provocations import cancelled, hurried, left, wrong
from benchmarks.resources import Sample, Samples, Slope, open_places, tenths
from benchmarks.store import SECRET, Administrator, Store
from benchmarks.timeline import Timeline
from resnet50_client.admin import AsyncAdminClient

SWAPPED, FIXED, PASSING = "swapped", "fixed", "passing"
SHAPES: dict[str, Shape] = {
    "single call": unary,
    "upload": upload,
    "list": many,
    "ordered stream": stream,
    "latest stream": latest,
    "wrong call": wrong,
    "hurried call": hurried,
    "cancelled call": cancelled,
    "stream left": left,
}
# Between two calls of a caller at most, in seconds: two cores are busy, and no queue is long.
PAUSE_S = 1.0
# The first part of the time is not judged: pools fill, and memory with them.
WARM_UP = 0.2
# A shorter trial does not say whether memory grows.
JUDGED_S = 120.0
# The floor of memory is its lowest sample of so long: variants are replaced three times meanwhile.
FLOOR_S = 60.0
# How much more of each may be there in the last tenth than in the first.
MEMORY_SHARE, MORE_THREADS, MORE_FILES = 0.05, 2, 8
# Memory that grows faster than so, at 95% confidence, is a leak. Caches of allocators settle within
# the first half hour, and a shorter trial cannot tell them from one.
MAX_GROWTH_MIB_PER_H, GROWTH_JUDGED_S = 20.0, 1800.0


@dataclass
class Outcome:
    """Outcome of the trial.

    Attributes:
        ledger: Outcomes of the calls.
        seconds: How long it took.
        changes: How many changes of variants there were, by kind.
        places: Permits that are not released, by metric name.
        samples: Of the server's process, once it was warm.
    """

    ledger: Ledger
    seconds: float = 0.0
    changes: dict[str, int] = field(default_factory=dict)
    places: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def judge(self) -> None:
        """Note the promises that were broken by the server as a whole."""
        ledger = self.ledger
        if self.places:
            ledger.broken(f"still inside: {self.places}")
        if self.seconds < JUDGED_S:
            return
        first, last = tenths(self.samples, lambda one: one.mib)
        if last > first * (1 + MEMORY_SHARE):
            ledger.broken(f"memory: {first:.0f} MiB in the first tenth, {last:.0f} in the last")
        slope = self.slope()
        if self.seconds >= GROWTH_JUDGED_S and (
            slope.per_hour - slope.error > MAX_GROWTH_MIB_PER_H
        ):
            ledger.broken(f"memory grows by {slope.per_hour:.0f} ± {slope.error:.0f} MiB/h")
        first, last = tenths(self.samples, lambda one: one.threads)
        if last > first + MORE_THREADS:
            ledger.broken(f"threads: {first:g} in the first tenth, {last:g} in the last")
        first, last = tenths(self.samples, lambda one: one.files)
        if last > first + MORE_FILES:
            ledger.broken(f"open files: {first:g} in the first tenth, {last:g} in the last")

    def slope(self) -> Slope:
        """Return how the memory's floor grows."""
        return Slope.of(self.samples, min(FLOOR_S, self.seconds / 30))

    def lines(self) -> Iterator[str]:
        """Say it."""
        ledger = self.ledger
        counted = ", ".join(f"{code} {count}" for code, count in sorted(ledger.refusals.items()))
        unaccounted = ledger.begun - sum(
            ledger.count(how) for how in (RIGHT, REFUSED, CANCELLED, WRONG, LOST)
        )
        yield (
            f"{self.seconds / 60:.1f} minutes of mixed load, both clients: {ledger.begun} calls and"
            f" frames; {ledger.count(RIGHT)} answered rightly, {ledger.count(REFUSED)} refused as"
            f" they had to be ({counted}), {ledger.count(CANCELLED)} cancelled by their callers;"
            f" {ledger.count(WRONG)} wrong, {ledger.count(LOST)} lost,"
            f" {unaccounted} unaccounted for"
        )
        weights = ", ".join(f"{label} {count}" for label, count in sorted(ledger.weights.items()))
        changes = ", ".join(f"{kind} {count}" for kind, count in sorted(self.changes.items()))
        yield f"meanwhile: {changes}; right answers by checkpoint: {weights}"
        mib, threads, files = (
            tenths(self.samples, what)
            for what in (lambda one: one.mib, lambda one: one.threads, lambda one: one.files)
        )
        slope = self.slope()
        yield (
            f"memory of the server, without the first {WARM_UP:.0%} of the time: first tenth"
            f" {mib[0]:.0f} MiB, last {mib[1]:.0f} MiB ({mib[1] / mib[0] - 1:+.1%}); slope of its"
            f" floor, the lowest of each of {slope.floors} periods (a variant that is being"
            f" replaced is there twice for a while): {slope.per_hour:+.1f} ± {slope.error:.1f}"
            f" MiB/h at 95%, around which it scatters by {slope.scatter:.0f} MiB"
        )
        yield (
            f"threads {threads[0]:g} → {threads[1]:g}, open files {files[0]:g} → {files[1]:g};"
            f" places still taken when all had been answered: {sum(self.places.values()):g}"
        )


async def trial(
    folder: Path, seconds: float, swap_every_s: float, flags: list[str], few: int | None = None
) -> Outcome:
    """Run it.

    Args:
        folder: Where its files go.
        seconds: How long.
        swap_every_s: Between two swaps, in seconds.
        flags: Of the server.
        few: How many of the pictures are shown; None for all.
    """
    store, timeline, outcome = Store(folder), Timeline(), Outcome(Ledger())
    one, two, fixed, passing = (make(label, store.variants / label) for label in "ABCD")
    shown, large = pictures()[:few], large_pictures()[:few]
    checkpoints = [one, two, fixed, passing]
    expected = await asyncio.to_thread(Expected, checkpoints, [*shown, *large])
    store.put(SWAPPED, one.folder)
    store.put(FIXED, fixed.folder)
    timeline.starts(SWAPPED, one.digest)
    timeline.starts(FIXED, fixed.digest)
    timeline.starts(PASSING, None)
    timeline.starts("", SWAPPED)
    server = store.server([SWAPPED, FIXED], *flags)
    try:
        await asyncio.to_thread(server.wait_until_ready)
        names = ("", "", SWAPPED, SWAPPED, FIXED, PASSING)
        load = Load(
            server.address,
            expected,
            shown,
            large,
            timeline,
            outcome.ledger,
            names,
            {"token": SECRET},
        )
        async with AsyncAdminClient(server.address, token=SECRET) as client:
            administrator = Administrator(store, client, timeline, outcome.ledger)
            samples = Samples(server.pid, max(0.5, seconds / 900))
            sampling = asyncio.create_task(samples.go_on())
            callers = Callers(load)
            for kind in KINDS:
                for name, shape in SHAPES.items():
                    callers.start(shape, kind, PAUSE_S, name)
            began = time.monotonic()
            await change(administrator, (one, two), passing, store, began + seconds, swap_every_s)
            sampling.cancel()
            await callers.stop()
        outcome.seconds = time.monotonic() - began
        outcome.changes = administrator.changes
        outcome.places = await open_places(server.metrics_url)
        outcome.samples = samples.after(WARM_UP)
        outcome.ledger.close()
        outcome.judge()
        if not server.alive or server.stop() != 0:
            outcome.ledger.broken("the server did not end well")
        if outcome.ledger.faults:
            print(f"the server said last:\n{server.said_last()}", file=sys.stderr)
    finally:
        server.kill()
    return outcome


async def change(
    administrator: Administrator,
    swapped: tuple[Checkpoint, Checkpoint],
    passing: Checkpoint,
    store: Store,
    ends: float,
    every_s: float,
) -> None:
    """Change variants until a time: a swap at the beginning of each turn, the rest in between."""
    corrupt = store.corrupt(swapped[0])
    turn, due = 0, time.monotonic() + every_s / 4
    while due < ends:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        turn += 1
        await administrator.replace(SWAPPED, swapped[turn % 2])
        await asyncio.sleep(every_s / 8)
        await administrator.set_default((FIXED, SWAPPED)[turn % 2])
        await asyncio.sleep(every_s / 8)
        if turn % 4 == 1:
            await administrator.load(PASSING, passing)
        elif turn % 4 == 3:
            await administrator.unload(PASSING)
        elif turn % 4 == 0:
            await administrator.fail(SWAPPED, corrupt)
        due = max(due + every_s, time.monotonic())
    await asyncio.sleep(max(0.0, ends - time.monotonic()))


def main() -> int:
    """Print the outcome; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0, help="how long; default 120")
    parser.add_argument("--swap-every-s", type=float, default=20.0, help="default 20")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="resnet50-soak-") as folder:
        outcome = asyncio.run(
            trial(Path(folder), 60 * arguments.minutes, arguments.swap_every_s, flags)
        )
    return page.conclude("soak", outcome, arguments.write)


if __name__ == "__main__":
    sys.exit(main())
