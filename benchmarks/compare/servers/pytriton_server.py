"""PyTriton: Triton's dynamic batcher and HTTP before a Python function; JPEGs as BYTES."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from limits import MAX_BATCH_SIZE, MAX_WAIT_S, TOP_K
from network import Network
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

NETWORK = Network()


@batch
def classify(image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the answers of a batch; `image` has the dtype object and the shape [N, 1]."""
    answers = NETWORK.predict([NETWORK.decode(one) for one in image[:, 0]])
    return {
        "indices": np.array([one["indices"] for one in answers], np.int64),
        "probabilities": np.array([one["probabilities"] for one in answers], np.float32),
    }


if __name__ == "__main__":
    # The backend's process reads .pth files of this environment, but no PYTHONPATH.
    start = Path(np.__file__).parents[1] / "triton_stub.pth"
    start.write_text(f"{Path(__file__).parent}\nimport triton_stub\n")
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[1]),
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    delay = DynamicBatcher(max_queue_delay_microseconds=round(MAX_WAIT_S * 1e6))
    with Triton(config=config, workspace=Path(os.environ["SCRATCH"]) / "triton") as triton:
        triton.bind(
            model_name="classifier",
            infer_func=classify,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="indices", dtype=np.int64, shape=(TOP_K,)),
                Tensor(name="probabilities", dtype=np.float32, shape=(TOP_K,)),
            ],
            config=ModelConfig(max_batch_size=MAX_BATCH_SIZE, batcher=delay),
            strict=False,
        )
        triton.serve()
