"""Cost that the server adds to gRPC: python -m benchmarks.overhead [NAME]...

unary   server CPU of a unary call, null engine, against a bare grpc.aio echo of the same messages
stream  server CPU of a frame on a stream against a unary call, and against a bare bidi echo
batch   server CPU of an image in a call about 16 against a unary call, and against a bare echo
floor   CPU of a servicer that only reads images and builds answers, for all three, against the echo
loaded  all three with a device that computes batches of 8, as long as it is busy
serial  p50 of one call after the other, less the engine's time, against the bare echo's
decode  images a second of the decode pool with two threads against one
lag     how late the server's event loop wakes while its decode threads are saturated
metrics server CPU of a unary call with metrics against without, null engine
import  CPU of a Python process that imports the SDK's client, against gRPC and NumPy, and against
        these with protobuf and the stubs
tracing server CPU of a unary call, null engine, with 1% and with all of the calls traced, against
        none; spans go to a collector in this process (needs the extra [otel])

`serial`, `decode` and `lag` send a JPEG of 110 KB that is made here. The others send raw pixels of
161 KB that only have to be cropped: the cost of decoding would hide the rest. Each starts servers
of its own on this machine (Linux). Figures are ratios within one run, medians over interleaved
turns; absolute times are those of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
from PIL import Image

from benchmarks.echo import echo_server
from benchmarks.measures import parser_of
from benchmarks.process import cpu_s, server
from resnet50.v1 import image_pb2, inference_pb2

JPEG_BYTES = 110_000
CLASSIFY = "/resnet50.v1.InferenceService/Classify"
CLASSIFY_STREAM = "/resnet50.v1.InferenceService/ClassifyStream"
CLASSIFY_BATCH = "/resnet50.v1.InferenceService/ClassifyBatch"
IN_FLIGHT = 16
# Images of a batch call, and such calls at a time: 2.6 MB each.
BATCH_IMAGES, BATCHES_IN_FLIGHT = 16, 4
# A device that is slower than the server, so that its batches are full.
SLOW = ("--engine", "timed", "--timed-alpha-ms", "8", "--timed-beta-ms", "0")
LOADED = (*SLOW, "--max-batch-size", "8")
SHAPES = ("unary", "stream", "batch")
STARTS = 3
TURNS = 5
CALLS = 1120
SERIAL_CALLS = 300
DECODED = 200
LAG_SECONDS = 20.0
IMPORTS = 15
# The figures of `stream` hold those of `unary`.
DEFAULT = ("stream", "metrics", "serial", "decode", "lag", "import")


def photo(length: int = JPEG_BYTES) -> bytes:
    """Return a JPEG of 512 x 384 with detail at all scales, as close to `length` as may be."""
    draw = np.random.default_rng(0)
    canvas = np.zeros((384, 512, 3))
    for octave in range(1, 9):
        noise = draw.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        scaled = Image.fromarray(noise).resize((512, 384), Image.Resampling.BICUBIC)
        canvas += np.asarray(scaled, dtype=np.float64) / octave
    canvas = (canvas - canvas.min()) / np.ptp(canvas) * 255
    image = Image.fromarray(np.rint(canvas).astype(np.uint8))
    files = []
    for quality in range(50, 100):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return min(files, key=lambda file: abs(len(file) - length))


def undecoded() -> image_pb2.Image:
    """Return raw pixels that only have to be cropped; on the event loop, as that takes no time."""
    side = 232  # what the default variant resizes the shorter side to
    draw = np.random.default_rng(0)
    raw = image_pb2.RawImage(
        width=side,
        height=side,
        pixel_format=image_pb2.PIXEL_FORMAT_RGB,
        pixels=draw.integers(0, 256, (side, side, 3), dtype=np.uint8).tobytes(),
    )
    return image_pb2.Image(raw=raw)


async def call_unary(channel: grpc.aio.Channel, request: bytes, calls: int) -> None:
    """Call, `IN_FLIGHT` at a time; messages stay bytes here, so that the caller costs little."""
    classify = channel.unary_unary(CLASSIFY)

    async def work() -> None:
        for _ in range(calls // IN_FLIGHT):
            await classify(request)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def stream_replies(
    channel: grpc.aio.Channel, images: Iterable[image_pb2.Image]
) -> AsyncIterator[bytes]:
    """Send images on one stream, at most `IN_FLIGHT` unanswered; yield the replies."""
    window = asyncio.Semaphore(IN_FLIGHT)

    async def requests() -> AsyncIterator[bytes]:
        yield inference_pb2.ClassifyStreamRequest(
            config=inference_pb2.ClassifyStreamConfig(max_in_flight=IN_FLIGHT)
        ).SerializeToString()
        for number, image in enumerate(images):
            await window.acquire()
            yield inference_pb2.ClassifyStreamRequest(
                frame=inference_pb2.Frame(frame_id=number, image=image)
            ).SerializeToString()

    stream: Any = channel.stream_stream(CLASSIFY_STREAM)
    async for reply in stream(requests()):
        window.release()
        yield reply


async def call_stream(channel: grpc.aio.Channel, image: image_pb2.Image, frames: int) -> None:
    """Send one image as many frames of a stream."""
    answered = 0
    async for reply in stream_replies(channel, itertools.repeat(image, frames)):
        answered += 1
        if not answered % 100:  # a stream answers errors in place
            parsed = inference_pb2.ClassifyStreamResponse.FromString(reply)
            assert parsed.HasField("classification"), parsed
    assert answered == frames


async def call_batch(channel: grpc.aio.Channel, image: image_pb2.Image, images: int) -> None:
    """Send batches of `BATCH_IMAGES`, `BATCHES_IN_FLIGHT` at a time."""
    classify = channel.unary_unary(CLASSIFY_BATCH)
    request = inference_pb2.ClassifyBatchRequest(images=[image] * BATCH_IMAGES)
    content = request.SerializeToString()

    async def work() -> None:
        for _ in range(images // BATCH_IMAGES // BATCHES_IN_FLIGHT):
            reply = inference_pb2.ClassifyBatchResponse.FromString(await classify(content))
            assert all(one.HasField("classification") for one in reply.results), reply

    await asyncio.gather(*(work() for _ in range(BATCHES_IN_FLIGHT)))


def null_server() -> AbstractContextManager[tuple[str, int]]:
    """Run the server with an engine that takes no time."""
    return server("--engine", "null")


async def cpu_of(pid: int, calls: int, work: Awaitable[None]) -> float:
    """Return the CPU that a process used while `work` ran, in ms a call."""
    before = cpu_s(pid)
    await work
    return (cpu_s(pid) - before) / calls * 1e3


def ratio(over: list[float], under: list[float]) -> str:
    """Say what the median of the ratios of pairs is, and their range."""
    ratios = [one / other for one, other in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


async def measure_cpu(
    shapes: tuple[str, ...],
    start: Callable[[], AbstractContextManager[tuple[str, int]]],
    name: str = "server",
) -> None:
    """Take turns between the server and the echo, so that a machine that drifts does not matter.

    Both are started several times: which core their threads land on lasts as long as they live.

    Args:
        shapes: The calls to make.
        start: Starts the server; gives its address and process id.
        name: The server's, in what is printed.
    """
    spent: dict[str, list[float]] = {}
    for _ in range(STARTS):
        await measure_cpu_once(shapes, start, spent)
    for of, each in spent.items():
        print(f"cpu     {of.replace('server', name)}: {statistics.median(each):.3f} ms")
    pairs = f"{STARTS * TURNS} pairs, {STARTS} starts"
    for shape in shapes:
        found = ratio(spent[f"server {shape}"], spent[f"echo {shape}"])
        print(f"{shape:7} {name} / bare echo: {found}, {pairs}")
    for shape in shapes[1:]:
        found = ratio(spent[f"server {shape}"], spent["server unary"])
        print(f"{shape:7} image / unary call, {name}: {found}, {pairs}")
        found = ratio(spent[f"echo {shape}"], spent["echo unary"])
        print(f"{shape:7} the same of the bare echo: {found}")


async def measure_cpu_once(
    shapes: tuple[str, ...],
    start: Callable[[], AbstractContextManager[tuple[str, int]]],
    spent: dict[str, list[float]],
) -> None:
    """Add `TURNS` figures of each, in ms a call."""
    image = undecoded()
    request = inference_pb2.ClassifyRequest(image=image).SerializeToString()
    work: dict[str, tuple[Callable[..., Awaitable[None]], object]] = {
        "unary": (call_unary, request),
        "stream": (call_stream, image),
        "batch": (call_batch, image),
    }
    with start() as served, echo_server() as bare:
        async with (
            grpc.aio.insecure_channel(served[0]) as to_server,
            grpc.aio.insecure_channel(bare[0]) as to_echo,
        ):
            for turn in range(TURNS + 1):
                for shape in shapes:
                    for name, pid, channel in (
                        ("server", served[1], to_server),
                        ("echo", bare[1], to_echo),
                    ):
                        call, content = work[shape]
                        used = await cpu_of(pid, CALLS, call(channel, content, CALLS))
                        if turn:  # the first warms up
                            spent.setdefault(f"{name} {shape}", []).append(used)


async def measure_metrics() -> None:
    """Take turns between a server that counts and one that does not; each is started anew."""
    request = inference_pb2.ClassifyRequest(image=undecoded())
    content = request.SerializeToString()
    spent: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(STARTS):
        with (
            server("--engine", "null", "--metrics-listen", "127.0.0.1:0") as counting,
            server("--engine", "null") as plain,
        ):
            async with (
                grpc.aio.insecure_channel(counting[0]) as to_counting,
                grpc.aio.insecure_channel(plain[0]) as to_plain,
            ):
                for turn in range(TURNS + 1):
                    for name, pid, channel in (
                        ("with", counting[1], to_counting),
                        ("without", plain[1], to_plain),
                    ):
                        used = await cpu_of(pid, CALLS, call_unary(channel, content, CALLS))
                        if turn:  # the first warms up
                            spent[name].append(used)
    for name, each in spent.items():
        print(f"metrics server CPU of a unary call {name}: {statistics.median(each):.3f} ms")
    found = ratio(spent["with"], spent["without"])
    print(f"metrics with / without: {found}, {STARTS * TURNS} pairs, {STARTS} starts")


async def measure_serial() -> None:
    """Call one after the other, with raw pixels and with a JPEG: the server, and the echo."""
    images = {"raw": undecoded(), "JPEG": image_pb2.Image(encoded=photo())}
    figures: dict[tuple[str, str], list[float]] = {}
    with server("--engine", "null") as served, echo_server() as bare:
        async with (
            grpc.aio.insecure_channel(served[0]) as to_server,
            grpc.aio.insecure_channel(bare[0]) as to_echo,
        ):
            for turn in range(TURNS + 1):
                for kind, image in images.items():
                    request = inference_pb2.ClassifyRequest(image=image).SerializeToString()
                    for name, channel in (("server", to_server), ("echo", to_echo)):
                        took_ms = await serial_ms(channel, request, less_engine=name == "server")
                        if turn:
                            figures.setdefault((name, kind), []).append(took_ms)
    for (name, kind), each in figures.items():
        print(f"serial  {name}, {kind}: p50 {statistics.median(each):.3f} ms")
    for kind in images:
        found = ratio(figures["server", kind], figures["echo", kind])
        print(f"serial  {kind}: server / bare echo: {found}")


async def serial_ms(channel: grpc.aio.Channel, request: bytes, *, less_engine: bool) -> float:
    """Return the p50 of calls one after the other, in ms; without the engine's time if wanted."""
    classify = channel.unary_unary(CLASSIFY)
    times = []
    for _ in range(SERIAL_CALLS):
        started = time.perf_counter()
        reply = await classify(request)
        took_ms = (time.perf_counter() - started) * 1e3
        timing = inference_pb2.ClassifyResponse.FromString(reply).timing
        times.append(took_ms - (timing.compute_us / 1e3 if less_engine else 0.0))
    return statistics.median(times)


