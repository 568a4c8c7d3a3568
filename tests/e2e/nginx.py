"""Debian's nginx with deploy/nginx.conf before two servers, tried for real: `make nginx`.

Calls of every shape go through it without a pause, from both clients, while one server is drained
and started again, then the other, then one is killed, then nginx is reloaded. The exit code is 1
if a call failed, an answer of a stream is missing or out of turn, or one server got no calls.

Not a test of pytest: it needs nginx, which `apt-get install nginx` brings.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from resnet50_client import (
    AsyncClient,
    Client,
    FrameAnswer,
    InvalidImageError,
    Resnet50Error,
    VariantNotFoundError,
)
from tests.support.pictures import encode, photo_like

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"
# Values of the configuration, and their replacements.
FRONT, BACKS = "127.0.0.1:50051", ("127.0.0.1:50061", "127.0.0.1:50062")
PID_FILE = "/run/nginx.pid"
LOG = "nginx.log"

PHOTO = encode(photo_like(400, 300), "JPEG")
# Above what the SDK sends in one message, and what nginx takes unless told otherwise.
LARGE = encode(photo_like(1600, 1200), "BMP")
# How long anything may take.
PATIENCE_S = 60.0

Shape = Callable[[str, "Caller"], Iterator[str]]


class NotAsPromised(Exception):
    """An answer is not what was asked for."""


class Backend:
    """One of the servers, at an address that stays; its name is that of the variant it answers as.

    Args:
        name: "one" or "two".
        address: Where it listens.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` tells when it is ready."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "resnet50_server", "serve", "--listen", self.address),
                *("--variants", "one=random:0", "--variants", "two=random:0"),
                *("--default-variant", self.name, "--no-listen-while-loading"),
                *("--engine", "timed", "--timed-alpha-ms", "4", "--drain-timeout-s", "20"),
                *("--log-level", "warning"),
            ],
            stdout=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """Wait until it is ready."""
        with Client(self.address) as client:
            client.wait_until_ready(timeout_s=PATIENCE_S)

    def drain(self) -> None:
        """Stop it as a supervisor does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(PATIENCE_S)
        if status != 0:
            raise NotAsPromised(f"server {self.name} ended with {status} instead of 0")

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Caller(threading.Thread):
    """Makes calls of one shape until it is stopped, and counts their outcomes.

    Args:
        name: Of the shape.
        shape: Gives, for each answer, the name of the server that gave it.
        answers_due: In each phase of the trial.
        address: Of nginx.
    """

    def __init__(self, name: str, shape: Shape, answers_due: int, address: str) -> None:
        super().__init__(name=name, daemon=True)
        self.answers_due = answers_due
        self.answers: collections.Counter[str] = collections.Counter()
        self.failures: list[Exception] = []
        self.stopped = False
        self._shape = shape
        self._address = address

    def run(self) -> None:
        """Continue after a failure: their number tells more than the first one."""
        while not self.stopped:
            try:
                for server in self._shape(self._address, self):
                    self.answers[server] += 1
            except (Resnet50Error, NotAsPromised) as error:
                self.failures.append(error)


# Shapes of calls


def unary(address: str, caller: Caller) -> Iterator[str]:
    """Classify a photograph again and again."""
    with Client(address) as client:
        while not caller.stopped:
            yield client.classify(PHOTO).variant.name


def new_connection(address: str, caller: Caller) -> Iterator[str]:
    """Embed, each time over a connection of its own."""
    while not caller.stopped:
        with Client(address) as client:
            result = client.embed(PHOTO)
        if result.vector.shape != (2048,):
            raise NotAsPromised(f"a vector of shape {result.vector.shape}")
        yield result.variant.name


def upload(address: str, caller: Caller) -> Iterator[str]:
    """Send 5.8 MB, in chunks."""
    with Client(address) as client:
        while not caller.stopped:
            yield client.classify(LARGE).variant.name


def refused(address: str, caller: Caller) -> Iterator[str]:
    """Ask for what is refused: the details of a status come through, in trailing metadata."""
    with Client(address) as client:
        while not caller.stopped:
            try:
                client.classify(PHOTO, variant="three")
                raise NotAsPromised("a variant that is not served was answered")
            except VariantNotFoundError as error:
                if error.served[:2] != ("one", "two") or not error.request_id:
                    raise NotAsPromised(f"details are missing: {error.served}") from error
            try:
                client.classify(b"no image")
                raise NotAsPromised("what is no image was answered")
            except InvalidImageError as error:
                if not error.field:
                    raise NotAsPromised("the field is missing") from error
            yield "either"


def ordered(address: str, caller: Caller) -> Iterator[str]:
    """Send frames; each is answered once, in its turn."""
    with Client(address) as client:
        frames = _frames(caller)
        next_id = 0
        for answer in client.classify_stream(frames, window=8):
            if answer.frame_id != next_id:
                raise NotAsPromised(f"frame {answer.frame_id} is answered, {next_id} is due")
            next_id += 1
            yield _server(answer)
        if next_id != frames.given:
            raise NotAsPromised(f"{next_id} of {frames.given} frames were answered")


def latest(address: str, caller: Caller) -> Iterator[str]:
    """Send frames, of which the newest is answered; each has one answer or is dropped once."""
    with Client(address) as client:
        frames = _frames(caller, pause_s=0.01)
        seen: set[int] = set()
        for answer in client.classify_stream(frames, delivery="latest"):
            if answer.frame_id in seen:
                raise NotAsPromised(f"frame {answer.frame_id} is answered twice")
            seen.add(answer.frame_id)
            if not answer.dropped:
                yield _server(answer)
        if len(seen) != frames.given:
            raise NotAsPromised(f"{len(seen)} of {frames.given} frames were answered")


def asyncio_unary(address: str, caller: Caller) -> Iterator[str]:
    """Embed by the other client, eight calls at a time."""

    async def calls() -> AsyncIterator[str]:
        async with AsyncClient(address) as client:
            while not caller.stopped:
                for result in await asyncio.gather(*[client.embed(PHOTO) for _ in range(8)]):
                    yield result.variant.name

    return _blocking(calls())


def asyncio_stream(address: str, caller: Caller) -> Iterator[str]:
    """Send frames by the other client."""

    async def calls() -> AsyncIterator[str]:
        frames = _frames(caller)
        answered = 0
        async with AsyncClient(address) as client:
            async for answer in client.embed_stream(frames, window=8):
                if answer.frame_id != answered:
                    raise NotAsPromised(f"frame {answer.frame_id} instead of {answered}")
                answered += 1
                yield _server(answer)
        if answered != frames.given:
            raise NotAsPromised(f"{answered} of {frames.given} frames were answered")

    return _blocking(calls())


# Each with the answers that are due in each phase.
SHAPES: dict[str, tuple[Shape, int]] = {
    "unary 1": (unary, 25),
    "unary 2": (unary, 25),
    "new connection": (new_connection, 25),
    "upload": (upload, 6),
    "refused": (refused, 25),
    "ordered stream 1": (ordered, 50),
    "ordered stream 2": (ordered, 50),
    "latest stream": (latest, 25),
    "asyncio unary": (asyncio_unary, 50),
    "asyncio stream": (asyncio_stream, 50),
}


class _Frames:
    """Frames until the caller is stopped; knows how many it has given."""

    def __init__(self, caller: Caller, pause_s: float) -> None:
        self.given = 0
        self._caller = caller
        self._pause_s = pause_s

    def __iter__(self) -> Iterator[bytes]:
        while not self._caller.stopped:
            self.given += 1
            yield PHOTO
            time.sleep(self._pause_s)


def _frames(caller: Caller, pause_s: float = 0.0) -> _Frames:
    return _Frames(caller, pause_s)


def _server(answer: FrameAnswer) -> str:
    if answer.error is not None:
        raise NotAsPromised(f"frame {answer.frame_id}: {answer.error!r}")
    return answer.result.variant.name


def _blocking(answers: AsyncIterator[str]) -> Iterator[str]:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        while (answer := loop.run_until_complete(anext(answers, None))) is not None:
            yield answer


# nginx


def free_addresses(count: int) -> list[str]:
    """Return addresses without a listener."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]


def with_addresses(config: str, replacements: dict[str, str]) -> str:
    """Return the configuration with other addresses and paths, and nothing else changed."""
    for old, new in replacements.items():
        config, found = re.subn(re.escape(old) + r"(?=[ ;])", new, config)
        if found != 1:
            raise NotAsPromised(f"{CONFIG.name} names {old} {found} times instead of once")
    return config


@contextlib.contextmanager
def nginx(front: str, backs: Sequence[str], folder: Path) -> Iterator[Callable[[], None]]:
    """Run nginx; gives what reloads it."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise SystemExit("nginx is not installed: apt-get install nginx")
    config, pid_file = folder / "nginx.conf", folder / "nginx.pid"
    replacements = {FRONT: front, PID_FILE: str(pid_file), **dict(zip(BACKS, backs, strict=True))}
    config.write_text(with_addresses(CONFIG.read_text(), replacements))
    command = [program, "-e", "stderr", "-p", str(folder), "-c", str(config)]
    subprocess.run([*command, "-t", "-q"], check=True)
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen([*command, "-g", "daemon off;"], stderr=log)
    try:
        _wait_until(lambda: [] if _listens(front) else [front], "nginx does not listen")
        yield lambda: process.send_signal(signal.SIGHUP)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


# The trial


def go_on(callers: list[Caller], what: str) -> None:
    """Wait until each caller has got so many more answers."""
    print(f"  {what}", flush=True)
    goals = {caller: caller.answers.total() + caller.answers_due for caller in callers}
    _wait_until(
        lambda: [one.name for one in callers if one.answers.total() < goals[one]],
        "stand still",
    )


def answers_of(callers: list[Caller], server: str) -> None:
    """Wait until a server gets calls again."""
    before = sum(caller.answers[server] for caller in callers)
    _wait_until(
        lambda: [] if sum(one.answers[server] for one in callers) > before else [server],
        "gets no calls",
    )


def _wait_until(missing: Callable[[], list[str]], what: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while names := missing():
        if time.monotonic() > ends:
            raise NotAsPromised(f"{', '.join(names)}: {what}")
        time.sleep(0.02)


def trial(folder: Path) -> list[Caller]:
    """Run it; return the callers with their counts."""
    front, *backs = free_addresses(3)
    backends = [Backend(name, back) for name, back in zip(("one", "two"), backs, strict=True)]
    with contextlib.ExitStack() as stack:
        for backend in backends:
            stack.callback(backend.kill)
            backend.start()
        for backend in backends:
            backend.wait()
        reload = stack.enter_context(nginx(front, backs, folder))
        callers = [Caller(name, shape, due, front) for name, (shape, due) in SHAPES.items()]
        for caller in callers:
            caller.start()
        try:
            go_on(callers, "both servers answer")
            one, two = backends
            for backend, end in ((one, one.drain), (two, two.drain), (one, one.kill)):
                end()
                go_on(callers, f"server {backend.name}: {end.__name__}; the other one answers")
                backend.start()
                backend.wait()
                answers_of(callers, backend.name)
                go_on(callers, f"server {backend.name} is back")
            reload()
            go_on(callers, "nginx was reloaded")
        except NotAsPromised as error:
            callers[0].failures.append(error)
        finally:
            for caller in callers:
                caller.stopped = True
            for caller in callers:
                caller.join(PATIENCE_S)
                if caller.is_alive():
                    caller.failures.append(NotAsPromised("does not come to its end"))
    return callers


def main() -> int:
    """Print the outcomes of the calls; return the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="resnet50-nginx-") as folder:
        callers = trial(Path(folder))
        log = (Path(folder) / LOG).read_text()
    print(f"\n{'calls':<18}{'server one':>12}{'server two':>12}{'failed':>8}")
    for caller in callers:
        one, two = caller.answers["one"], caller.answers["two"]
        if "either" in caller.answers:
            one = two = caller.answers["either"]
        elif not (one and two):
            caller.failures.append(NotAsPromised("only one server answered"))
        print(f"{caller.name:<18}{one:>12}{two:>12}{len(caller.failures):>8}")
    for caller in callers:
        for error in caller.failures[:3]:
            print(f"{caller.name}: {type(error).__name__}: {error}", file=sys.stderr)
    failed = sum(len(caller.failures) for caller in callers)
    if failed:
        print(f"nginx said last:\n{log[-4000:]}", file=sys.stderr)
    answered = sum(caller.answers.total() for caller in callers)
    print(f"{answered} answers, {failed} failed calls, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
