"""Peak cost of a compressed message to a gRPC server, before its length is looked at.

    python -m benchmarks.compression
    pip install -t FOLDER grpcio==1.83.0 && PYTHONPATH=FOLDER python -m benchmarks.compression

docs/adr/0012-compressed-messages.md. Linux only: peaks are the kernel's.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc

LIMIT_BYTES = 1_200_000
TIMES_THE_LIMIT = (100, 400)


async def serve() -> None:
    """Answer every message with its length, at the port that is printed."""

    async def answer(request: bytes, _: object) -> bytes:
        return str(len(request)).encode()

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT_BYTES)])
    method = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Length", {"Of": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def memory_mib(pid: int, name: str) -> float:
    """Return a line of a process's memory, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Send zeros, compressed, to a server process; print what they cost it."""
    print(f"grpcio {grpc.__version__}, messages of at most {LIMIT_BYTES / 2**20:.1f} MiB")
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compression", "serve"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.stdout.readline().strip()}") as channel:
            call = channel.unary_unary("/test.Length/Of")
            call(b"warm")
            for times in TIMES_THE_LIMIT:
                Path(f"/proc/{server.pid}/clear_refs").write_text("5")
                before = memory_mib(server.pid, "VmRSS")
                try:
                    call(bytes(times * LIMIT_BYTES), compression=grpc.Compression.Gzip)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                grown = memory_mib(server.pid, "VmHWM") - before
                print(f"{times} x the limit in zeros: {code}, peak + {grown:.1f} MiB")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        main()