async def measure_decode() -> None:
    """Decode through the pool itself, two threads and one in turn."""
    from functools import partial

    from torchvision.models import ResNet50_Weights

    from resnet50_server.images.decode import decode
    from resnet50_server.images.limits import ImageLimits
    from resnet50_server.images.transform import Transform
    from resnet50_server.inference.decode_pool import DecodePool

    transform = Transform.of(ResNet50_Weights.DEFAULT.transforms())
    call = partial(decode, photo(), transform, ImageLimits())
    pools = {threads: DecodePool(threads) for threads in (1, 2)}
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(TURNS + 1):
        for threads, pool in pools.items():
            started = time.perf_counter()
            await asyncio.gather(*(pool.submit(call) for _ in range(DECODED)))
            if turn:
                rates[threads].append(DECODED / (time.perf_counter() - started))
    for threads, pool in pools.items():
        print(f"decode  {threads} threads: {statistics.median(rates[threads]):.0f} images/s")
        pool.close()
    print(f"decode  2 threads / 1: {ratio(rates[2], rates[1])}")


async def measure_lag() -> None:
    """Watch the loop of a server in this process while another process calls it."""
    from resnet50_server.server import Server
    from resnet50_server.settings import Settings

    running = Server(
        Settings(
            listen=["127.0.0.1:0"],
            variants=["IMAGENET1K_V2"],
            engine="timed",
            timed_alpha_ms=0,
            timed_beta_ms=0,
        )
    )
    await running.start()
    load = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.overhead", "--load", running.addresses[0]]
    )
    loop = asyncio.get_running_loop()
    try:
        await asyncio.sleep(3.0)
        ends, lags = loop.time() + LAG_SECONDS, []
        while (now := loop.time()) < ends:
            await asyncio.sleep(0.001)
            lags.append((loop.time() - now - 0.001) * 1e3)
    finally:
        load.terminate()
        load.wait()
        await running.stop()
    lags.sort()
    p50, p99 = lags[len(lags) // 2], lags[int(0.99 * len(lags))]
    print(f"lag     p50 {p50:.2f}, p99 {p99:.2f}, max {lags[-1]:.2f} ms; {len(lags)} looks")


def import_cpu_s(program: str) -> float:
    """Return the CPU seconds of a Python process that runs a program, from compiled files."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def measure_import() -> None:
    """Start Python processes in turn; the first of each fills the caches of compiled files."""
    programs = {
        "the SDK": "from resnet50_client import Client",
        "gRPC and NumPy": "import grpc, numpy",
        "these, protobuf and the stubs": "import grpc, numpy, google.protobuf; "
        "from resnet50.v1 import image_pb2, inference_pb2_grpc, result_pb2, variant_pb2_grpc",
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(IMPORTS + 1):
        for name, program in programs.items():
            taken_s = import_cpu_s(program)
            if turn:
                times[name].append(taken_s)
    ours, *others = times.values()
    print(f"import  the SDK {statistics.median(ours) * 1e3:.0f} ms of CPU, median of {IMPORTS}")
    for name, bare in zip(list(times)[1:], others, strict=True):
        ratios = [one / two for one, two in zip(ours, bare, strict=True)]
        print(
            f"        {name} {statistics.median(bare) * 1e3:.0f} ms; ratio"
            f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[int]]]:
    """Take traces in; give the endpoint, and the numbers of spans as they come."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    counts: list[int] = []

    class Counter(trace_service_pb2_grpc.TraceServiceServicer):
        async def Export(self, request, context):
            counts.extend(
                len(scope.spans) for one in request.resource_spans for scope in one.scope_spans
            )
            return trace_service_pb2.ExportTraceServiceResponse()

    taking = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Counter(), taking)
    port = taking.add_insecure_port("127.0.0.1:0")
    await taking.start()
    try:
        yield f"http://127.0.0.1:{port}", counts
    finally:
        await taking.stop(0)


