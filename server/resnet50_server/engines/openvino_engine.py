"""The engine that runs a graph in OpenVINO, on the CPU."""

from __future__ import annotations

import queue
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .base import BatchOutput
from .topk import ranked

# Importing OpenVINO would fork a process that reports the use of it to its maker. A server does
# not call home, and forking once gRPC runs can hang; without this package OpenVINO does neither.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

# fp16 is missing: OpenVINO has no such arithmetic on most CPUs, and would take another silently.
# Graphs that are int8 compute what is not in float32.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}

# One for all engines, as long as the process lives. Its CPU plugin gives the thread that compiles
# first a stack for signals (AMX needs a large one), and frees it in whichever thread the core goes:
# the other thread would die of its next signal, without a word.
_CORE = openvino.Core()


class OpenVinoEngine:
    """Runs a graph of `onnx_graph`.

    The first batch of a size it has not seen takes some 30 ms longer: it is prepared for it then.

    Args:
        graph: The graph's file.
        precision: One of `PRECISIONS`; "int8" for graphs that are.
        threads: Threads of one batch.
        instances: How many batches may run at once, each on threads of its own.

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
            # Copies: the request's own memory is the next batch's.
            probabilities = request.get_tensor("probabilities").data.copy()
            embeddings = request.get_tensor("embeddings").data.copy() if with_embeddings else None
        finally:
            self._requests.put(request)
        return BatchOutput(*ranked(probabilities, top_k), embeddings, time.perf_counter() - started)

    def padded(self, images: int) -> int:
        """Return `images`: the graph takes any size."""
        return images

    def close(self) -> None:
        """Give the weights' memory back."""
        while not self._requests.empty():
            self._requests.get_nowait()
