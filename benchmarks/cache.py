"""Cost and gain of the response cache: python -m benchmarks.cache [NAME]...

digest  SHA-256 against BLAKE2b, by the length of the image
cpu     server CPU of a call and of a frame that misses or hits, against a server without a cache;
        decoded, constant answer
torch   p50 of one call after the other that hits, against one that is computed by PyTorch on the
        CPU
memory  what a full cache holds against its bound, and how long the loop is kept up by it

The image is a JPEG of 110 KB that is made here. Each starts servers of its own on this machine
(Linux). Figures are ratios within one run, medians over interleaved turns; absolute times are those
of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from benchmarks.measures import parser_of
from benchmarks.overhead import (
    CLASSIFY,
    IN_FLIGHT,
    STARTS,
    TURNS,
    cpu_of,
    photo,
    ratio,
    stream_replies,
)
from benchmarks.process import DECODING, resident_kib, server
from resnet50.v1 import image_pb2, inference_pb2, result_pb2

CACHE = ("--response-cache-bytes", str(64 * 2**20))
CALLS = 800
SERIAL_CALLS = 40
LENGTHS = (2_000, 20_000, 110_000, 160_000, 1_000_000, 10_000_000)
USES = {
    "computed": result_pb2.CACHE_USE_UNSPECIFIED,
    "missed": result_pb2.CACHE_USE_UNSPECIFIED,
    "hit": result_pb2.CACHE_USE_HIT,
}
ENTRIES = {"5 categories": 0, "an embedding": 2048}
BOUND = 256 * 2**20


def photos(distinct: bool) -> Iterator[image_pb2.Image]:
    """Give the same photo for ever; if they are to be distinct, each with a comment of its own."""
    file = photo()
    for number in itertools.count(time.monotonic_ns() if distinct else 0):
        comment = number.to_bytes(8, "big") if distinct else bytes(8)
        yield image_pb2.Image(encoded=file[:2] + b"\xff\xfe\x00\x0a" + comment + file[2:])


async def call_unary(channel: grpc.aio.Channel, images: list[image_pb2.Image], use: int) -> None:
    """Classify all of them, `IN_FLIGHT` at a time."""
    classify: Any = channel.unary_unary(CLASSIFY)
    left = iter([inference_pb2.ClassifyRequest(image=one).SerializeToString() for one in images])

    async def work() -> None:
        for number, request in enumerate(left):
            reply = await classify(request)
            if not number % 50:
                assert inference_pb2.ClassifyResponse.FromString(reply).timing.cache == use

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def call_stream(channel: grpc.aio.Channel, images: list[image_pb2.Image], use: int) -> None:
    """Send all of them on one stream, at most `IN_FLIGHT` unanswered."""
    answered = 0
    async for reply in stream_replies(channel, images):
        answered += 1
        if not answered % 50:
            assert inference_pb2.ClassifyStreamResponse.FromString(reply).timing.cache == use
    assert answered == len(images)


async def measure_cpu() -> None:
    """Take turns between servers with and without a cache; each is started anew."""
    spent: dict[str, list[float]] = {}
    for _ in range(STARTS):
        with server(*DECODING) as plain, server(*DECODING, *CACHE) as caching:
            async with (
                grpc.aio.insecure_channel(plain[0]) as to_plain,
                grpc.aio.insecure_channel(caching[0]) as to_caching,
            ):
                same, others = photos(distinct=False), photos(distinct=True)
                await call_unary(to_caching, [next(same)], USES["missed"])
                for turn in range(TURNS + 1):
                    for shape, call in (("call", call_unary), ("frame", call_stream)):
                        for name, pid, channel, images in (
                            ("computed", plain[1], to_plain, same),
                            ("missed", caching[1], to_caching, others),
                            ("hit", caching[1], to_caching, same),
                        ):
                            sent = list(itertools.islice(images, CALLS))
                            used = await cpu_of(pid, CALLS, call(channel, sent, USES[name]))
                            if turn:  # the first warms up
                                spent.setdefault(f"{shape} {name}", []).append(used)
    for name, each in spent.items():
        print(f"cpu     {name}: {statistics.median(each):.3f} ms")
    for shape in ("call", "frame"):
        for name in ("missed", "hit"):
            found = ratio(spent[f"{shape} {name}"], spent[f"{shape} computed"])
            print(f"cpu     {shape} {name} / computed without a cache: {found}")


async def measure_torch() -> None:
    """Call one after the other, in turns, a server that computes and one that has the answer."""
    engine = ("--variants", "untrained=random:0", "--engine", "torch", "--device", "cpu")
    took: dict[str, list[float]] = {"computed": [], "hit": []}
    with server(*engine) as plain, server(*engine, *CACHE) as caching:
        async with (
            grpc.aio.insecure_channel(plain[0]) as to_plain,
            grpc.aio.insecure_channel(caching[0]) as to_caching,
        ):
            image = next(photos(distinct=False))
            request = inference_pb2.ClassifyRequest(image=image).SerializeToString()
            classify: Any = to_caching.unary_unary(CLASSIFY)
            await classify(request)
            for turn in range(TURNS + 1):
                for name, channel in (("computed", to_plain), ("hit", to_caching)):
                    times, classify = [], channel.unary_unary(CLASSIFY)
                    for _ in range(SERIAL_CALLS):
                        started = time.perf_counter()
                        reply = await classify(request)
                        times.append((time.perf_counter() - started) * 1e3)
                        parsed = inference_pb2.ClassifyResponse.FromString(reply)
                        assert parsed.timing.cache == USES[name]
                    if turn:
                        took[name].append(statistics.median(times))
    for name, each in took.items():
        print(f"torch   {name}: p50 {statistics.median(each):.2f} ms")
    print(f"torch   computed / hit: {ratio(took['computed'], took['hit'])}")


async def measure_digest() -> None:
    """Time both on random bytes."""
    for length in LENGTHS:
        content = os.urandom(length)
        times: dict[str, list[float]] = {"sha256": [], "blake2b": []}
        for _ in range(101):
            for name, each in times.items():
                started = time.perf_counter()
                hashlib.new(name, content).digest()
                each.append((time.perf_counter() - started) * 1e6)
        sha, blake = (statistics.median(each) for each in times.values())
        print(
            f"digest  {length:8} bytes: sha256 {sha:7.1f} us, blake2b {blake:7.1f} us,"
            f" blake2b / sha256 {blake / sha:.2f}"
        )


async def measure_memory() -> None:
    """Fill a cache in a process of its own for each kind of answer."""
    for name in ENTRIES:
        subprocess.run([sys.executable, "-m", "benchmarks.cache", "--fill", name], check=True)


async def fill(name: str) -> None:
    """Fill a cache three times over; then use it, and drop it. Times are of the CPU."""
    from resnet50_server.batching.result import Result
    from resnet50_server.inference.response_cache import CacheKey, ResponseCache

    dimension, cache = ENTRIES[name], ResponseCache(BOUND)
    embedding = np.ones(dimension, dtype=np.float32) if dimension else None
    indices, probabilities = np.arange(5), np.ones(5, dtype=np.float32)
    result = Result(indices, probabilities, embedding, 0.0, 0.0, 1)
    numbers = iter(range(10**9))

    def key_of(number: int) -> CacheKey:
        digest = hashlib.sha256(str(number).encode()).digest()
        return CacheKey("v", "v", digest, 5, dimension > 0)

    async def compute() -> Result:
        return result

    async def keep() -> float:
        key = key_of(next(numbers))
        started = time.thread_time()
        await cache.get_or_compute(key, compute)
        return time.thread_time() - started

    times = np.ones(10**7)
    gc.collect()
    gc.freeze()  # what was imported is not what is measured
    before, count = resident_kib(os.getpid()), 0
    while not cache.evictions:
        await keep()
        count += 1
    for number in range(2 * count):
        times[number] = await keep()
    gc.collect()
    kept = (resident_kib(os.getpid()) - before) * 1024
    started = time.thread_time()
    gc.collect()
    collecting = time.thread_time() - started
    found = []
    newest = next(numbers)
    for number in range(newest - 1000, newest):
        key = key_of(number)
        started = time.thread_time()
        await cache.get_or_compute(key, compute)
        found.append(time.thread_time() - started)
    assert cache.stats["v"].hits == len(found)
    turns = []
    cache.drop("v")
    while len(cache):
        started = time.thread_time()
        await asyncio.sleep(0)
        turns.append(time.thread_time() - started)
    times = np.sort(times[: 2 * count])
    print(
        f"memory  {name}: {count} answers, {BOUND / count:.0f} bytes each, hold"
        f" {kept / BOUND:.2f} of the bound; kept in {np.median(times) * 1e6:.1f} us, p99.9"
        f" {times[int(0.999 * len(times))] * 1e3:.2f}, longest {times[-1] * 1e3:.1f} ms; found in"
        f" {statistics.median(found) * 1e6:.1f} us; garbage collection {collecting * 1e3:.1f} ms;"
        f" dropped in {len(turns)} turns of at most {max(turns) * 1e3:.1f} ms"
    )


def main() -> None:
    """Run what was asked for, or everything."""
    measures = {
        "digest": measure_digest,
        "cpu": measure_cpu,
        "torch": measure_torch,
        "memory": measure_memory,
    }
    parser = parser_of(__doc__, measures)
    parser.add_argument("--fill", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill is not None:
        asyncio.run(fill(arguments.fill))
        return
    for name in arguments.what or measures:
        asyncio.run(measures[name]())


if __name__ == "__main__":
    main()
