"""The context of one request: who calls, what for, since when, and with which priority."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from resnet50_server.auth.identity import Caller

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
UNKNOWN_CALLER = Caller("", frozenset())

# Priorities. Bulk requests wait behind interactive ones, but not for ever.
INTERACTIVE = "interactive"
BULK = "bulk"
# While both wait, one image in so many is bulk.
BULK_EVERY = 16
# Share of every limit that bulk requests leave to interactive ones.
INTERACTIVE_SHARE = 0.25


class Permit(Protocol):
    """Permission of admission control for one image to be in flight."""

    def add_bytes(self, length: int) -> None:
        """Add bytes to it; raises `Overloaded` beyond a limit."""

    def make_bulk(self) -> None:
        """Count it as bulk from now on; raises `Overloaded` beyond a limit of bulk requests."""


@dataclass(eq=False, slots=True)
class RequestContext:
    """An RPC in progress.

    Attributes:
        method: Its name, e.g. "Classify".
        request_id: Connects log, metadata and trace.
        metadata: Invocation metadata.
        caller: Identity of the caller; `UNKNOWN_CALLER` until authenticated.
        bulk: Whether it has bulk priority.
        deadline: When its response is due, in loop time; None for no limit.
        stream: Identifies the stream of a frame; None for a single image. Streams share the server
            equally, and wait where it is full; a single image is refused at once.
        shadow: Whether no client waits for the result, as of shadow traffic and self-tests. It is
            not cached, a failed batch of it is not retried, it says nothing about the health of
            variant and device, and it reaches a variant that is out of service.
        key: Identifies the caller to traffic splits, from `x-caller-key`; "" if absent.
        asked: Name of the requested variant; "" until it is resolved.
        variant: Name of the variant that computes it, which may be the candidate of a traffic
            split; "" until it is resolved.
        started: On the clock of `time.perf_counter`.
        notes: Data that listeners attach to it, by their own keys.
        trace_id: 32 hexadecimal digits if it is traced, else "".
        image_failed: Whether the error that ends it is that of an image or a frame, which has no
            response of its own; it counts as that image's failure.
    """

    method: str
    request_id: str
    metadata: Metadata
    caller: Caller = UNKNOWN_CALLER
    bulk: bool = False
    deadline: float | None = None
    stream: Hashable | None = None
    shadow: bool = False
    key: str = ""
    asked: str = ""
    variant: str = ""
    started: float = field(default_factory=time.perf_counter)
    notes: dict[object, Any] = field(default_factory=dict)
    trace_id: str = ""
    image_failed: bool = False


# For log records: the request that the running task belongs to.
CURRENT_REQUEST: ContextVar[RequestContext] = ContextVar("call")


def limit_for(limit: int, bulk: bool) -> int:
    """Return how much of a limit a request may take; at least 1, or bulk would never start."""
    return max(1, int(limit * (1 - INTERACTIVE_SHARE))) if bulk else limit
