"""The bound of a server's memory under attack: python -m benchmarks.memory [untaken ...] [--write].

untaken   Clients on 1,024 connections make 500 calls/s for 60 s and grant no window for answers:
          the server's peak, against its computed bound, and the p99 of a normal client beside them.
largest   Clients send the largest messages, frames, uploads and images that are allowed, as fast as
          they can, to a server in a control group with the memory limit of the Kubernetes manifest.
blocked   1,000 streams wait for room in a full server: the CPU that it uses meanwhile.

With --write, the figures go into docs/benchmarks/reliability.md; `make memory` does that. Linux;
the control group takes root, and is left out without.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import socket
import statistics
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks import page
from benchmarks.measures import parser_of
from benchmarks.process import cpu_s, server
from benchmarks.reliability import CLASSIFY, STREAM, UPLOAD, p99, peak_kib, poisson, request, send
from resnet50.v1 import image_pb2, inference_pb2, variant_pb2
from resnet50_server.memory_bound import MIB, memory_bound, total
from resnet50_server.settings import Settings
from tests.support.raw_http2 import RawClient, message

MANIFEST = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes" / "deployment.yaml"
CONNECTIONS, CALLERS = 1024, 8
NORMAL_RATE = 20.0
# Calls a second of all that take no answers: less than keeps the server busy, since any client can
# do that; their answers are the subject.
ATTACK_RATE = 500.0
STREAMS, BLOCKED_S = 1000, 10.0
HEALTH = "/grpc.health.v1.Health/Check"
VARIANT = "/resnet50.v1.VariantService/GetVariant"
NETWORK = ("--variants", "untrained=random:0", "--engine", "onnxruntime")
TIMED = ("--engine", "timed", "--timed-alpha-ms", "2", "--timed-beta-ms", "0.5")


def defaults() -> Settings:
    """Return the settings of a server at its default limits."""
    return Settings(variants=["IMAGENET1K_V2"])


def source(number: int) -> str:
    """Return one of the addresses from which attackers call: each is a caller of its own."""
    return f"127.0.0.{2 + number % CALLERS}"


# Answers that are not taken


def frames(stream: int, path: str, content: bytes) -> bytes:
    """Return a call's frames: its headers, none of them indexed, and its only message."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "a",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    body = message(content)
    return (
        struct.pack(">I", len(block))[1:]
        + b"\x01\x04"
        + struct.pack(">I", stream)
        + block
        + struct.pack(">I", len(body))[1:]
        + b"\x00\x01"
        + struct.pack(">I", stream)
        + body
    )


def take_nothing(address: str, seconds: float, connections: int) -> int:
    """Make calls whose answers the server cannot send; return how many."""
    host, _, port = address.rpartition(":")
    encoded = inference_pb2.ClassifyRequest.FromString(request())
    encoded.options.top_k, encoded.options.include_embedding = 1000, True
    calls = (
        (CLASSIFY, encoded.SerializeToString()),
        (HEALTH, b""),
        (VARIANT, variant_pb2.GetVariantRequest(name="IMAGENET1K_V2").SerializeToString()),
    )
    opened = []
    for number in range(connections):
        connection = socket.create_connection((host, int(port)), source_address=(source(number), 0))
        # SETTINGS_INITIAL_WINDOW_SIZE 0
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000006040000000000000400000000")
        )
        connection.setblocking(False)
        opened.append((connection, [1]))
    begun, made = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        if made >= passed * ATTACK_RATE:
            time.sleep(0.005)
            continue
        connection, following = opened[made % len(opened)]
        path, content = calls[made % len(calls)]
        made += 1
        with contextlib.suppress(OSError):
            with contextlib.suppress(BlockingIOError):
                while connection.recv(65536):
                    pass
            connection.sendall(frames(following[0], path, content))
            following[0] += 2
    return made


