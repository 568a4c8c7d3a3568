"""Limits on what is in flight, of all callers together and of each, and what they use of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from resnet50_server.context import INTERACTIVE, limit_for
from resnet50_server.errors import Overloaded
from resnet50_server.settings import Settings

# Any response releases capacity, so clients need not wait long before a retry.
RETRY_AFTER_S = 0.1
# So many callers are remembered for their rate before idle ones are forgotten.
REMEMBERED_CALLERS = 1024
# The limits on images that all callers share.
SHARED_LIMITS = ("max_requests", "max_request_bytes")


@dataclass(frozen=True)
class Limits:
    """Limits on what is in flight at once.

    Attributes:
        requests: Images, from arrival to response.
        bytes: The sum of their sizes.
        streams: Open streams.
        uploads: Images that arrive in chunks.
        requests_per_caller: Of `requests`, how many one caller may have.
        bytes_per_caller: The same of `bytes`.
        streams_per_caller: The same of `streams`.
        uploads_per_caller: The same of `uploads`.
        rate_per_caller: Images a second from one caller; 0 for no limit.
    """

    requests: int = 1024
    bytes: int = 512 * 2**20
    streams: int = 1024
    uploads: int = 1024
    requests_per_caller: int = 1024
    bytes_per_caller: int = 512 * 2**20
    streams_per_caller: int = 1024
    uploads_per_caller: int = 1024
    rate_per_caller: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that are set."""
        return cls(
            requests=settings.max_requests,
            bytes=settings.max_request_bytes,
            streams=settings.max_streams,
            uploads=settings.max_uploads,
            requests_per_caller=settings.max_requests_per_caller,
            bytes_per_caller=settings.max_request_bytes_per_caller,
            streams_per_caller=settings.max_streams_per_caller,
            uploads_per_caller=settings.max_uploads_per_caller,
            rate_per_caller=settings.max_rate_per_caller,
        )

    def of_bulk(self) -> Limits:
        """Return how much of the limits on images bulk requests may take."""
        return replace(
            self,
            requests=limit_for(self.requests, bulk=True),
            bytes=limit_for(self.bytes, bulk=True),
            requests_per_caller=limit_for(self.requests_per_caller, bulk=True),
            bytes_per_caller=limit_for(self.bytes_per_caller, bulk=True),
        )


class Usage:
    """Counts of what is in flight, of one caller or of all.

    Attributes:
        requests: Images.
        bytes: The sum of their sizes.
        streams: Open streams.
        uploads: Open uploads.
        next_at: When the caller, at the rate it may have, is due to send its next image (the
            theoretical arrival time of a leaky bucket), on the clock of `Quotas`.
    """

    __slots__ = ("bytes", "next_at", "requests", "streams", "uploads")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.streams = 0
        self.uploads = 0
        self.next_at = 0.0

    @property
    def is_idle(self) -> bool:
        """True if nothing is in flight."""
        return not (self.requests or self.streams or self.uploads)


