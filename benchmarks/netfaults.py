"""Faults of a real network: python -m benchmarks.netfaults [--short] [--only FAULT] [--write].

Two server processes and the clients, each in a network namespace of its own, joined by a router
(see `network`). Packets are lost, delayed and overtaken, links become slow, silent or are reset, a
server is killed or vanishes, a name moves to another address. Meanwhile both clients make single
calls, uploads, lists, ordered and latest streams, to one of the servers and to both, and each
answer is compared with plain torch's.

The exit code is 1 if an answer was wrong, a call or a frame was lost (neither answered nor ended
by an error), one failed that need not have, or the other server took longer to answer than the goal
allows. With --write, the figures go into docs/benchmarks/reliability.md; `make netfaults` does so.
--short takes about a minute and judges no times. Needs root, or user namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import page
from benchmarks.frames import latest, many, stream
from benchmarks.kills import Retries
from benchmarks.ledger import CANCELLED, LOST, REFUSED, RIGHT, WRONG, Ledger
from benchmarks.load import KINDS, Callers, Load, Question, Shape, unary, upload
from benchmarks.network import enter
from benchmarks.network_faults import (
    NAME,
    ONE,
    PORT,
    QUESTIONS,
    TWO,
    Scene,
    delay,
    kill,
    loss,
    move,
    nothing,
    rate,
    reset,
    silence,
    unplug,
    vanish,
)
from tests.support.clients import Caller

# The SDK's own, which calls have unless a fault says otherwise.
DEADLINE_S = 30.0
# Beyond its deadline, until a call is back at its caller on a busy machine.
SLACK_S = 5.0
# Between two calls of a caller at most, in seconds.
PAUSE_S = 0.6
SHAPES: dict[str, Shape] = {
    "single call": unary,
    "upload": upload,
    "list": functools.partial(many, broken=0.0),
    "ordered stream": functools.partial(stream, broken=0.0),
    "latest stream": functools.partial(latest, broken=0.0),
}
# Codes of a call if no server can be reached until its deadline.
NO_SERVER = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


@dataclass(frozen=True)
class Fault:
    """One fault, and who calls meanwhile.

    Attributes:
        title: As the table has it.
        happen: Brings it about, and takes it away.
        seconds: For how long.
        short_s: For how long in the short trial; None: not tried there.
        before_s: How long callers call before it, in seconds; 0: it is there when they begin.
        after_s: How long callers call without it, in seconds.
        reached: Addresses of the clients, by their name in the table.
        shapes: Of calls.
        timeout_s: The deadline of calls, in seconds.
        excused: Codes that calls to a single server may fail with.
        goal_s: How long an answer may take where another server can give it, in seconds.
    """

    title: str
    happen: Callable[[Scene, float], Awaitable[None]]
    seconds: float
    short_s: float | None = None
    before_s: float = 2.0
    after_s: float = 2.0
    reached: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"one server": (ONE,), "two servers": (ONE, TWO)}
    )
    shapes: tuple[str, ...] = tuple(SHAPES)
    timeout_s: float = DEADLINE_S
    excused: frozenset[str] = frozenset()
    goal_s: float = DEADLINE_S


SLOW = ("single call", "upload")
NAMES = {"one name": ("moving",), "two names": ("moving", "steady")}
FAULTS = {
    "none": Fault("none", nothing, 10),
    "loss": Fault("5% of the packets are lost", loss, 30, short_s=6),
    "delay": Fault("100 ± 50 ms, packets overtake", delay, 30, timeout_s=120, goal_s=120),
    "rate": Fault("2 Mbit/s", rate, 90, before_s=0, shapes=SLOW, timeout_s=240, goal_s=240),
    "faster": Fault(
        "10 Mbit/s",
        functools.partial(rate, mbit=10),
        10,
        short_s=6,
        before_s=0,
        shapes=SLOW,
        timeout_s=120,
        goal_s=120,
    ),
    "silence": Fault("silent for 12 s", silence, 12, short_s=12, after_s=15, goal_s=25),
    "unplug": Fault("link down for 12 s", unplug, 12, after_s=15, goal_s=25),
    "reset": Fault("reset for 5 s", reset, 5, after_s=8, goal_s=1),
    "move": Fault("a name moves, twice", move, 45, after_s=8, reached=NAMES, goal_s=25),
    "kill": Fault("is killed", kill, 15, short_s=5, excused=NO_SERVER, goal_s=1),
    "vanish": Fault("vanishes", vanish, 45, excused=NO_SERVER, goal_s=25),
}


@dataclass
class Trial(Load):
    """Callers of one fault, all with the same servers.

    Attributes:
        timeout_s: The deadline of calls.
        excused: Codes that calls may fail with.
    """

    timeout_s: float = DEADLINE_S
    excused: frozenset[str] = frozenset()

    def question(self, draw: random.Random) -> Question:
        """Return one whose answers are kept."""
        return draw.choice(QUESTIONS)

    def client(self, kind: type) -> Caller:
        """Return a client of a kind; close it."""
        return Caller(kind, self.server, timeout_s=self.timeout_s, **self.options)

    def refuse(
        self,
        shape: str,
        error: BaseException,
        may_be: dict[str, set[str | None]],
        count: int,
        asked: str,
    ) -> None:
        """Count calls that ended with an error, which is excused only if no server was there."""
        if (code := getattr(error, "code", "")) in self.excused:
            self.ledger.refused(shape, code, count)
        else:
            super().refuse(shape, error, may_be, count, asked)


async def watched(
    shape: Shape, deadline: bool, load: Trial, client: Caller, draw: random.Random, named: str
) -> None:
    """Make a call, and see that it keeps its deadline, if it has one."""
    began = time.monotonic()
    try:
        await shape(load, client, draw, named)
    except asyncio.CancelledError as error:  # no caller is cancelled
        load.ledger.broken(f"{named}: {error!r} out of a call that was not cancelled")
    if deadline and (took := time.monotonic() - began) > load.timeout_s + SLACK_S:
        load.ledger.broken(f"{named} took {took:.1f} s, its deadline is {load.timeout_s:g} s")


@dataclass
class Row:
    """Outcome of one fault for the clients of the same servers.

    Attributes:
        fault: Which.
        reached: Addresses of their servers.
        ledger: Outcomes of the calls.
        retries: Retries of the SDK.
    """

    fault: Fault
    reached: str
    ledger: Ledger = field(default_factory=Ledger)
    retries: Retries = field(default_factory=Retries)

    @property
    def several(self) -> bool:
        """Return whether there is another server, which can answer."""
        return len(self.fault.reached[self.reached]) > 1

    def judge(self) -> None:
        """Note broken promises, but of time."""
        self.ledger.close()
        for shape in self.ledger.shapes():
            may_fail = self.fault.excused and not self.several
            if not may_fail and not self.ledger.count(RIGHT, shape):
                self.ledger.broken(f"{shape}: no right answer")

    def cells(self) -> Iterator[str]:
        """Give the cells of a table."""
        ledger = self.ledger
        failed = ", ".join(f"{code} {count}" for code, count in sorted(ledger.refusals.items()))
        yield from (self.fault.title, self.reached, str(ledger.begun))
        yield from (str(ledger.count(how)) for how in (RIGHT, CANCELLED, WRONG, LOST))
        yield from (failed or "0", str(self.retries.count))
        for shape in SHAPES:
            yield f"{ledger.longest_s(shape):.1f}" if shape in self.fault.shapes else ""


def judge_times(rows: list[Row]) -> None:
    """Note which faults kept the other server's answers longer than they may.

    A call takes its time without a fault too, most of it on a busy machine; that is not judged.
    """
    quiet = [row for row in rows if row.fault.happen is nothing]
    for row in rows:
        usual = max((one.ledger.longest_s() for one in quiet), default=0.0)
        longest = row.ledger.longest_s()
        if row.several and longest > row.fault.goal_s + usual:
            row.ledger.broken(
                f"{row.fault.title}, {row.reached}: the longest call took {longest:.1f} s; without"
                f" a fault {usual:.1f} s, goal {row.fault.goal_s:g} s more at most"
            )


HEAD: tuple[str, ...] = (
    "fault of server one",
    "clients know",
    "begun",
    "right",
    "dropped",
    "wrong",
    "lost",
)
HEAD += ("failed, as they may", "retried", *SHAPES)


def table(rows: Iterable[Row]) -> str:
    """Return rows as Markdown; the last columns are the longest answers, in seconds."""
    lines = [HEAD, ("---",) * len(HEAD), *(tuple(row.cells()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def try_fault(scene: Scene, fault: Fault, seconds: float) -> list[Row]:
    """Have one fault under load, for so many seconds."""
    print(f"\n{fault.title}", flush=True)
    rows, all_callers = [], []

    async def happen() -> None:
        if fault.before_s:
            await asyncio.sleep(fault.before_s)
        await fault.happen(scene, seconds)

    happening = asyncio.create_task(happen())
    await asyncio.sleep(0)
    for reached, servers in fault.reached.items():
        row = Row(fault, reached)
        hosts = [scene.network.addresses.get(name, name) for name in servers]
        load = Trial(
            [f"{host}:{PORT}" for host in hosts],
            scene.expected,
            scene.shown,
            scene.large,
            scene.timeline,
            row.ledger,
            ("", NAME),
            {"observers": [row.retries]},
            timeout_s=fault.timeout_s,
            excused=fault.excused if len(servers) == 1 else frozenset(),
        )
        callers = Callers(load, seed=len(rows))
        for kind in KINDS:
            for name in fault.shapes:
                # Lists and streams have no deadline as a whole.
                shape = functools.partial(watched, SHAPES[name], name in SLOW)
                callers.start(shape, kind, PAUSE_S, name)
        rows.append(row)
        all_callers.append(callers)
    try:
        await happening
        await asyncio.sleep(fault.after_s)
    finally:  # callers end whatever happens, or the trial would not
        await asyncio.gather(*(callers.stop() for callers in all_callers))
    for row in rows:
        row.judge()
        print(f"\n{row.reached}\n{row.ledger.by_shape()}", flush=True)
    for said in scene.crashed():
        rows[0].ledger.broken(said)
    return rows


async def trial(folder: Path, names: Iterable[str], short: bool) -> tuple[list[Row], int]:
    """Run it; return the outcome, and how many packets were dropped or refused.

    Args:
        folder: Where its files go.
        names: Of the faults.
        short: Whether for a minute, without a judgement of times.
    """
    scene = await asyncio.to_thread(Scene, folder, 2 if short else 3)
    rows: list[Row] = []
    with scene.network.names(moving=ONE, steady=TWO):
        for name in names:
            await scene.have_all()
            fault = FAULTS[name]
            seconds = fault.seconds if fault.short_s is None or not short else fault.short_s
            rows += await try_fault(scene, fault, seconds)
    if not short:
        judge_times(rows)
    return rows, scene.network.stopped


def main() -> int:
    """Print the outcome; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a minute, for CI; judges no times")
    parser.add_argument("--only", action="append", choices=FAULTS, help="a fault; may be repeated")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments = parser.parse_args()
    folder = enter()
    in_short = [name for name, fault in FAULTS.items() if fault.short_s is not None]
    names = arguments.only or (in_short if arguments.short else list(FAULTS))
    began = time.monotonic()
    rows, stopped = asyncio.run(trial(folder, names, arguments.short))
    counts = {
        how: sum(row.ledger.count(how) for row in rows)
        for how in (RIGHT, CANCELLED, REFUSED, WRONG, LOST)
    }
    begun = sum(row.ledger.begun for row in rows)
    text = page.report(
        [
            f"{begun} calls and frames in {time.monotonic() - began:.0f} s: {counts[RIGHT]} right,"
            f" {counts[CANCELLED]} dropped for newer frames, {counts[REFUSED]} failed as they may,"
            f" {counts[WRONG]} wrong, {counts[LOST]} lost, {begun - sum(counts.values())}"
            f" unaccounted for; {stopped} packets were dropped or refused on their way"
        ]
    )
    text += f"\n\n{table(rows)}"
    print(f"\n{table(rows)}")
    if arguments.write:
        page.write("netfaults", text)
    return 1 if any(row.ledger.faults for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
