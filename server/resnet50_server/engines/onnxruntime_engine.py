"""The engine that runs a graph in onnxruntime, on the CPU."""

from __future__ import annotations

import queue
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .base import BatchOutput
from .topk import top_k_of


class OnnxRuntimeEngine:
    """Runs a graph of `onnx_export`; float32, or int8 where the graph is.

    Args:
        graph: The graph's file.
        threads: Threads of one batch.
        instances: Number of batches that may run concurrently, each on its own threads.

    Raises:
        onnxruntime.OrtException: The file is not such a graph.
    """

    sizes: tuple[int, ...] = ()

    def __init__(self, graph: Path, threads: int, instances: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Only fatal errors: the others are raised too, and its log would block on a full pipe.
        options.log_severity_level = 4
        # Threads that spin between batches would take CPU time from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions: queue.SimpleQueue[onnxruntime.InferenceSession] = queue.SimpleQueue()
        for _ in range(instances):
            session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
            self._sessions.put(session)
        # Without a classification head there are no probabilities.
        self._outputs = [output.name for output in session.get_outputs()]

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Compute a batch; see `Engine.run`."""
        started = time.perf_counter()
        session = self._sessions.get()
        try:
            values = session.run(self._outputs, {"images": np.stack(images)})
        finally:
            self._sessions.put(session)
        outputs = dict(zip(self._outputs, values, strict=True))
        probabilities = outputs.get("probabilities", np.empty((len(images), 0), np.float32))
        return BatchOutput(
            *top_k_of(probabilities, top_k),
            outputs["embeddings"] if with_embeddings else None,
            time.perf_counter() - started,
        )

    def padded(self, images: int) -> int:
        """Return `images`: the graph takes any size."""
        return images

    def close(self) -> None:
        """Free the weights."""
        while not self._sessions.empty():
            self._sessions.get_nowait()