def measure_untaken(seconds: float) -> Iterator[str]:
    """Call beside clients that take no answers."""
    bound = total(memory_bound(defaults()))
    with server(*TIMED) as (address, pid):
        arrivals = poisson(NORMAL_RATE, int(NORMAL_RATE * seconds / 2), 1)
        quiet = p99(asyncio.run(send(address, arrivals, None)))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            attack = pool.apply_async(take_nothing, (address, seconds, CONNECTIONS))
            time.sleep(seconds / 4)
            calls = asyncio.run(send(address, arrivals, None))
            made = attack.get()
        beside, failed = p99(calls), sum(call.code is not grpc.StatusCode.OK for call in calls)
        peak = peak_kib(pid) * 1024
    yield (
        f"answers never taken: {CONNECTIONS} connections of {CALLERS} addresses, {made} calls in"
        f" {seconds:.0f} s ({ATTACK_RATE:g}/s): peak memory {peak // MIB} MiB,"
        f" {peak / bound:.2f} of the bound ({bound // MIB} MiB); the normal client's p99"
        f" {beside * 1e3:.0f} ms, quiet {quiet * 1e3:.0f} ms, ratio"
        f" {beside / quiet:.2f}; {failed} of its {len(calls)} calls failed"
    )


# The largest that is allowed


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int) -> bytes:
    """Return a grey PNG in 16 bits, which packs well."""
    pixels = zlib.compress(bytes((2 * width + 1) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def raw_image(length: int) -> image_pb2.Image:
    """Return a raw image of about so many bytes."""
    side = int((length / 3) ** 0.5)
    return image_pb2.Image(
        raw=image_pb2.RawImage(
            width=side,
            height=side,
            pixel_format=image_pb2.PIXEL_FORMAT_RGB,
            pixels=bytes(3 * side * side),
        )
    )


def flood(address: str, number: int, ends: float) -> None:
    """Send one kind of what is largest, again and again."""
    settings = defaults()
    largest = raw_image(settings.max_message_bytes - 65536)
    unary = message(inference_pb2.ClassifyRequest(image=largest).SerializeToString())
    frame = inference_pb2.ClassifyStreamRequest(frame=inference_pb2.Frame(image=largest))
    config = inference_pb2.ClassifyStreamConfig(max_in_flight=64)
    stream = message(inference_pb2.ClassifyStreamRequest(config=config).SerializeToString())
    stream += message(frame.SerializeToString())
    part = inference_pb2.ClassifyUploadRequest
    upload = message(part(options=inference_pb2.ClassifyUploadOptions()).SerializeToString())
    upload += 7 * message(part(chunk=bytes(settings.max_message_bytes - 65536)).SerializeToString())
    square = int(settings.max_image_pixels**0.5)
    packed = image_pb2.Image(encoded=png(square, square))
    pixels = message(inference_pb2.ClassifyRequest(image=packed).SerializeToString())
    path, content = ((CLASSIFY, unary), (STREAM, stream), (UPLOAD, upload), (CLASSIFY, pixels))[
        number % 4
    ]
    while time.time() < ends:
        with contextlib.suppress(OSError):
            client = RawClient(address, source=source(number))
            for _ in range(8):
                client.send(client.open(path), content, timeout_s=0.2)
            client.close()


def floods(address: str, first: int, seconds: float) -> None:
    """Send from several threads."""
    ends = time.time() + seconds
    threads = [
        threading.Thread(target=flood, args=(address, first + number, ends)) for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Callable[[int], bool]]:
    """Give what puts a process into a group of limited memory; it says whether there is one."""
    roots = (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    )
    group = None
    for root, name in roots:
        with contextlib.suppress(OSError):
            group = root / f"resnet50-trial-{os.getpid()}"
            group.mkdir()
            (group / name).write_text(str(limit))
            break
    else:
        group = None

    def enter(pid: int) -> bool:
        if group is None:
            return False
        (group / "cgroup.procs").write_text(str(pid))
        return True

    try:
        yield enter
    finally:
        if group is not None:
            with contextlib.suppress(OSError):
                group.rmdir()


def manifest_limit() -> int:
    """Return the memory limit of the Kubernetes manifest, in bytes."""
    found = re.search(r"limits:\s+memory: (\d+)Gi", MANIFEST.read_text())
    assert found is not None
    return int(found[1]) * 2**30


def measure_largest(seconds: float) -> Iterator[str]:
    """Send what is largest to a server that may not take more than the manifest allows."""
    bound, limit = total(memory_bound(defaults())), manifest_limit()
    with control_group(limit) as enter, server(*NETWORK) as (address, pid):
        limited = enter(pid)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            pool.starmap(floods, [(address, first, seconds) for first in (0, 16)])
        alive = Path(f"/proc/{pid}").exists()
        assert alive, "the server was killed"
        peak = peak_kib(pid) * 1024

        async def ask() -> bytes:
            async with grpc.aio.insecure_channel(address) as channel:
                classify: Any = channel.unary_unary(CLASSIFY)
                answer: bytes = await classify(request(), timeout=60)
                return answer

        assert asyncio.run(ask())
    where = f"a control group of {limit // MIB} MiB" if limited else "no control group"
    yield (
        f"the largest messages, frames, uploads and images, from 32 connections for {seconds:.0f}"
        f" s, in {where}: not killed, and answers afterwards; peak memory {peak // MIB} MiB,"
        f" {peak / bound:.2f} of the bound ({bound // MIB} MiB)"
    )


# Streams that wait


async def block(address: str, pid: int) -> tuple[float, float]:
    """Return the shares of a core that a server uses: quiet, and while streams wait in it."""

    async def share() -> float:
        shares = []
        for _ in range(5):
            before, started = cpu_s(pid), time.monotonic()
            await asyncio.sleep(BLOCKED_S / 5)
            shares.append((cpu_s(pid) - before) / (time.monotonic() - started))
        return statistics.median(shares)

    quiet = await share()
    image = inference_pb2.ClassifyRequest.FromString(request()).image
    frame = inference_pb2.ClassifyStreamRequest(frame=inference_pb2.Frame(image=image))
    config = inference_pb2.ClassifyStreamRequest(config=inference_pb2.ClassifyStreamConfig())
    async with grpc.aio.insecure_channel(address) as channel:
        calls = [channel.stream_stream(STREAM)() for _ in range(STREAMS)]
        for call in calls:
            await call.write(config.SerializeToString())
            await call.write(frame.SerializeToString())
        await asyncio.sleep(5)  # until all have arrived
        blocked = await share()
        for call in calls:
            call.cancel()
    return quiet, blocked


def measure_blocked(_: float) -> Iterator[str]:
    """Fill a server and let streams wait."""
    flags = ("--max-requests", "4", "--max-streams", "1024", "--max-streams-per-caller", "1024")
    slow = ("--engine", "timed", "--timed-alpha-ms", "3000", "--max-batch-size", "1")
    with server(*slow, *flags) as (address, pid):
        quiet, blocked = asyncio.run(block(address, pid))
    yield (
        f"{STREAMS} streams that wait for room: the server uses {blocked * 100:.1f}% of a core,"
        f" {quiet * 100:.1f}% before they came"
    )


MEASURES = {"untaken": measure_untaken, "largest": measure_largest, "blocked": measure_blocked}


def lines(names: list[str], seconds: float) -> Iterator[str]:
    """Measure."""
    for name in names:
        yield from MEASURES[name](seconds)


def main() -> None:
    """Run what was asked for, or everything."""
    parser = parser_of(__doc__, MEASURES)
    parser.add_argument("--seconds", type=float, default=60.0, help="of an attack; default: 60")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/reliability.md")
    arguments = parser.parse_args()
    text = page.report(lines(arguments.what or list(MEASURES), arguments.seconds))
    if arguments.write:
        page.write("memory", text)


if __name__ == "__main__":
    main()
