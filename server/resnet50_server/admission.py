"""How much may be inside the server at once; beyond it, requests are refused instead of queued."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .errors import Overloaded, ShuttingDown

# Room comes back as soon as any request is answered, so callers need not wait long.
RETRY_AFTER_S = 0.1


class Admission:
    """Counts requests and their bytes from arrival to answer. Event loop only.

    Args:
        max_requests: Requests inside at once.
        max_bytes: Sum of their message lengths.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0
        self.draining = False

    @contextlib.contextmanager
    def admit(self, length: int) -> Iterator[None]:
        """Hold a place for one request while the block runs.

        Args:
            length: The request's bytes.

        Raises:
            Overloaded: There is no room; names the limit.
            ShuttingDown: The server takes no more requests.
        """
        if self.draining:
            raise ShuttingDown("the server is shutting down; call another one")
        if self.requests >= self.max_requests:
            raise Overloaded(
                f"max_requests ({self.max_requests}) requests are inside the server",
                RETRY_AFTER_S,
            )
        if self.bytes + length > self.max_bytes and self.requests:
            raise Overloaded(
                f"max_request_bytes ({self.max_bytes}) of requests are inside the server",
                RETRY_AFTER_S,
            )
        self.requests += 1
        self.bytes += length
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= length
