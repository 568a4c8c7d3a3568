"""BentoML with adaptive batching, one worker; images are base64 in JSON, a list of one per call."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from limits import MAX_BATCH_SIZE

# Calls that would take longer are refused.
MAX_LATENCY_MS = 60_000


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 60, "max_concurrency": 1000},
    logging={"access": {"enabled": False}},
)
class Classifier:
    """Decodes the images of a batch and computes them."""

    def __init__(self) -> None:
        from network import Network

        self.network = Network()

    @bentoml.api(
        route="/predict",
        batchable=True,
        max_batch_size=MAX_BATCH_SIZE,
        max_latency_ms=MAX_LATENCY_MS,
    )
    def predict(self, images: list[str]) -> list[dict[str, Any]]:
        """Return the answers of a batch."""
        return self.network.predict([self.network.decode(base64.b64decode(one)) for one in images])


if __name__ == "__main__":
    os.environ |= {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": os.environ["SCRATCH"]}
    serve = ["-m", "bentoml", "serve", "bentoml_server:Classifier", "--host", "127.0.0.1"]
    serve += ["--port", sys.argv[1], "--working-dir", str(Path(__file__).parent)]
    os.execv(sys.executable, [sys.executable, *serve])
