"""A variant that answers NaN beside a healthy one: python -m benchmarks.sick_variant [--write].

One server process holds both. Callers of both clients ask the healthy one all the time: single
calls and an ordered stream. First others ask for the sick one by its name; then it is the candidate
of a 1% canary of the healthy one, and callers who are among that 1% call as well. The server's
health is watched throughout. The exit code is 1 if a call for the healthy variant failed, was
answered by another one, or the server was not SERVING.

The engine is the timed one, which sleeps as a device computes; the sick variant's passes all checks
of its loading and answers NaN from then on (tests/support/faulty_server.py). With --write, what is
printed goes into docs/benchmarks/reliability.md; `make sick-variant` does that.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import page
from resnet50_client import AsyncClient, Client, Resnet50Error, RetryPolicy
from resnet50_client.admin import AsyncAdminClient
from resnet50_server.auth.tokens import digest_of
from resnet50_server.rollout.split import Split
from tests.support.clients import Caller, items
from tests.support.pictures import encode, photo_like

HEALTHY, SICK = "healthy", "sick"
KINDS: dict[str, type] = {"blocking": Client, "asyncio": AsyncClient}
CANARY_PERCENT = 1.0
SERVICE = "resnet50.v1.InferenceService"
FAULTY = Path(__file__).parents[1] / "tests" / "support" / "faulty_server.py"
TIMED = ("--engine", "timed", "--timed-alpha-ms", "5", "--timed-beta-ms", "1")
STATUS = health_pb2.HealthCheckResponse.ServingStatus
SERVING = "SERVING"
# A call that fails is counted, not retried.
ONCE = RetryPolicy(attempts=1)
PAUSE_S = 0.02


@dataclass
class Outcome:
    """Outcome of one part of the trial.

    Attributes:
        what: Which part.
        healthy: Outcomes for callers of the healthy variant: name of the variant that answered, or
            the code of the error.
        sick: The same of those who asked for the sick one, or are its canaries.
        health: Health statuses of the server, in order.
        of_sick: The same of the sick variant's own name.
        out_s: When the sick one was out of service, in seconds from the first call for it.
        ended: Why the traffic split ended, if there was one.
        seconds: How long it took.
    """

    what: str
    healthy: Counter[str] = field(default_factory=Counter)
    sick: Counter[str] = field(default_factory=Counter)
    health: list[str] = field(default_factory=list)
    of_sick: list[str] = field(default_factory=list)
    out_s: float = 0.0
    ended: str = ""
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        """Return what violates the promise."""
        found = []
        if set(self.healthy) != {HEALTHY}:
            found.append(f"{self.what}: calls for the healthy variant: {counted(self.healthy)}")
        if self.health != [SERVING]:
            found.append(f"{self.what}: the server's health: {', '.join(self.health)}")
        return found

    def line(self) -> str:
        """Say it."""
        right = self.healthy[HEALTHY]
        text = (
            f"{self.what}, {self.seconds:.0f} s: {right} calls and frames for the healthy variant"
            f" answered, {self.healthy.total() - right} failed; the server's health:"
            f" {', '.join(self.health)}; {'its canaries' if self.ended else 'the sick one'}:"
            f" {counted(self.sick)}; the sick one's own health: {', '.join(self.of_sick)}, the last"
            f" one after {self.out_s:.1f} s"
        )
        return text + (f"; the split ended: {self.ended}" if self.ended else "")


def counted(codes: Counter[str]) -> str:
    """Return counts in words."""
    return ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a server with both variants; give its address, and a token that may do everything."""
    token = secrets.token_urlsafe(32)
    digest = digest_of(token).hex()
    tokens = folder / "tokens.toml"
    tokens.write_text(
        f'[[token]]\nname = "trial"\nsha256 = "{digest}"\nscopes = ["admin", "infer"]\n'
    )
    variants = folder / "variants"
    for name in (HEALTHY, SICK):
        (variants / name).mkdir(parents=True, exist_ok=True)
        (variants / name / "variant.json").write_text(json.dumps(DESCRIPTION))
    command = [
        *(sys.executable, str(FAULTY), "variant-answers-nan", "serve", "--listen", "127.0.0.1:0"),
        *("--variants", f"{HEALTHY}={variants / HEALTHY}"),
        *("--variants", f"{SICK}={variants / SICK}"),
        *("--variants-dir", str(variants), "--tokens-file", str(tokens), *TIMED),
    ]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None  # a pipe, as asked for
    try:
        yield process.stdout.readline().split()[-1], token
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


DESCRIPTION = {
    "categories": ["a", "b"],
    "transform": {"resize": 232, "crop": 224, "mean": [0.5] * 3, "std": [0.25] * 3},
}


@asynccontextmanager
async def watched(channel: grpc.aio.Channel, service: str, seen: list[str]) -> AsyncIterator[None]:
    """Note every status of a name of the health service; begins with the first."""
    request = health_pb2.HealthCheckRequest(service=service)
    call = health_pb2_grpc.HealthStub(channel).Watch(request)
    seen.append(STATUS.Name((await call.read()).status))

    async def follow() -> None:
        while (reply := await call.read()) is not grpc.aio.EOF:
            seen.append(STATUS.Name(reply.status))

    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        call.cancel()
        await asyncio.wait([following])


