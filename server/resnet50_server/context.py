"""One RPC, from the moment it is known to the moment it has ended, and whoever watches it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from resnet50_server.auth.identity import Caller
from resnet50_server.errors import ServingError

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
NOBODY = Caller("", frozenset())


class Permit(Protocol):
    """What admission has granted an RPC about one image."""

    def grow(self, length: int) -> None:
        """Take more bytes; raises `Overloaded` if there is no capacity for them."""


@dataclass(eq=False, slots=True)
class Call:
    """An RPC that runs.

    Attributes:
        method: Its name, e.g. "Classify".
        request_id: Connects log, metadata and trace.
        metadata: What the caller sent along.
        caller: Who it is; nobody until that is known.
        bulk: Whether it gives way to interactive calls.
        place: The permit of admission control, if the RPC is about a single image.
        key: What traffic splits know the caller by, if the caller says it.
        asked: The name of the variant that the caller asks for; "" until that is known.
        variant: The name of the variant that answers, which may be the candidate of a traffic split
            instead; "" until that is known.
        leave: Called at its end, if it uses a variant.
        stop: Ends a stream after the frames that are inside, for a reason.
        started: On the clock of `time.perf_counter`.
        notes: What observers keep with it, by their own keys.
        trace_id: Of the trace that it is recorded in, 32 hexadecimal digits; "" if it is not.
    """

    method: str
    request_id: str
    metadata: Metadata
    caller: Caller = NOBODY
    bulk: bool = False
    place: Permit | None = None
    key: str = ""
    asked: str = ""
    variant: str = ""
    leave: Callable[[], None] | None = None
    stop: Callable[[ServingError], None] | None = None
    started: float = field(default_factory=time.perf_counter)
    notes: dict[object, Any] = field(default_factory=dict)
    trace_id: str = ""


# The call that runs.
CALL: ContextVar[Call] = ContextVar("call")
