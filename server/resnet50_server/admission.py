"""How much may be inside the server at once; beyond it, requests are refused instead of queued."""

from __future__ import annotations

from types import TracebackType

from .errors import Overloaded, ShuttingDown

# Room comes back as soon as any request is answered, so callers need not wait long.
RETRY_AFTER_S = 0.1


class Admission:
    """Counts requests and their bytes from arrival to answer. Event loop only.

    Args:
        max_requests: Requests inside at once.
        max_bytes: Sum of their images' lengths.

    Attributes:
        draining: Set once no more requests are taken.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0
        self.draining = False

    def admit(self, length: int) -> Place:
        """Take a place for one request; leaving the `with` block gives it back.

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
        place = Place(self)
        place.grow(length)
        self.requests += 1
        return place


class Place:
    """A request's place inside the server.

    Args:
        admission: Where the place is.
    """

    __slots__ = ("_admission", "_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def grow(self, length: int) -> None:
        """Take room for more bytes.

        Raises:
            Overloaded: There is none; names the limit.
        """
        admission = self._admission
        # One request alone may be larger than the limit: refusing it for ever would help nobody.
        others = admission.bytes - self._bytes
        if others and admission.bytes + length > admission.max_bytes:
            raise Overloaded(
                f"max_request_bytes ({admission.max_bytes}) of requests are inside the server",
                RETRY_AFTER_S,
            )
        admission.bytes += length
        self._bytes += length

    def leave(self) -> None:
        """Give the place back; once."""
        self._admission.requests -= 1
        self._admission.bytes -= self._bytes

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
