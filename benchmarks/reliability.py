"""Behaviour under attack: python -m benchmarks.reliability [overload|stalled|refused] [--write].

overload   three times what the server can do for a minute, then half: how soon refusals come, how
           soon latency is back, and what grows meanwhile
stalled    500 slow or stalled clients (half-sent uploads and requests, unread streams, idle
           connections) beside a normal one: its latency against the same without them
refused    40 calls at once with 32 MiB each, to a server that is full: what refusing them costs

The server is a process with the timed engine, which sleeps as a device computes, so that what is
measured is the server. Latencies count from the time at which a request should be sent. With
--write, what is printed goes into docs/benchmarks/reliability.md; `make reliability` does that.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks import page
from benchmarks.batching import CLASSIFY, Call, request, send
from benchmarks.measures import parser_of
from benchmarks.overhead import photo
from benchmarks.process import cpu_s, resident_kib, server
from resnet50.v1 import image_pb2, inference_pb2
from tests.support.simulation import Device, poisson, quantile

# About 150 images/s, so that the generator can offer three times as much on a shared machine.
DEVICE = Device(alpha_s=0.020, beta_s=0.006, limit=32)
TIMED = (
    *("--engine", "timed", "--max-batch-size", str(DEVICE.limit)),
    *("--timed-alpha-ms", str(DEVICE.alpha_s * 1e3), "--timed-beta-ms", str(DEVICE.beta_s * 1e3)),
)
WITHIN_S = 1.0
QUIET_S, OVERLOAD_S = 20.0, 60.0
# Clients that stall, of each kind.
STALLED = {"uploads": 125, "requests": 125, "streams": 125, "connections": 125}
# Answers of 30 KB each: more than a connection takes that is not read from.
UNREAD_FRAMES = 6
# Until the server has computed what it was sent.
SETTLE_S = 10.0
NORMAL_RATE, NORMAL_S, TURNS = 20.0, 20.0, 3
LARGE_CALLS, LARGE_BYTES = 40, 32 * 2**20
UPLOAD = "/resnet50.v1.InferenceService/ClassifyUpload"
STREAM = "/resnet50.v1.InferenceService/ClassifyStream"


def measure_overload() -> Iterator[str]:
    """Offer half, then three times, then half of what can be served."""
    with server(*TIMED) as (address, pid):
        asyncio.run(send(address, poisson(50, 100, 9), None))
        before_kib = resident_kib(pid)
        quiet = play(address, 0.5, QUIET_S, 1)
        quiet_p99 = quantile([call.done for call in quiet if call.due > 2.0], 0.99)
        arrivals, rate = [], 3.0 * DEVICE.capacity
        arrivals += poisson(rate, int(rate * OVERLOAD_S), 2)
        after = poisson(0.5 * DEVICE.capacity, int(0.5 * DEVICE.capacity * QUIET_S), 3)
        switched = arrivals[-1]
        arrivals += [switched + due for due in after]
        memory: list[int] = []
        calls = asyncio.run(watched(send(address, arrivals, WITHIN_S), pid, memory))
        stormy = [call for call in calls if 2.0 < call.due <= switched]
        refused = [call for call in stormy if call.code is not grpc.StatusCode.OK]
        # Those that had been accepted, and expired at their deadline.
        expired = [call for call in refused if call.done >= 0.95 * WITHIN_S]
        took = [call.done - call.sent for call in refused if call.done < 0.95 * WITHIN_S]
        good = [call for call in stormy if call not in refused and call.done <= WITHIN_S]
        codes = {
            code.name: sum(call.code is code for call in stormy)
            for code in {call.code for call in stormy}
        }
        yield (
            f"overload x 3 for {switched:.0f} s, deadline {WITHIN_S:g} s: {len(stormy)} calls"
            f" ({', '.join(f'{name} {count}' for name, count in sorted(codes.items()))});"
            f" answered in time {len(good) / (switched - 2.0) / DEVICE.capacity:.2f} of capacity"
        )
        yield (
            f"a refusal takes p50 {quantile(took, 0.5) * 1e3:.1f}, p99"
            f" {quantile(took, 0.99) * 1e3:.1f} ms, {share(took, 0.010):.1%} come within 10 ms;"
            f" {len(expired) / len(stormy):.1%} of the calls were accepted and not answered"
        )
        back = recovery_s(calls, switched, quiet_p99)
        later = [call.done for call in calls if call.due > switched + 2.0]
        yield (
            f"back at half the load: {back}; p99 after 2 s {quantile(later, 0.99) * 1e3:.0f} ms,"
            f" before the overload {quiet_p99 * 1e3:.0f} ms"
        )
        third = len(memory) // 4
        first, last = statistics.median(memory[:third]), statistics.median(memory[-third:])
        yield (
            f"memory: {before_kib / 1024:.0f} MiB before; during the overload"
            f" {first / 1024:.0f} MiB in its first quarter, {max(memory) / 1024:.0f} MiB at most,"
            f" {last / 1024:.0f} MiB at the end"
        )


def play(address: str, load: float, seconds: float, seed: int) -> list[Call]:
    """Send at a share of the device's capacity."""
    rate = load * DEVICE.capacity
    return asyncio.run(send(address, poisson(rate, int(rate * seconds), seed), WITHIN_S))


