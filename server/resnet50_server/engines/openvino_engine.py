"""The engine that runs a graph in OpenVINO, on the CPU."""

from __future__ import annotations

import queue
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .base import BatchOutput
from .topk import top_k_of

# Importing OpenVINO would fork a process that sends telemetry to its maker. Forking once gRPC runs
# can hang; without this package OpenVINO sends nothing and does not fork.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

# No fp16: most CPUs do not support it, and OpenVINO would silently use another precision. Layers of
# int8 graphs that are not quantized run in float32.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}

# One for all engines, for the life of the process. Its CPU plugin installs a signal stack in the
# thread that compiles first (AMX needs a large one), and frees it in the thread that destroys the
# core: the first thread would then crash at its next signal.
_CORE = openvino.Core()


class OpenVinoEngine:
    """Runs a graph of `onnx_export`.

    The first batch of each size takes about 30 ms longer, for its preparation.

    Args:
        graph: The graph's file.
        precision: One of `PRECISIONS`; "int8" for graphs that are.
        threads: Threads of one batch.
        instances: Number of batches that may run concurrently, each on its own threads.

    Raises:
        RuntimeError: The file is not such a graph.
    """

    sizes: tuple[int, ...] = ()

    def __init__(self, graph: Path, precision: str, threads: int, instances: int) -> None:
        compiled = _CORE.compile_model(
            str(graph),
            "CPU",
            {
                "NUM_STREAMS": instances,
                "INFERENCE_NUM_THREADS": threads * instances,
                "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
                # Threads bound to a core would wait there while decoding has it.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._has_head = any("probabilities" in output.names for output in compiled.outputs)
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(instances):
            self._requests.put(compiled.create_infer_request())

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Compute a batch; see `Engine.run`."""
        started = time.perf_counter()
        request = self._requests.get()
        try:
            request.infer({"images": np.stack(images)})
            # Copies, since the next batch reuses the request's memory.
            probabilities = np.empty((len(images), 0), dtype=np.float32)
            if self._has_head:
                probabilities = request.get_tensor("probabilities").data.copy()
            embeddings = request.get_tensor("embeddings").data.copy() if with_embeddings else None
        finally:
            self._requests.put(request)
        return BatchOutput(
            *top_k_of(probabilities, top_k), embeddings, time.perf_counter() - started
        )

    def padded(self, images: int) -> int:
        """Return `images`: the graph takes any size."""
        return images

    def close(self) -> None:
        """Free the weights."""
        while not self._requests.empty():
            self._requests.get_nowait()
