"""Cost and fairness of streams: python -m benchmarks.streams [cpu|fair|idle]...

cpu     server CPU of a frame on a stream against a unary call: same message, decoded, constant
        answer
fair    ten saturating streams: each one's share, and the p99 of unary calls beside them
idle    server memory of an open stream that does nothing

Each starts servers of its own on this machine (Linux). Figures are ratios within one run; absolute
times are those of the machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

import grpc
import numpy as np

from benchmarks.measures import parser_of
from benchmarks.process import DECODING, cpu_s, resident_kib, server
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import AsyncClient

PAIRS = 5
CALLS = 2000
STREAMS = 10
SECONDS = 10.0
ALPHA_MS, BETA_MS, BATCH = 20.0, 1.0, 16
IDLE = 1000


def picture(side: int) -> bytes:
    """Return raw grey pixels: decoding is not what is measured."""
    return np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8).tobytes()


async def measure_cpu() -> None:
    """Compare in turn, so that a machine whose speed drifts does not matter."""
    # 232: what the variant resizes to, so that nothing but gRPC and our own way is measured. 32 is
    # enlarged, 330 made smaller.
    for side in (232, 32, 330):
        raw = image_pb2.RawImage(
            width=side,
            height=side,
            pixel_format=image_pb2.PIXEL_FORMAT_GRAY,
            pixels=picture(side),
        )
        image = image_pb2.Image(raw=raw)
        unary, stream = [], []
        # Not the null engine, for which nothing is decoded.
        with server(*DECODING) as (address, pid):
            async with grpc.aio.insecure_channel(address) as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)

                async def call_unary(stub=stub, image=image) -> None:
                    request = inference_pb2.ClassifyRequest(image=image)
                    for _ in range(CALLS // 8):
                        await asyncio.gather(*(stub.Classify(request) for _ in range(8)))

                async def call_stream(stub=stub, image=image) -> None:
                    async def requests():
                        yield inference_pb2.ClassifyStreamRequest(
                            config=inference_pb2.ClassifyStreamConfig(max_in_flight=8)
                        )
                        for number in range(CALLS):
                            yield inference_pb2.ClassifyStreamRequest(
                                frame=inference_pb2.Frame(frame_id=number, image=image)
                            )

                    async for _ in stub.ClassifyStream(requests()):
                        pass

                for turn in range(PAIRS + 1):
                    for call, figures in ((call_unary, unary), (call_stream, stream)):
                        before = cpu_s(pid)
                        await call()
                        if turn:  # the first warms up
                            figures.append((cpu_s(pid) - before) / CALLS * 1e3)
        ratios = [two / one for one, two in zip(unary, stream, strict=True)]
        print(
            f"cpu   {side} x {side} grey, {len(raw.pixels) / 1024:.0f} KiB: unary"
            f" {statistics.median(unary):.3f} ms, stream {statistics.median(stream):.3f} ms a"
            f" frame; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
            f" {max(ratios):.2f}), median of {PAIRS} pairs"
        )


async def measure_fairness() -> None:
    """Saturate a timed engine with streams; call beside them, one call after the other."""
    timed = (
        "--engine",
        "timed",
        "--timed-alpha-ms",
        str(ALPHA_MS),
        "--timed-beta-ms",
        str(BETA_MS),
    )
    batch_ms = ALPHA_MS + BETA_MS * BATCH
    frame = np.zeros((32, 32), dtype=np.uint8)
    with server(*timed, "--max-batch-size", str(BATCH)) as (address, _):
        clients = [AsyncClient(address) for _ in range(STREAMS + 1)]
        answered = [0] * STREAMS
        stopped = asyncio.Event()

        async def saturate(number: int) -> None:
            def frames() -> Iterator[np.ndarray]:
                while not stopped.is_set():
                    yield frame

            async for _ in clients[number].classify_stream(frames()):
                answered[number] += 1

        async def call() -> list[float]:
            times = []
            while not stopped.is_set():
                started = time.perf_counter()
                await clients[-1].classify(frame)
                times.append((time.perf_counter() - started) * 1e3)
            return times

        streams = [asyncio.create_task(saturate(number)) for number in range(STREAMS)]
        await asyncio.sleep(1.0)
        before, calling = list(answered), asyncio.create_task(call())
        await asyncio.sleep(SECONDS)
        after = list(answered)
        stopped.set()
        times = sorted(await calling)
        await asyncio.gather(*streams)
        for client in clients:
            await client.close()
    counts = [two - one for one, two in zip(before, after, strict=True)]
    shares = [100 * count / sum(counts) for count in counts]
    p50, p99 = times[len(times) // 2], times[int(0.99 * len(times))]
    print(
        f"fair  {STREAMS} saturating streams share {sum(counts) / SECONDS:.0f} frames/s: each"
        f" {min(shares):.1f}% to {max(shares):.1f}%"
    )
    print(
        f"fair  unary beside them, {len(times)} calls: p50 {p50:.1f}, p99 {p99:.1f} ms ="
        f" {p99 / batch_ms:.2f} times a full batch ({batch_ms:.0f} ms)"
    )


async def measure_idle() -> None:
    """Open streams, one frame each, then nothing."""
    with server("--engine", "null") as (address, pid):
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(10)]
        calls = []

        async def open_stream(channel: grpc.aio.Channel) -> None:
            call = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyStream()
            await call.write(
                inference_pb2.ClassifyStreamRequest(config=inference_pb2.ClassifyStreamConfig())
            )
            image = image_pb2.Image(
                raw=image_pb2.RawImage(
                    width=1, height=1, pixel_format=image_pb2.PIXEL_FORMAT_GRAY, pixels=b"x"
                )
            )
            await call.write(
                inference_pb2.ClassifyStreamRequest(
                    frame=inference_pb2.Frame(frame_id=0, image=image)
                )
            )
            await call.read()
            calls.append(call)

        for channel in channels:
            await open_stream(channel)
        before = resident_kib(pid)
        for number in range(IDLE):
            await open_stream(channels[number % len(channels)])
        each = (resident_kib(pid) - before) / IDLE
        print(f"idle  {IDLE} open streams hold {each:.0f} KiB of server memory each")
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()


def main() -> None:
    """Run what was asked for, or everything."""
    measures = {"cpu": measure_cpu, "fair": measure_fairness, "idle": measure_idle}
    for name in parser_of(__doc__, measures).parse_args().what or measures:
        asyncio.run(measures[name]())


if __name__ == "__main__":
    main()
