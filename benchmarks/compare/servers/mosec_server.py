"""mosec with batching, one worker; the body is the JPEG."""

from __future__ import annotations

import json
import sys
from typing import Any

from limits import MAX_BATCH_SIZE, MAX_WAIT_S
from mosec import Server, Worker

PORT = sys.argv[1]
# mosec parses the command line itself.
sys.argv[1:] = ["--address", "127.0.0.1", "--port", PORT, "--timeout", "60000"]


class Classifier(Worker):
    """Decodes the images of a batch and computes them."""

    def __init__(self) -> None:
        super().__init__()
        from network import Network

        self.network = Network()

    def deserialize(self, data: bytes) -> Any:
        """Return the body as it is."""
        return data

    def serialize(self, data: Any) -> bytes:
        """Return an answer as JSON."""
        return json.dumps(data).encode()

    def forward(self, data: Any) -> Any:
        """Return the answers of a batch."""
        return self.network.predict([self.network.decode(one) for one in data])


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Classifier, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=round(MAX_WAIT_S * 1e3)
    )
    server.run()
