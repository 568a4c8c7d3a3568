"""grpc.aio as in its tutorial: one image per call, computed in a thread, without batching."""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import uvloop
from network import Network

NETWORK = Network()


def classify(encoded: bytes) -> bytes:
    """Return the answer as JSON."""
    return json.dumps(NETWORK.predict([NETWORK.decode(encoded)])[0]).encode()


async def serve(port: str) -> None:
    """Serve until the process ends."""
    pool = ThreadPoolExecutor(1)

    async def handle(encoded: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(pool, classify, encoded)

    server = grpc.aio.server()
    handlers = {"Classify": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("peer.Classifier", handlers),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
