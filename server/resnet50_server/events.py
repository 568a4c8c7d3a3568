"""Events of the server that telemetry and other listeners receive.

They are delivered on the event loop, so listeners must be quick.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from resnet50_server.context import RequestContext

log = logging.getLogger(__name__)

CacheUse: TypeAlias = Literal["none", "hit", "shared"]
"""Whether a result came from the response cache, or from another request's computation."""
CancelStage: TypeAlias = Literal["receive", "upload"]
"""Message that was being received when the client cancelled: a request, or an upload's chunks."""


@dataclass(eq=False, slots=True)
class ImageEvent:
    """An image whose response is about to be sent.

    Attributes:
        context: The request that carried it.
        variant: Name of the variant that computed it.
        ended: When the result was ready, on the clock of `time.perf_counter`, in seconds.
        decode_s: Decoding, including the wait for a thread.
        queue_s: From decoded to the start of its batch.
        compute_s: Its batch on the engine.
        total_s: From arrival to result.
        batch_size: Images in its batch.
        decoded: When it was decoded, on the clock of `time.perf_counter`; 0 if it was not.
        batch: Its batch; None if it was in none.
        cache: How the response cache was used; anything but "none" means that it was in no batch.
    """

    context: RequestContext
    variant: str
    ended: float
    decode_s: float
    queue_s: float
    compute_s: float
    total_s: float
    batch_size: int
    decoded: float = 0.0
    batch: BatchEvent | None = None
    cache: CacheUse = "none"


@dataclass(eq=False, slots=True)
class BatchEvent:
    """A batch that the engine has computed, or failed on.

    Attributes:
        variant: Name of its variant.
        size: Images in it, including those cancelled meanwhile.
        compute_s: Time on the engine, in seconds; 0 if it failed.
        ended: On the clock of `time.perf_counter`, in seconds.
        contexts: The contexts of its images' requests; several may share one.
        failed: Whether the engine raised. Its images may be in later batches again, see
            `batching.failed_batches`.
        started: When its images left the queue, on the same clock as `ended`.
        device: Name of the device, e.g. "cpu" or "cuda:0".
        out_of_memory: Whether it failed because the device had too little memory.
        non_finite: How many of its results had NaN or Inf, and were failed.
        notes: Data that listeners attach to it, by their own keys.
    """

    variant: str
    size: int
    compute_s: float
    ended: float
    contexts: Sequence[RequestContext]
    failed: bool
    started: float = 0.0
    device: str = ""
    out_of_memory: bool = False
    non_finite: int = 0
    notes: dict[object, Any] = field(default_factory=dict)


class ServerEvents:
    """A listener; each method does nothing unless it is overridden."""

    def call_started(self, context: RequestContext) -> None:
        """Receive an RPC whose headers have arrived."""

    def call_ended(self, context: RequestContext, code: str, error: Exception | None) -> None:
        """Receive how an RPC ended.

        Args:
            context: The RPC.
            code: Name of its gRPC status code: "CANCELLED" if the client cancelled it,
                "DEADLINE_EXCEEDED" also if its deadline passed meanwhile.
            error: Why it failed; None if it succeeded, or gRPC ended it for the client.
        """

    def cancelled(self, context: RequestContext, stage: CancelStage) -> None:
        """Receive a client that cancelled while it was still sending.

        Requests cancelled later are counted where they wait, see `DecodePool` and `VariantQueue`.

        Args:
            context: The RPC; it ends as "CANCELLED".
            stage: The kind of message that was being received.
        """

    def image_answered(self, image: ImageEvent) -> None:
        """Receive an image whose response is about to be sent."""

    def image_refused(self, context: RequestContext, error: Exception) -> None:
        """Receive a frame of a stream, or an image of a batch, that is answered with an error."""

    def frame_dropped(self, context: RequestContext) -> None:
        """Receive a frame of a stream that a newer one has replaced."""

    def batch_ended(self, batch: BatchEvent) -> None:
        """Receive a batch that has left the engine."""


EVENTS = tuple(name for name in vars(ServerEvents) if not name.startswith("_"))
"""Names of all events."""


class CompositeEvents(ServerEvents):
    """Several listeners as one. A listener that raises affects neither the others nor requests.

    Args:
        listeners: Each receives the events whose methods it overrides; `add` adds more while the
            server runs.

    Attributes:
        errors: How many events of each listener raised, by the name of its class.
    """

    def __init__(self, listeners: Iterable[ServerEvents] = ()) -> None:
        # By event: the names and the bound methods of the listeners that receive it. An event that
        # none receives keeps the method that does nothing.
        self._receivers: dict[str, list[tuple[str, Callable[..., None]]]] = {}
        self.errors: dict[str, int] = {}
        for listener in listeners:
            self.add(listener)

    def add(self, listener: ServerEvents) -> None:
        """Deliver all events from now on to one more listener."""
        name = type(listener).__name__
        self.errors.setdefault(name, 0)
        for event in EVENTS:
            if getattr(type(listener), event) is not getattr(ServerEvents, event):
                receivers = self._receivers.setdefault(event, [])
                receivers.append((name, getattr(listener, event)))
                setattr(self, event, partial(self._deliver, event))

    def _deliver(self, event: str, *values: Any) -> None:
        for name, receive in self._receivers[event]:
            try:
                receive(*values)
            except Exception:
                self.errors[name] += 1
                log.exception(
                    "%s failed to record %s; its data is incomplete, requests are not affected",
                    name,
                    event,
                )
