"""LitServe with batching, one worker; images are base64 in JSON, as in its examples."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
from limits import MAX_BATCH_SIZE

# LitServe waits in steps of 1 ms.
BATCH_TIMEOUT_S = 0.002


class Classifier(litserve.LitAPI):
    """Decodes images one by one and computes them as a batch, in the worker."""

    def setup(self, device: str) -> None:
        """Load the network."""
        from network import Network

        self.network = Network()

    # LitServe validates the body by the annotation of `request`; none means any JSON.
    def decode_request(self, request, **kwargs):  # type: ignore[no-untyped-def]
        """Return a transformed image."""
        return self.network.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Return a batch, which the network stacks."""
        return inputs

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """Return the answers of a batch, or of one image."""
        return self.network.predict(x)

    def unbatch(self, output: Any) -> Any:
        """Return the answers one by one."""
        return output

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        """Return the answer, which becomes JSON."""
        return output


if __name__ == "__main__":
    # A timeout of 0 would poll the queue without a pause, on both cores.
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
