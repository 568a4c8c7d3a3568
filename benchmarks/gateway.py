"""Cost of the HTTP gateway, and its return after SIGKILL: python -m benchmarks.gateway [NAME ...].

cost    CPU of the gateway's process for a request of each of its APIs, beside the server's for the
        same image: over gRPC directly, and from the gateway. The null engine, one small JPEG, the
        five most probable categories. Turns alternate between the APIs; figures are medians, and
        medians of the ratios of pairs with their range
kill    how long it takes until an HTTP request is answered again after the gateway that `serve
        --http-listen` started is killed

Linux.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import grpc
import websockets

from benchmarks.measures import parser_of
from benchmarks.overhead import CLASSIFY, cpu_of, ratio
from benchmarks.process import PROGRAM, cpu_s, listening, server
from resnet50.v1 import image_pb2, inference_pb2
from tests.support.pictures import encode, picture

CALLS = 320
IN_FLIGHT = 8
TURNS = 4
STARTS = 2
KILLS = 5
GATEWAY = [sys.executable, "-m", "resnet50_gateway", "--listen", "127.0.0.1:0"]
DIRECT = "gRPC, without the gateway"


def requests() -> dict[str, bytes]:
    """Return a request of each API, by its name."""
    image = encode(picture(256, 256), "JPEG", quality=85)
    message = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=image))
    content = message.SerializeToString()
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + image
    element = len(image).to_bytes(4, "little") + image
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "IMAGE",
                    "shape": [1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(element)},
                }
            ],
            "outputs": [{"name": "PROBABILITIES", "parameters": {"classification": 5}}],
        }
    ).encode()
    return {
        "POST /v1/classify, the file as body": _request("/v1/classify", "image/jpeg", image),
        "POST /v1/classify, a form": _request(
            "/v1/classify", "multipart/form-data; boundary=x", form + b"\r\n--x--\r\n"
        ),
        "Connect, protobuf": _request(CLASSIFY, "application/proto", content),
        "gRPC-Web": _request(
            CLASSIFY,
            "application/grpc-web+proto",
            b"\0" + len(content).to_bytes(4, "big") + content,
        ),
        "Open Inference Protocol, binary": _request(
            "/v2/models/resnet50/infer",
            "application/octet-stream",
            header + element,
            f"Inference-Header-Content-Length: {len(header)}\r\n",
        ),
    }


def _request(path: str, content_type: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n{more}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def send_all(host: str, port: int, request: bytes) -> None:
    """Send a request `CALLS` times on `IN_FLIGHT` connections."""

    async def work() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for _ in range(CALLS // IN_FLIGHT):
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(head.decode())
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def stream_all(host: str, port: int) -> None:
    """Send `CALLS` frames over one WebSocket."""
    image = encode(picture(256, 256), "JPEG", quality=85)
    async with websockets.connect(f"ws://{host}:{port}/v1/stream", proxy=None) as socket:

        async def send() -> None:
            for number in range(1, CALLS + 1):
                await socket.send(number.to_bytes(8, "big") + image)
            await socket.send('{"end": true}')

        sending = asyncio.ensure_future(send())
        async for answer in socket:
            if '"result"' not in str(answer):
                raise RuntimeError(str(answer))
        await sending


async def call_directly(channel: grpc.aio.Channel) -> None:
    """Make `CALLS` calls over gRPC."""
    image = encode(picture(256, 256), "JPEG", quality=85)
    content = inference_pb2.ClassifyRequest(
        image=image_pb2.Image(encoded=image)
    ).SerializeToString()
    classify = channel.unary_unary(CLASSIFY)

    async def work() -> None:
        for _ in range(CALLS // IN_FLIGHT):
            await classify(content)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def measure(turns: int) -> None:
    """Measure the APIs and print.

    Args:
        turns: Of each start, after one that warms up.
    """
    by_server: dict[str, list[float]] = {}
    by_gateway: dict[str, list[float]] = {}
    for _ in range(STARTS):
        with (
            server("--engine", "null", "--oip") as (address, server_pid),
            listening([*GATEWAY, "--server", address]) as (url, gateway_pid),
        ):
            host, _, port = url.removeprefix("http://").rpartition(":")
            async with grpc.aio.insecure_channel(address) as channel:
                apis: dict[str, Callable[[], Awaitable[None]]] = {
                    DIRECT: partial(call_directly, channel)
                }
                for name, request in requests().items():
                    apis[name] = partial(send_all, host, int(port), request)
                apis["WebSocket, a frame"] = partial(stream_all, host, int(port))
                for turn in range(turns + 1):
                    for name, work in apis.items():
                        before = cpu_s(gateway_pid)
                        spent = await cpu_of(server_pid, CALLS, work())
                        if turn:  # the first warms up
                            by_server.setdefault(name, []).append(spent)
                            own = (cpu_s(gateway_pid) - before) / CALLS * 1e3
                            by_gateway.setdefault(name, []).append(own)
    print("| API | gateway, ms | server, ms | (gateway + server) / server of gRPC |")
    print("|---|---|---|---|")
    for name, each in by_server.items():
        both = [one + other for one, other in zip(each, by_gateway[name], strict=True)]
        gateway = f"{statistics.median(by_gateway[name]):.2f}" if name != DIRECT else ""
        against = ratio(both, by_server[DIRECT]) if name != DIRECT else "1"
        print(f"| {name} | {gateway} | {statistics.median(each):.2f} | {against} |")


async def measure_kills() -> None:
    """Kill the gateway of a server repeatedly; print when HTTP is served again."""
    request = next(iter(requests().values()))
    command = [*PROGRAM, "--listen", "127.0.0.1:0", "--variants", "IMAGENET1K_V2"]
    command += ["--engine", "null", "--http-listen", "127.0.0.1:0", "--log-level", "error"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    took: list[float] = []
    try:
        assert process.stdout is not None
        line = ""
        while not line.startswith("http on "):
            line = process.stdout.readline()
        host, _, port = line.split()[-1].removeprefix("http://").rpartition(":")
        await _one(host, int(port), request)
        for _ in range(KILLS):
            os.kill(_child(process.pid), signal.SIGKILL)
            started = time.monotonic()
            await _one(host, int(port), request)
            took.append(time.monotonic() - started)
            await asyncio.sleep(11)  # until the supervisor's backoff is short again
    finally:
        process.terminate()
        process.wait()
    print(
        f"served again after SIGKILL: {statistics.median(took):.2f} s"
        f" ({min(took):.2f} to {max(took):.2f}), {KILLS} kills"
    )


async def _one(host: str, port: int, request: bytes) -> None:
    """Send a request until it is answered."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            if head.startswith(b"HTTP/1.1 200"):
                return
        except (OSError, asyncio.IncompleteReadError):
            continue


def _child(pid: int) -> int:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in listed or _children(pid):
        if b"resnet50_gateway" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise RuntimeError(f"process {pid} has no gateway")


def _children(pid: int) -> list[str]:
    """Return the children of all threads of a process."""
    return [
        child
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


def main() -> None:
    """Run the command line."""
    parser = parser_of(__doc__, ["cost", "kill"])
    parser.add_argument("--turns", type=int, default=TURNS, help=f"of cost; default: {TURNS}")
    arguments = parser.parse_args()
    if "cost" in (arguments.what or ["cost"]):
        asyncio.run(measure(arguments.turns))
    if "kill" in (arguments.what or ["kill"]):
        asyncio.run(measure_kills())


if __name__ == "__main__":
    main()
