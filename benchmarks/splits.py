"""Cost of a traffic split to its callers: python -m benchmarks.splits [NAME]...

idle    what a call pays for there being splits while none is set, timed alone, in microseconds
shadow  latency of calls (p50, p99) and server CPU of a call while every image is computed by a
        candidate as well, against none; timed engine (one device for both variants), open loop
space   the cosine that embeddings of unrelated weights have, as the server tells it: two networks
        of torchvision's random weights, a made-up photo as JPEGs of several lengths

The image is the JPEG of 110 KB that `overhead.py` makes. The server is of its own, on this machine
(Linux); turns with and without a split alternate, figures are medians over turns.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc

from benchmarks.overhead import CLASSIFY, photo
from benchmarks.process import cpu_s, server
from resnet50.v1 import image_pb2, inference_pb2, variant_pb2, variant_pb2_grpc

TOKEN = "t" * 43
METADATA = (("authorization", f"Bearer {TOKEN}"),)
VARIANT, CANDIDATE = "IMAGENET1K_V2", "IMAGENET1K_V1"
ENGINE = ("--engine", "timed", "--timed-alpha-ms", "2", "--timed-beta-ms", "0.5")
BOTH = ("--variants", VARIANT, "--variants", CANDIDATE)
RATES = (20, 60)
SECONDS = 10.0
TURNS = 5
PHOTOS = 10


async def measure_idle() -> None:
    """Time what is done for a call where no split is set."""
    from resnet50_server.context import RequestContext
    from resnet50_server.rollout.router import TrafficRouter

    nothing: Any = SimpleNamespace()
    traffic = TrafficRouter(nothing, nothing)
    call = RequestContext("Classify", "id", ())
    variant: Any = SimpleNamespace(spec=SimpleNamespace(name=VARIANT))
    task: Any = SimpleNamespace(variant=variant)

    def one() -> None:
        traffic.resolve(call, variant, with_embedding=False)
        traffic.instrument(task, call, b"")
        traffic.call_ended(call, "OK", None)

    runs = 100_000
    took_us = min(timeit.repeat(one, number=runs, repeat=5)) / runs * 1e6
    print(f"idle    {took_us:.2f} µs a call")


async def call_openly(channel: grpc.aio.Channel, request: bytes, rate: float) -> list[float]:
    """Call at random moments, `rate` a second; return how long each took, in ms."""
    classify: Any = channel.unary_unary(CLASSIFY)
    draw, took = random.Random(0), []

    async def one() -> None:
        began = time.perf_counter()
        await classify(request, metadata=METADATA)
        took.append((time.perf_counter() - began) * 1e3)

    loop, calls = asyncio.get_running_loop(), []
    due = loop.time()
    ends = due + SECONDS
    while (due := due + draw.expovariate(rate)) < ends:
        await asyncio.sleep(due - loop.time())
        calls.append(asyncio.create_task(one()))
    await asyncio.gather(*calls)
    return sorted(took)


@contextmanager
def operated(*options: str) -> Iterator[tuple[str, int]]:
    """Run a server whose variants may be changed with `TOKEN`."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.toml"
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        tokens.write_text(
            f'[[token]]\nname = "bench"\nsha256 = "{digest}"\nscopes = ["admin", "infer"]\n'
        )
        with server(*options, "--variants-dir", folder, "--tokens-file", str(tokens)) as served:
            yield served


async def split(stub: variant_pb2_grpc.VariantServiceStub, variant: str, candidate: str) -> None:
    """Let the candidate compute all of the variant's images."""
    wanted = variant_pb2.TrafficSplit(variant=variant, candidate=candidate, shadow_percent=100.0)
    await stub.SetTrafficSplit(variant_pb2.SetTrafficSplitRequest(split=wanted), metadata=METADATA)


async def measure_space() -> None:
    """Compare weights that have nothing to do with each other."""
    both = ("--variants", "a=random:0", "--variants", "b=random:1")
    with operated(*both, "--engine", "torch", "--max-batch-size", "1") as (address, _):
        async with grpc.aio.insecure_channel(address) as channel:
            variants = variant_pb2_grpc.VariantServiceStub(channel)
            await split(variants, "a", "b")
            for number in range(PHOTOS):
                image = image_pb2.Image(encoded=photo(20_000 + 10_000 * number))
                request = inference_pb2.ClassifyRequest(image=image).SerializeToString()
                classify: Any = channel.unary_unary(CLASSIFY)
                await classify(request, metadata=METADATA)
            report = variant_pb2.TrafficReport()
            while report.comparison.images < PHOTOS:
                await asyncio.sleep(0.1)
                listed = await variants.ListTrafficSplits(
                    variant_pb2.ListTrafficSplitsRequest(), metadata=METADATA
                )
                (report,) = listed.reports
    mean, least = report.comparison.embedding_cosine, report.comparison.min_embedding_cosine
    print(f"space   mean cosine {mean:.2f}, smallest {least:.2f}; {PHOTOS} images")


async def measure_shadow() -> None:
    """Take turns with and without a split on one server."""
    request = inference_pb2.ClassifyRequest(
        options=inference_pb2.ClassifyOptions(variant=VARIANT),
        image=image_pb2.Image(encoded=photo()),
    ).SerializeToString()
    with operated(*ENGINE, *BOTH) as (address, pid):
        async with grpc.aio.insecure_channel(address) as channel:
            for rate in RATES:
                await _at(rate, channel, pid, request)


async def _at(rate: float, channel: grpc.aio.Channel, pid: int, request: bytes) -> None:
    variants = variant_pb2_grpc.VariantServiceStub(channel)
    found: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    compared = skipped = 0
    for turn in range(TURNS + 1):
        for shadowed in (False, True):
            if shadowed:
                await split(variants, VARIANT, CANDIDATE)
            before = cpu_s(pid)
            took = await call_openly(channel, request, rate)
            cpu_ms = (cpu_s(pid) - before) / len(took) * 1e3
            if shadowed:
                ended = await variants.DeleteTrafficSplit(
                    variant_pb2.DeleteTrafficSplitRequest(variant=VARIANT), metadata=METADATA
                )
                if turn:
                    compared += ended.report.comparison.images
                    skipped += ended.report.skipped
            if turn:  # the first warms up
                found[shadowed].append((took[len(took) // 2], took[int(0.99 * len(took))], cpu_ms))
    for shadowed, turns in found.items():
        p50, p99, cpu = (statistics.median(each) for each in zip(*turns, strict=True))
        name = "100%" if shadowed else "none"
        print(f"shadow  {rate}/s, {name}: p50 {p50:.1f}, p99 {p99:.1f}, CPU {cpu:.2f} ms a call")
    print(f"shadow  {rate}/s: {compared} images compared, {skipped} skipped")


MEASURES = {"idle": measure_idle, "shadow": measure_shadow, "space": measure_space}

if __name__ == "__main__":
    for name in sys.argv[1:] or MEASURES:
        asyncio.run(MEASURES[name]())