class Callers:
    """Callers of one server, that call until the block ends.

    Args:
        address: Of the server.
        token: Of theirs.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address, self._token = address, token
        self._tasks: list[asyncio.Task[None]] = []
        self._enough = False

    async def __aenter__(self) -> Callers:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough = True
        await asyncio.gather(*self._tasks)

    def call(self, kind: str, into: Counter[str], variant: str, key: str) -> None:
        """Make single calls."""
        self._tasks.append(asyncio.create_task(self._call(kind, into, variant, key)))

    def stream(self, kind: str, into: Counter[str], variant: str, key: str) -> None:
        """Send frames."""
        self._tasks.append(asyncio.create_task(self._stream(kind, into, variant, key)))

    def _client(self, kind: str, key: str) -> Caller:
        options = {"token": self._token, "caller_key": key, "retry": ONCE}
        return Caller(KINDS[kind], self._address, **options)

    async def _call(self, kind: str, into: Counter[str], variant: str, key: str) -> None:
        async with self._client(kind, key) as client:
            while not self._enough:
                try:
                    into[(await client.classify(IMAGE, variant=variant or None)).variant.name] += 1
                except Resnet50Error as error:
                    into[error.code or NO_CODE] += 1
                await asyncio.sleep(PAUSE_S)

    async def _stream(self, kind: str, into: Counter[str], variant: str, key: str) -> None:
        def images() -> Iterator[bytes]:
            while not self._enough:
                yield IMAGE

        async with self._client(kind, key) as client:
            try:
                async for one in items(
                    client, "classify_stream", images(), variant=variant or None
                ):
                    failed = one.error is not None
                    into[(one.error.code or NO_CODE) if failed else one.result.variant.name] += 1
            except Resnet50Error as error:
                into[error.code or NO_CODE] += 1


NO_CODE = "no call"
IMAGE = encode(photo_like(160, 120), "JPEG")


async def trial(folder: Path, seconds: float) -> list[Outcome]:
    """Run both parts.

    Args:
        folder: Where its files go.
        seconds: How long the healthy variant is asked in each part after the sick one is out of
            service, and as long before any client has called it.
    """
    outcomes = []
    for canary in (False, True):
        where = folder / ("canary" if canary else "named")
        where.mkdir()
        with server(where) as (address, token):
            outcomes.append(await part(address, token, canary, seconds))
    return outcomes


async def part(address: str, token: str, canary: bool, seconds: float) -> Outcome:
    """Have the sick variant asked for by its name, or as a canary."""
    outcome = Outcome(f"a {CANARY_PERCENT:g}% canary" if canary else "asked for by its name")
    began = time.monotonic()
    keys = canaries(4)
    async with (
        AsyncAdminClient(address, token=token) as admin,
        grpc.aio.insecure_channel(address) as channel,
        watched(channel, "", outcome.health),
        watched(channel, f"{SERVICE}/{SICK}", outcome.of_sick),
        Callers(address, token) as callers,
    ):
        if canary:
            await admin.set_traffic_split(HEALTHY, SICK, canary_percent=CANARY_PERCENT)
        for kind in KINDS:
            for number in range(3):
                callers.call(kind, outcome.healthy, HEALTHY, keys[False][number])
            callers.stream(kind, outcome.healthy, "", keys[False][3])
        await asyncio.sleep(seconds)
        asked = time.monotonic()
        for kind in KINDS:
            for number in range(2):
                if canary:
                    callers.call(kind, outcome.sick, HEALTHY, keys[True][number])
                else:
                    callers.call(kind, outcome.sick, SICK, keys[False][number])
        while len(outcome.of_sick) < 2:
            await asyncio.sleep(0.01)
        outcome.out_s = time.monotonic() - asked
        await asyncio.sleep(seconds)
        if canary:
            (report,) = await admin.list_traffic_splits()
            outcome.ended = report.ended or ""
    outcome.seconds = time.monotonic() - began
    return outcome


def canaries(count: int) -> dict[bool, list[str]]:
    """Return keys of callers who are among the canary's, and of some who are not."""
    split = Split(HEALTHY, SICK, CANARY_PERCENT)
    found: dict[bool, list[str]] = {True: [], False: []}
    for number in itertools.count():
        key = f"user-{number}"
        found[split.is_canary(key)].append(key)
        if all(len(those) >= count for those in found.values()):
            return found
    raise AssertionError  # there is no end of keys


def main() -> int:
    """Print the outcomes of the calls; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="twice for each part")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resnet50-sick-") as folder:
        outcomes = asyncio.run(trial(Path(folder), arguments.seconds))
    text = page.report(outcome.line() for outcome in outcomes)
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    for fault in faults:
        print(fault)
    if arguments.write:
        page.write("sick-variant", text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
