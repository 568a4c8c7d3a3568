"""Servers that come and go behind a DNS name: python -m benchmarks.new_servers [--short] [--write].

Three servers and the clients, each in a network namespace of its own (see `network`), and a DNS
server whose answers have the addresses of the servers that are ready, as a headless Service of
Kubernetes has. Clients of both kinds make single calls, and keep long streams open. A third server
joins; one leaves, as a pod does: its address is withdrawn, then it gets SIGTERM; one is killed.

The exit code is 1 if a call failed, a frame was not answered once and in its turn, or the third
server did not get its share. With --write, the figures go into docs/benchmarks/reliability.md;
`make netfaults` does so. --short takes half a minute. Needs root, or user namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks import page
from benchmarks.load import KINDS
from benchmarks.name_server import NameServer
from benchmarks.network import Network, enter
from benchmarks.process import ServerProcess
from tests.support.clients import Caller, items
from tests.support.pictures import encode, photo_like

NAME, PORT = "servers.test", 50051
SERVERS = ("one", "two", "three")
# Of CoreDNS, for Services.
TTL_S = 5
# Kubernetes removes a pod's address, and tells the pod to stop after this (preStop).
PRE_STOP_S = 5.0
# A server has its share once it gives this part of an equal share of the answers in the window.
ENOUGH, WINDOW_S = 0.6, 5.0
GOAL_S = 60.0
CALLERS, STREAMS, PAUSE_S = 2, 12, 0.2
PHOTO = encode(photo_like(64, 48), "JPEG")
MANIFEST = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes" / "deployment.yaml"


@dataclass
class Answers:
    """Answers of one shape of calls by one kind of client.

    Attributes:
        name: Of both.
        given: Time and server of each answer.
        failed: Descriptions of failures.
        joined_s: Seconds from the join of the third server until it had its share.
    """

    name: str
    given: list[tuple[float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    joined_s: float | None = None

    def share(self, server: str) -> float:
        """Return a server's share of the newest answers, 0 to 1."""
        since = time.monotonic() - WINDOW_S
        newest = []
        for at, one in reversed(self.given):
            if at < since:
                break
            newest.append(one)
        return newest.count(server) / max(1, len(newest))