class Quotas:
    """Counts usage against limits. Event loop only.

    Args:
        limits: Limits on images in flight.
        clock: Tells the time, in seconds.

    Attributes:
        total: The usage of all callers.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.total = Usage()
        self._of_bulk = limits.of_bulk()
        self._clock = clock
        self._callers: dict[str, Usage] = {}
        self._sweep_above = REMEMBERED_CALLERS

    def __len__(self) -> int:
        return len(self._callers)

    def of(self, caller: str) -> Usage:
        """Return a caller's usage; a new one if it has none."""
        return self._callers.get(caller) or Usage()

    def add_request(self, caller: str, usage: Usage, length: int) -> None:
        """Count an image; it also counts towards the caller's rate."""
        if rate := self.limits.rate_per_caller:
            usage.next_at = max(usage.next_at, self._clock()) + 1.0 / rate
        self._callers[caller] = usage
        total = self.total
        total.requests += 1
        total.bytes += length
        usage.requests += 1
        usage.bytes += length

    def add_bytes(self, usage: Usage, length: int) -> None:
        """Count more bytes of an image that is counted."""
        self.total.bytes += length
        usage.bytes += length

    def remove_request(self, caller: str, usage: Usage, length: int) -> None:
        """Count an image no longer."""
        total = self.total
        total.requests -= 1
        total.bytes -= length
        usage.requests -= 1
        usage.bytes -= length
        if not usage.requests and usage.is_idle:
            self._forget(caller, usage)

    def add(self, what: str, caller: str, usage: Usage, count: int) -> None:
        """Count streams or uploads.

        Args:
            what: "streams" or "uploads".
            caller: Its name.
            usage: The caller's.
            count: How many; -1 for one that has ended.
        """
        self._callers[caller] = usage
        for counted in (self.total, usage):
            setattr(counted, what, getattr(counted, what) + count)
        if usage.is_idle:
            self._forget(caller, usage)

    def exceeded(
        self, usage: Usage, length: int, bulk: bool, reserved_bytes: int = 0
    ) -> str | None:
        """Return the limit that one more image would exceed; None if there is capacity.

        Args:
            usage: The caller's.
            length: The image's bytes.
            bulk: Whether it leaves a share of the limits to interactive requests.
            reserved_bytes: Bytes that are reserved for others.
        """
        limits = self._of_bulk if bulk else self.limits
        if self.total.requests >= limits.requests:
            return "max_requests"
        if usage.requests >= limits.requests_per_caller:
            return "max_requests_per_caller"
        if not length and not reserved_bytes:
            return None  # its bytes are counted, or will be
        return self.exceeded_bytes(usage, length, bulk, reserved_bytes=reserved_bytes)

    def exceeded_bytes(
        self, usage: Usage, length: int, bulk: bool, counted: int = 0, reserved_bytes: int = 0
    ) -> str | None:
        """Return the limit that more bytes would exceed.

        A single image may be larger than the limit: otherwise it would be refused for ever.

        Args:
            usage: The caller's.
            length: How many more.
            bulk: As `exceeded`.
            counted: Those of the same image that are counted already.
            reserved_bytes: As `exceeded`.
        """
        limits, total = self._of_bulk if bulk else self.limits, self.total.bytes
        if total > counted and total + length + reserved_bytes > limits.bytes:
            return "max_request_bytes"
        if usage.bytes > counted and usage.bytes + length > limits.bytes_per_caller:
            return "max_request_bytes_per_caller"
        return None

    def exceeded_as_bulk(self, usage: Usage, length: int) -> str | None:
        """Return the limit of bulk requests that an image exceeds which is counted already.

        Args:
            usage: The caller's.
            length: The image's bytes that are counted.
        """
        if self.total.requests > self._of_bulk.requests:
            return "max_requests"
        if usage.requests > self._of_bulk.requests_per_caller:
            return "max_requests_per_caller"
        return self.exceeded_bytes(usage, 0, bulk=True, counted=length)

    def exceeded_count(self, what: str, usage: Usage) -> str | None:
        """Return the limit that one more stream or upload would exceed.

        Args:
            what: "streams" or "uploads".
            usage: The caller's.
        """
        if getattr(self.total, what) >= getattr(self.limits, what):
            return f"max_{what}"
        if getattr(usage, what) >= getattr(self.limits, f"{what}_per_caller"):
            return f"max_{what}_per_caller"
        return None

    def rate_delay_s(self, usage: Usage) -> float:
        """Return how long a caller must wait to keep `rate_per_caller`; 0 if it need not.

        It may send as many at once as in a second.
        """
        rate = self.limits.rate_per_caller
        if not rate:
            return 0.0
        now = self._clock()
        delay_s = max(usage.next_at, now) + 1.0 / rate - now - max(1.0, 1.0 / rate)
        return delay_s if delay_s > 1e-9 else 0.0

    def overloaded(
        self, limit: str, caller: str, usage: Usage, *, bulk: bool = False, waiting: int = 0
    ) -> Overloaded:
        """Return the error that names a limit.

        Args:
            limit: The setting's name.
            caller: Its name.
            usage: The caller's.
            bulk: As `exceeded`.
            waiting: How many frames wait for capacity.
        """
        name = limit.removeprefix("max_").removeprefix("request_")
        what = name.removesuffix("_per_caller")
        of_all = name == what
        count = getattr(self.total if of_all else usage, what)
        counted = f"{count} {'bytes of images' if what == 'bytes' else what}"
        state = "in flight" if what in ("requests", "bytes") else "open"
        text = f"{limit} ({getattr(self.limits, name)}): {counted}"
        text += f" are {state}" if of_all else f" of {caller} are {state}"
        if waiting and limit in SHARED_LIMITS:
            text += f", and {waiting} frames wait"
        if bulk:
            text += f", and the rest is reserved for {INTERACTIVE} requests"
        return Overloaded(limit, text, RETRY_AFTER_S)

    def _forget(self, caller: str, usage: Usage) -> None:
        """Drop the usage of an idle caller, unless its rate has to be remembered."""
        if not usage.next_at or usage.next_at <= self._clock():
            self._callers.pop(caller, None)
        elif len(self._callers) > self._sweep_above:
            now = self._clock()
            self._callers = {
                name: each
                for name, each in self._callers.items()
                if not each.is_idle or each.next_at > now
            }
            self._sweep_above = max(REMEMBERED_CALLERS, 2 * len(self._callers))


def message_slots(max_bytes: int, max_message_bytes: int) -> int:
    """Return how many messages of the largest size fit into a limit; at least one."""
    return max(1, max_bytes // max_message_bytes)