async def measure_tracing() -> None:
    """Take turns between servers that differ in what they trace."""
    request = inference_pb2.ClassifyRequest(image=undecoded()).SerializeToString()
    spent: dict[str, list[float]] = {"off": [], "0.01": [], "1": []}
    calls = 0
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "200"  # ms; the servers' default is 5 s
    async with collector() as (endpoint, counts):
        for _ in range(STARTS):
            async with AsyncExitStack() as stack:
                targets = {}
                for share in spent:
                    traced = ("--otlp-endpoint", endpoint, "--trace-ratio", share)
                    options = () if share == "off" else traced
                    address, pid = stack.enter_context(server("--engine", "null", *options))
                    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
                    targets[share] = (pid, channel)
                for turn in range(TURNS + 1):
                    for share, (pid, channel) in targets.items():
                        # With a pause for what is exported behind the calls, which is a cost too.
                        work: Any = asyncio.gather(
                            call_unary(channel, request, CALLS), asyncio.sleep(1)
                        )
                        used = await cpu_of(pid, CALLS, work)
                        calls += CALLS * (share == "1")
                        if turn:
                            spent[share].append(used)
    for name, each in spent.items():
        print(f"tracing {name}: server CPU {statistics.median(each):.3f} ms a call")
    for name in ("0.01", "1"):
        found = ratio(spent[name], spent["off"])
        print(f"tracing {name} / off: {found}, {STARTS * TURNS} pairs, {STARTS} starts")
    print(f"tracing {sum(counts) / calls:.2f} spans a call arrived (4 and their batch's)")


