"""Load generator for gRPC and HTTP alike, a process of its own.

It reads a `Load` as JSON per line of stdin, and prints a JSON object per line: `latencies_ms` of
the calls that ended in time, `errors` and `duration_s`; for a load of zero seconds, the `replies`
of one call per image, as hexadecimal text; or the `failure` of such a call.
Requests are encoded beforehand and responses are not parsed, so that it costs every peer the same.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import uvloop

from benchmarks.compare.wires import WIRES

# A call that takes longer is an error.
TIMEOUT_S = 30.0
FAILURES = (grpc.RpcError, aiohttp.ClientError, asyncio.TimeoutError, OSError)
Call = Callable[[int], Awaitable[bytes]]


@dataclass(frozen=True)
class Load:
    """Calls to a server.

    Attributes:
        address: Host and port.
        wire: Key of `WIRES`.
        images: JPEG files, sent in turn.
        seconds: Duration of the measurement; 0 for one call per image.
        clients: Concurrent calls of a closed loop; each waits for its response.
        rate: Poisson arrivals per second of an open loop instead, if above 0.
        path: Path of the URL, if it is not the wire's.
    """

    address: str
    wire: str
    images: tuple[str, ...]
    seconds: float
    clients: int = 1
    rate: float = 0.0
    path: str = ""

    def to_json(self) -> str:
        """Return the line that stdin expects."""
        return json.dumps(dataclasses.asdict(self))


async def open_call(load: Load, stack: AsyncExitStack) -> Call:
    """Return a function that asks about the image of a number."""
    wire = WIRES[load.wire]
    jpegs = [Path(name).read_bytes() for name in load.images]
    requests = [wire.encode(jpeg) for jpeg in jpegs]
    path = load.path or wire.path
    if wire.headers is None:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(load.address))
        method: Any = channel.unary_unary(path)

        async def call_grpc(number: int) -> bytes:
            reply: bytes = await method(requests[number % len(requests)], timeout=TIMEOUT_S)
            return reply

        return call_grpc
    headers = [wire.headers(jpeg) for jpeg in jpegs]
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            raise_for_status=True,
        )
    )
    url = f"http://{load.address}{path}"

    async def call_http(number: int) -> bytes:
        number %= len(requests)
        async with session.post(url, data=requests[number], headers=headers[number]) as response:
            return await response.read()

    return call_http


class Recorder:
    """Latencies and errors of calls."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._numbers = itertools.count()
        self.latencies_ms: list[float] = []
        self.errors: dict[str, int] = {}

    async def measure(self, intended: float) -> None:
        """Make a call; its latency counts from the intended time (`time.perf_counter`)."""
        try:
            await self._call(next(self._numbers))
        except FAILURES as error:
            name = error.code().name if isinstance(error, grpc.RpcError) else type(error).__name__
            self.errors[name] = self.errors.get(name, 0) + 1
        else:
            self.latencies_ms.append((time.perf_counter() - intended) * 1e3)


async def closed(recorder: Recorder, clients: int, seconds: float) -> None:
    """Keep `clients` calls in flight."""
    ends = time.perf_counter() + seconds

    async def work() -> None:
        while (now := time.perf_counter()) < ends:
            await recorder.measure(now)

    await asyncio.gather(*(work() for _ in range(clients)))


async def opened(recorder: Recorder, rate: float, seconds: float) -> None:
    """Start calls at random times, however long the earlier ones take."""
    draw = random.Random(0)
    started = at = time.perf_counter()
    calls = []
    while (at := at + draw.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        calls.append(asyncio.create_task(recorder.measure(at)))
    await asyncio.gather(*calls)


async def run(load: Load) -> dict[str, Any]:
    """Return what the process prints."""
    async with AsyncExitStack() as stack:
        call = await open_call(load, stack)
        if not load.seconds:
            return {"replies": [(await call(number)).hex() for number in range(len(load.images))]}
        recorder = Recorder(call)
        # The first call opens a connection.
        await recorder.measure(time.perf_counter())
        recorder.latencies_ms.clear()
        started = time.perf_counter()
        if load.rate > 0:
            await opened(recorder, load.rate, load.seconds)
        else:
            await closed(recorder, load.clients, load.seconds)
        return {
            "latencies_ms": recorder.latencies_ms,
            "errors": recorder.errors,
            "duration_s": time.perf_counter() - started,
        }


def main() -> None:
    """Run the loads of stdin."""
    for line in sys.stdin:
        try:
            output = uvloop.run(run(Load(**json.loads(line))))
        except FAILURES as error:
            output = {"failure": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(output), flush=True)


if __name__ == "__main__":
    main()