async def watched(
    sending: Coroutine[None, None, list[Call]], pid: int, memory: list[int]
) -> list[Call]:
    """Note the server's memory in KiB, ten times a second, while something runs."""

    async def watch() -> None:
        while True:
            memory.append(resident_kib(pid))
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        return await sending
    finally:
        watching.cancel()


def share(values: list[float], limit: float) -> float:
    """Return the share of values up to a limit."""
    return sum(value <= limit for value in values) / len(values)


def recovery_s(calls: list[Call], switched: float, normal_s: float) -> str:
    """Say when the last call was sent that failed or took longer than twice the normal p99."""
    bad = [
        call.due - switched
        for call in calls
        if call.due > switched and (call.code is not grpc.StatusCode.OK or call.done > 2 * normal_s)
    ]
    if not bad:
        return "no call failed or took more than twice the quiet p99, from the first one on"
    return (
        f"the last of {len(bad)} calls that failed or took more than twice the quiet p99 was sent"
        f" {max(bad):.2f} s after the overload ended"
    )


def measure_stalled() -> Iterator[str]:
    """Take turns between a quiet server and one with stalled clients."""
    # All clients have one address here: one caller, whose share is to be everything.
    flags: tuple[str, ...] = (
        *TIMED,
        "--receive-timeout-s",
        "600",
        "--upload-idle-timeout-s",
        "600",
    )
    for name in ("--max-streams", "--max-uploads"):
        flags += (name, "1024", f"{name}-per-caller", "1024")
    for name in ("--max-receive-bytes", "--max-receive-bytes-per-caller"):
        flags += (name, str(2**30))
    quiet, beside, ratios = [], [], []
    with server(*flags) as (address, pid):
        before_kib = resident_kib(pid)
        for turn in range(TURNS):
            arrivals = poisson(NORMAL_RATE, int(NORMAL_RATE * NORMAL_S), turn)
            quiet.append(p99(asyncio.run(send(address, arrivals, None))))
            with stalled_clients(address):
                held_kib = resident_kib(pid)
                calls = asyncio.run(send(address, arrivals, None))
                beside.append(p99(calls))
                failed = sum(call.code is not grpc.StatusCode.OK for call in calls)
                assert not failed, f"{failed} of the normal client's calls failed"
            ratios.append(beside[-1] / quiet[-1])
    kinds = ", ".join(f"{count} {kind}" for kind, count in STALLED.items())
    yield (
        f"{sum(STALLED.values())} stalled clients ({kinds}), and one that sends {NORMAL_RATE:g}"
        f" images/s: its p99 {statistics.median(beside) * 1e3:.1f} ms, without them"
        f" {statistics.median(quiet) * 1e3:.1f} ms; ratio, median of {TURNS}"
        f" turns, {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); no call"
        f" failed; the server holds {(held_kib - before_kib) / 1024:.0f} MiB for them"
    )


def measure_refused() -> Iterator[str]:
    """Send large messages to a server that has room for one request only, which is taken."""
    flags: tuple[str, ...] = (
        "--engine",
        "timed",
        "--timed-alpha-ms",
        "3000",
        "--max-requests",
        "1",
    )
    flags += ("--max-message-bytes", str(2 * LARGE_BYTES))
    with server(*flags) as (address, pid):
        held_mib, cpu, refused = asyncio.run(send_large(address, pid))
    yield (
        f"{LARGE_CALLS} calls at once with {LARGE_BYTES / 2**20:.0f} MiB each, to a full server:"
        f" {refused} refused; its memory grew by {held_mib:.0f} MiB at most, and it used"
        f" {cpu * 1e3:.0f} ms of CPU for them all"
    )


