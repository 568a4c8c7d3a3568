"""Cost of the Open Inference Protocol on the server: python -m benchmarks.oip.

unary   server CPU of ModelInfer with one image ÷ Classify with the same
batch   server CPU of an image of ModelInfer with 32 ÷ one of ClassifyBatch with 32

The null engine, raw pixels of 161 KB that only have to be cropped, and the five most probable
categories: `classification` in the one protocol, `top_k` in the other. Turns alternate between the
two; figures are medians of the ratios of pairs, with their range. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable

import grpc

from benchmarks.overhead import (
    BATCHES_IN_FLIGHT,
    CALLS,
    CLASSIFY,
    CLASSIFY_BATCH,
    IN_FLIGHT,
    STARTS,
    TURNS,
    cpu_of,
    ratio,
    undecoded,
)
from benchmarks.process import server
from resnet50.oip.messages import METHODS
from resnet50.v1 import inference_pb2
from tests.support.oip import infer_request

IMAGES = 32  # of a batch
INFER = f"/{METHODS['ModelInfer']}"


def oip_request(images: int) -> bytes:
    """Return a request for the labels of images."""
    raw = undecoded().raw
    shape = [images, raw.height, raw.width, 3]
    request = infer_request("UINT8", shape, raw.pixels * images, "PROBABILITIES")
    request.outputs[0].parameters["classification"].int64_param = 5
    content: bytes = request.SerializeToString()
    return content


def calling(
    method: str, request: bytes, calls: int, in_flight: int
) -> Callable[..., Awaitable[None]]:
    """Return a function that makes calls on a channel, several at a time."""

    async def call_all(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(method)

        async def work() -> None:
            for _ in range(calls // in_flight):
                await call(request)

        await asyncio.gather(*(work() for _ in range(in_flight)))

    return call_all


async def measure(turns: int) -> None:
    """Measure and print.

    Args:
        turns: Of each start, after one that warms up.
    """
    one = inference_pb2.ClassifyRequest(image=undecoded())
    many = inference_pb2.ClassifyBatchRequest(images=[undecoded()] * IMAGES)
    batches = CALLS // IMAGES
    work = {
        "Classify": calling(CLASSIFY, one.SerializeToString(), CALLS, IN_FLIGHT),
        "ModelInfer": calling(INFER, oip_request(1), CALLS, IN_FLIGHT),
        "ClassifyBatch": calling(
            CLASSIFY_BATCH, many.SerializeToString(), batches, BATCHES_IN_FLIGHT
        ),
        "ModelInfer of 32": calling(INFER, oip_request(IMAGES), batches, BATCHES_IN_FLIGHT),
    }
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(STARTS):
        with server("--engine", "null", "--oip", "--max-message-bytes", str(2**24)) as served:
            async with grpc.aio.insecure_channel(served[0]) as channel:
                for turn in range(turns + 1):
                    for name, call in work.items():
                        used = await cpu_of(served[1], CALLS, call(channel))
                        if turn:  # the first warms up
                            spent[name].append(used)
    for name, each in spent.items():
        print(f"cpu     {name}: {statistics.median(each):.3f} ms an image")
    pairs = f"{STARTS * turns} pairs, {STARTS} starts"
    print(f"unary   OIP / own: {ratio(spent['ModelInfer'], spent['Classify'])}, {pairs}")
    found = ratio(spent["ModelInfer of 32"], spent["ClassifyBatch"])
    print(f"batch   OIP / own: {found}, {pairs}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=TURNS, help=f"default: {TURNS}")
    asyncio.run(measure(parser.parse_args().turns))


if __name__ == "__main__":
    main()