async def load(address: str) -> None:
    """Call a server with images to decode until this process is stopped."""
    image = image_pb2.Image(encoded=photo())
    request = inference_pb2.ClassifyRequest(image=image).SerializeToString()
    async with grpc.aio.insecure_channel(address) as channel:
        while True:
            await call_unary(channel, request, CALLS)


def main() -> None:
    """Run what was asked for, or everything."""
    measures: dict[str, Any] = {
        "unary": lambda: measure_cpu(("unary",), null_server),
        "stream": lambda: measure_cpu(("unary", "stream"), null_server),
        "batch": lambda: measure_cpu(("unary", "batch"), null_server),
        "floor": lambda: measure_cpu(SHAPES, partial(echo_server, "floor"), "floor"),
        "loaded": lambda: measure_cpu(SHAPES, partial(server, *LOADED), "loaded"),
        "metrics": measure_metrics,
        "serial": measure_serial,
        "decode": measure_decode,
        "lag": measure_lag,
        "import": measure_import,
        "tracing": measure_tracing,
    }
    parser = parser_of(__doc__, measures, default=", ".join(DEFAULT))
    parser.add_argument("--load", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        asyncio.run(load(arguments.load))
    else:
        for name in arguments.what or DEFAULT:
            asyncio.run(measures[name]())


if __name__ == "__main__":
    main()