async def send_large(address: str, pid: int) -> tuple[float, float, int]:
    """Return how much a server's memory grew in MiB, its CPU time in s, and the refusals."""
    side = int((LARGE_BYTES / 3) ** 0.5)
    raw = image_pb2.RawImage(
        width=side,
        height=side,
        pixel_format=image_pb2.PIXEL_FORMAT_RGB,
        pixels=bytes(3 * side * side),
    )
    large = inference_pb2.ClassifyRequest(image=image_pb2.Image(raw=raw)).SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        classify = channel.unary_unary(CLASSIFY)
        inside = asyncio.ensure_future(classify(request()))
        await asyncio.sleep(0.5)
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the highest use of memory so far
        before_kib, cpu = peak_kib(pid), cpu_s(pid)

        async def one() -> bool:
            try:
                await classify(large)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        refused = sum(await asyncio.gather(*(one() for _ in range(LARGE_CALLS))))
        grown = (peak_kib(pid) - before_kib) / 1024, cpu_s(pid) - cpu
        inside.cancel()
    return *grown, refused


def peak_kib(pid: int) -> int:
    """Return the most memory that a process has kept since that was reset, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def p99(calls: list[Call]) -> float:
    """Return the 99th percentile of latencies, in seconds, without those of the first second."""
    return quantile([call.done for call in calls if call.due > 1.0], 0.99)


@contextmanager
def stalled_clients(address: str) -> Iterator[None]:
    """Run clients that stall, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.reliability", "--stall", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # a pipe, as asked for
    try:
        assert process.stdout.readline().strip() == "stalled"
        yield
    finally:
        process.kill()
        process.wait()


async def stall(address: str) -> None:
    """Open what stalls, say so, and hold it until killed."""
    kept: list[object] = []
    options = [("grpc.use_local_subchannel_pool", 1)]
    encoded = photo()
    half = encoded[: len(encoded) // 2]
    image = inference_pb2.ClassifyRequest.FromString(request()).image

    async def connect() -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(address, options=options)
        await channel.channel_ready()
        kept.append(channel)
        return channel

    for _ in range(STALLED["connections"]):
        await connect()
    for _ in range(STALLED["uploads"]):
        call: Any = (await connect()).stream_unary(UPLOAD)()
        part = inference_pb2.ClassifyUploadRequest(options=inference_pb2.ClassifyUploadOptions())
        await call.write(part.SerializeToString())
        await call.write(inference_pb2.ClassifyUploadRequest(chunk=half).SerializeToString())
        kept.append(call)
    for _ in range(STALLED["requests"]):
        kept.append((await connect()).stream_unary(CLASSIFY)())  # its request never comes
    for _ in range(STALLED["streams"]):
        call = (await connect()).stream_stream(STREAM)()
        wanted = inference_pb2.ClassifyOptions(top_k=1000, include_embedding=True)
        config = inference_pb2.ClassifyStreamConfig(options=wanted)
        await call.write(inference_pb2.ClassifyStreamRequest(config=config).SerializeToString())
        for number in range(UNREAD_FRAMES):  # and not one answer is read
            frame = inference_pb2.Frame(frame_id=number, image=image)
            await call.write(inference_pb2.ClassifyStreamRequest(frame=frame).SerializeToString())
        kept.append(call)
    await asyncio.sleep(SETTLE_S)
    print("stalled", flush=True)
    await asyncio.Event().wait()


MEASURES = {"overload": measure_overload, "stalled": measure_stalled, "refused": measure_refused}


def lines(names: list[str]) -> Iterator[str]:
    """Measure."""
    for name in names:
        yield from MEASURES[name]()


def main() -> None:
    """Run what was asked for, or everything."""
    parser = parser_of(__doc__, MEASURES)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    parser.add_argument("--stall", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stall:
        asyncio.run(stall(arguments.stall))
    text = page.report(lines(arguments.what or list(MEASURES)))
    if arguments.write:
        page.write("reliability", text)


if __name__ == "__main__":
    main()