class Trial:
    """Clients of a name, and the servers behind it.

    Args:
        folder: For files.
        age_s: Maximum age of connections.
        grace_s: Time of calls in flight after that.
        wait_s: Seconds of load after each change.
    """

    def __init__(self, folder: Path, age_s: float, grace_s: float, wait_s: float) -> None:
        self.network = Network(SERVERS, folder)
        self.names = NameServer(NAME, TTL_S)
        self.answers: list[Answers] = []
        self.problems: list[str] = []
        self._folder, self._wait_s = folder, wait_s
        self._options = (
            *(
                "--max-connection-age-s",
                f"{age_s:g}",
                "--max-connection-age-grace-s",
                f"{grace_s:g}",
            ),
            *("--engine", "timed", "--timed-alpha-ms", "2", "--timed-beta-ms", "0"),
            *(f for name in SERVERS for f in ("--variants", f"{name}=random:0")),
            *("--allow-plaintext", "--log-level", "warning"),
        )
        self._servers: dict[str, ServerProcess] = {}
        self._stopped = False

    async def run(self) -> None:
        """Run it."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(96))
        with self.network.name_server():
            async with self.names.listening():
                await asyncio.gather(self._start("one"), self._start("two"))
                tasks = [asyncio.create_task(one) for one in self._callers()]
                try:
                    await self._changes()
                finally:
                    self._stopped = True
                    await asyncio.gather(*tasks)
                    for server in self._servers.values():
                        server.kill()

    async def _changes(self) -> None:
        await asyncio.sleep(self._wait_s)
        await self._start("three")
        print("server three has joined", flush=True)
        await self._share_of_three()
        self._withdraw("one")
        await asyncio.sleep(PRE_STOP_S)
        if status := await asyncio.to_thread(self._servers["one"].stop):
            self.problems.append(f"server one ended with {status} instead of 0")
        print("server one has left", flush=True)
        await asyncio.sleep(self._wait_s)
        self._servers["two"].kill()
        print("server two was killed", flush=True)
        await asyncio.sleep(PRE_STOP_S)  # until Kubernetes notices
        self._withdraw("two")
        await asyncio.sleep(self._wait_s)
        for answers in self.answers:
            if answers.share("three") < 1:
                self.problems.append(f"{answers.name}: server three does not answer alone")

    async def _share_of_three(self) -> None:
        """Wait until the third server has its share of each shape of calls."""
        began = time.monotonic()
        while time.monotonic() - began < GOAL_S + WINDOW_S:
            for answers in self.answers:
                if answers.joined_s is None and answers.share("three") >= ENOUGH / len(SERVERS):
                    answers.joined_s = time.monotonic() - began
                    print(f"  {answers.name}: after {answers.joined_s:.1f} s", flush=True)
            if all(answers.joined_s is not None for answers in self.answers):
                break
            await asyncio.sleep(0.1)
        for answers in self.answers:
            if answers.joined_s is None or answers.joined_s > GOAL_S:
                self.problems.append(f"{answers.name}: no share for server three in {GOAL_S:g} s")

    async def _start(self, name: str) -> None:
        """Start a server, and add its address once it is ready."""
        server = ServerProcess(
            *("--listen", f"{self.network.addresses[name]}:{PORT}", "--default-variant", name),
            *self._options,
            log=self._folder / f"{name}.log",
            within=self.network.within(name),
        )
        self._servers[name] = server
        await asyncio.to_thread(server.wait_until_ready)
        self.names.addresses = [*self.names.addresses, self.network.addresses[name]]

    def _withdraw(self, name: str) -> None:
        address = self.network.addresses[name]
        self.names.addresses = [one for one in self.names.addresses if one != address]

    def _callers(self) -> Iterator[Coroutine[None, None, None]]:
        for kind in KINDS:
            for shape, call, count in (
                ("single calls", self._calls, CALLERS),
                ("streams", self._stream, STREAMS),
            ):
                answers = Answers(f"{shape}, {kind}")
                self.answers.append(answers)
                # As an application does: one client for all its calls of a shape.
                yield self._client(KINDS[kind], answers, call, count)

    async def _client(
        self,
        kind: type,
        answers: Answers,
        call: Callable[[Caller, Answers], Awaitable[None]],
        count: int,
    ) -> None:
        async with Caller(kind, f"{NAME}:{PORT}") as client:
            await asyncio.gather(*(call(client, answers) for _ in range(count)))

    async def _calls(self, client: Caller, answers: Answers) -> None:
        while not self._stopped:
            try:
                result = await client.classify(PHOTO)
                answers.given.append((time.monotonic(), result.variant.name))
            except Exception as error:  # whatever it is, the call has failed
                answers.failed.append(repr(error))
            await asyncio.sleep(PAUSE_S / 4)

    async def _stream(self, client: Caller, answers: Answers) -> None:
        """Keep one stream open for the whole trial."""
        given = answered = 0

        def frames() -> Iterator[bytes]:
            nonlocal given
            while not self._stopped:
                given += 1
                yield PHOTO
                time.sleep(PAUSE_S)

        try:
            async for answer in items(client, "classify_stream", frames()):
                if answer.error is not None or answer.frame_id != answered:
                    answers.failed.append(f"frame {answered}: {answer!r}")
                else:
                    answers.given.append((time.monotonic(), answer.result.variant.name))
                answered += 1
        except Exception as error:  # whatever it is, the stream has failed
            answers.failed.append(repr(error))
        if answered != given:
            answers.failed.append(f"{answered} of {given} frames were answered")


def of_manifest() -> tuple[float, float]:
    """Return the maximum age of connections and the grace of deploy/kubernetes, in seconds."""
    manifest = yaml.safe_load(MANIFEST.read_text())
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value") for one in container["env"]}
    age, grace = (f"RESNET50_MAX_CONNECTION_AGE{end}_S" for end in ("", "_GRACE"))
    return float(values[age]), float(values[grace])


def lines(trial: Trial, age_s: float, grace_s: float, resolver: str) -> Iterator[str]:
    """Yield the lines of the report."""
    count = sum(len(one.given) for one in trial.answers)
    failed = sum(len(one.failed) for one in trial.answers)
    yield (
        f"gRPC's resolver {resolver}, records with a TTL of {TTL_S} s, max_connection_age_s"
        f" {age_s:g}, max_connection_age_grace_s {grace_s:g}: {count} answers, {failed} failed"
        f" calls and frames; {trial.names.queries} lookups"
    )
    for one in trial.answers:
        took = "not at all" if one.joined_s is None else f"after {one.joined_s:.0f} s"
        yield f"{one.name}: {len(one.given)} answers; the third server had its share {took}"


def main() -> int:
    """Print the outcome; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="half a minute, for CI")
    parser.add_argument("--resolver", choices=["ares", "native"], default="ares", help="of gRPC")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments = parser.parse_args()
    os.environ["GRPC_DNS_RESOLVER"] = arguments.resolver  # gRPC reads it after `enter`
    folder = enter()
    age_s, grace_s = (4.0, 3.0) if arguments.short else of_manifest()
    trial = Trial(folder, age_s, grace_s, 3.0 if arguments.short else 15.0)
    asyncio.run(trial.run())
    text = page.report(lines(trial, age_s, grace_s, arguments.resolver))
    problems = [*trial.problems, *(text for one in trial.answers for text in one.failed[:3])]
    for problem in problems:
        print(problem, file=sys.stderr)
    if arguments.write:
        page.write("netfaults: new servers", text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
