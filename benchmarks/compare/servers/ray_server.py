"""Ray Serve with dynamic batching, one replica; by HTTP the body is the JPEG, by gRPC a message."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from limits import MAX_BATCH_SIZE, MAX_WAIT_S
from ray import serve
from starlette.requests import Request


@serve.deployment(
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 1},
    graceful_shutdown_timeout_s=1,
    graceful_shutdown_wait_loop_s=0.1,
)
class Classifier:
    """Decodes the images of a batch and computes them, in a thread beside the event loop."""

    def __init__(self) -> None:
        from network import Network

        self.network = Network()
        # One thread, so that OpenMP keeps one pair of threads.
        self.pool = ThreadPoolExecutor(1)

    def _compute(self, jpegs: list[bytes]) -> list[dict[str, Any]]:
        return self.network.predict([self.network.decode(one) for one in jpegs])

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=MAX_WAIT_S)
    async def _batch(self, jpegs: list[bytes]) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, self._compute, jpegs)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Return the answer, which becomes JSON."""
        answer: dict[str, Any] = await self._batch(await request.body())
        return answer

    async def Classify(self, request: BytesValue) -> StringValue:
        """Return the answer as JSON in a message."""
        return StringValue(value=json.dumps(await self._batch(request.value)))


def main(port: int, protocol: str) -> None:
    """Serve until SIGTERM."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        _temp_dir=os.environ["SCRATCH"],
    )
    http: dict[str, Any] = {"host": "127.0.0.1", "port": port, "num_cpus": 0}
    rpc = None
    if protocol == "grpc":
        http["port"] = 0
        rpc = {"port": port, "grpc_servicer_functions": ["ray_grpc.add_to_server"]}
    serve.start(http_options=http, grpc_options=rpc)
    app = Classifier.bind()  # type: ignore[attr-defined]
    serve.run(app, name="classifier", route_prefix="/inference")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(int(sys.argv[1]), sys.argv[2])
