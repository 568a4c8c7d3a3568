"""Server CPU of another checkout against this one: python -m benchmarks.overhead_against CHECKOUT.

Raw pixels and the null engine, as `benchmarks.overhead`: a unary call, a frame on a stream, and an
image in a call about 16. Both servers and a bare grpc.aio echo take turns in one run, and the order
alternates; figures are medians of the ratios of pairs. --loaded gives both a device that computes
batches of 8.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from benchmarks.echo import echo_server
from benchmarks.overhead import (
    CALLS,
    LOADED,
    STARTS,
    TURNS,
    call_batch,
    call_stream,
    call_unary,
    cpu_of,
    ratio,
    undecoded,
)
from benchmarks.process import server
from resnet50.v1 import inference_pb2

THIS = Path(__file__).parents[1]
ECHO = "bare echo"
NULL = ("--engine", "null")


async def measure(checkouts: dict[str, Path], options: tuple[str, ...], starts: int) -> None:
    """Print the figures of each.

    Args:
        checkouts: The trees by their names; the first is the one that others are held against.
        options: Of the servers.
        starts: How often all of them are started.
    """
    image = undecoded()
    request = inference_pb2.ClassifyRequest(image=image).SerializeToString()
    shapes: dict[str, tuple[Callable[..., Awaitable[None]], object]] = {
        "unary": (call_unary, request),
        "stream": (call_stream, image),
        "batch": (call_batch, image),
    }
    spent: dict[tuple[str, str], list[float]] = {}
    for _ in range(starts):
        async with AsyncExitStack() as stack:
            targets: dict[str, tuple[int, Any]] = {}
            for name, tree in (*checkouts.items(), (ECHO, None)):
                starting = echo_server() if tree is None else server(*options, checkout=tree)
                address, pid = stack.enter_context(starting)
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
                targets[name] = pid, channel
            for turn in range(TURNS + 1):
                for shape, (call, content) in shapes.items():
                    for name in sorted(targets, reverse=bool(turn % 2)):
                        pid, channel = targets[name]
                        used = await cpu_of(pid, CALLS, call(channel, content, CALLS))
                        if turn:  # the first warms up
                            spent.setdefault((shape, name), []).append(used)
    first, *others = checkouts
    for shape in shapes:
        for name in checkouts:
            found = ratio(spent[shape, name], spent[shape, ECHO])
            median = statistics.median(spent[shape, name])
            print(f"{shape:7} {name}: {median:.3f} ms, / {ECHO}: {found}")
        for name in others:
            found = ratio(spent[shape, name], spent[shape, first])
            print(f"{shape:7} {name} / {first}: {found}, {starts * TURNS} pairs")


def main() -> None:
    """Compare two checkouts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="root of the other tree")
    parser.add_argument(
        "--starts", type=int, default=STARTS, help=f"of each; {TURNS} pairs a start"
    )
    parser.add_argument("--loaded", action="store_true", help="batches of 8 on a slow device")
    arguments = parser.parse_args()
    checkouts = {"before": arguments.checkout.resolve(), "now": THIS}
    asyncio.run(measure(checkouts, LOADED if arguments.loaded else NULL, arguments.starts))


if __name__ == "__main__":
    main()
