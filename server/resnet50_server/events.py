"""Observers of the server: metrics, traces. Called on the event loop, so they must be quick."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resnet50_server.context import Call

log = logging.getLogger(__name__)

CacheUse: TypeAlias = Literal["none", "hit", "shared"]
"""What the response cache had to do with an answer; see the contract."""


@dataclass(eq=False, slots=True)
class Image:
    """An image that was answered.

    Attributes:
        call: That it came with.
        variant: That answered.
        ended: When the answer was there, on the clock of `time.perf_counter`, in seconds.
        decode_s: Decoding, the wait for a thread included.
        queue_s: From decoded to the start of its batch.
        compute_s: Its batch on the engine.
        total_s: From its arrival to the answer.
        batch_size: Images in its batch.
        decoded: When it was decoded, on the clock of `time.perf_counter`.
        batch: Its batch; None if it was in none.
        cache: Whether it was computed for another request; it was in no batch then.
    """

    call: Call
    variant: str
    ended: float
    decode_s: float
    queue_s: float
    compute_s: float
    total_s: float
    batch_size: int
    decoded: float = 0.0
    batch: Batch | None = None
    cache: CacheUse = "none"


@dataclass(eq=False, slots=True)
class Batch:
    """A batch that the engine has computed, or failed on.

    Attributes:
        variant: Whose.
        size: Images in it, also those whose callers gave up meanwhile.
        compute_s: On the engine, in seconds; 0 if it failed.
        ended: On the clock of `time.perf_counter`, in seconds.
        contexts: What `submit` was given with each image.
        failed: Whether the engine raised. Its images may be in others again; see `rescue`.
        started: When its images left the queue, on the same clock as `ended`.
        device: That computed it, e.g. "cpu" or "cuda:0".
        out_of_memory: Whether it failed because the device had no memory for it.
        not_numbers: How many of its answers are not numbers, and were failed.
        notes: What observers keep with it, by their own keys.
    """

    variant: str
    size: int
    compute_s: float
    ended: float
    contexts: Sequence[Any]
    failed: bool
    started: float = 0.0
    device: str = ""
    out_of_memory: bool = False
    not_numbers: int = 0
    notes: dict[object, Any] = field(default_factory=dict)


class Observer:
    """Sees what happens; each method does nothing unless it is overridden."""

    def call_started(self, call: Call) -> None:
        """See an RPC whose headers have arrived."""

    def call_ended(self, call: Call, code: str, error: Exception | None) -> None:
        """See how an RPC ended.

        Args:
            call: The RPC.
            code: The name of the gRPC status code that its caller is told; "CANCELLED" if the
                caller gave up, "DEADLINE_EXCEEDED" also if its deadline passed meanwhile.
            error: Why it failed; None if it did not, or gRPC ended it for its caller's sake.
        """

    def gave_up(self, call: Call, stage: str) -> None:
        """See a caller that gave up while it was still sending.

        What is inside by then is counted where it waits; see `DecodePool` and `VariantQueue`.

        Args:
            call: The RPC; it ends as "CANCELLED".
            stage: "receive" (its one request) or "upload" (its chunks).
        """

    def image_answered(self, image: Image) -> None:
        """See an image whose answer is about to leave."""

    def frame_refused(self, call: Call, error: Exception) -> None:
        """See a frame of a stream that is answered with an error."""

    def frame_dropped(self, call: Call) -> None:
        """See a frame of a stream that a newer one has replaced."""

    def batch_ended(self, batch: Batch) -> None:
        """See a batch that has left the engine."""


class Observers(Observer):
    """Several as one. An observer that raises harms neither the others nor the request.

    Args:
        observers: Each sees everything; more may be added while the server runs.

    Attributes:
        errors: How many calls of each observer raised, by the name of its class.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers: list[Observer] = []
        self.errors: dict[str, int] = {}
        for observer in observers:
            self.add(observer)

    def add(self, observer: Observer) -> None:
        """Let one more see everything from now on."""
        self._observers.append(observer)
        self.errors.setdefault(type(observer).__name__, 0)

    def call_started(self, call: Call) -> None:
        """Tell all."""
        self._tell("call_started", call)

    def call_ended(self, call: Call, code: str, error: Exception | None) -> None:
        """Tell all."""
        self._tell("call_ended", call, code, error)

    def gave_up(self, call: Call, stage: str) -> None:
        """Tell all."""
        self._tell("gave_up", call, stage)

    def image_answered(self, image: Image) -> None:
        """Tell all."""
        self._tell("image_answered", image)

    def frame_refused(self, call: Call, error: Exception) -> None:
        """Tell all."""
        self._tell("frame_refused", call, error)

    def frame_dropped(self, call: Call) -> None:
        """Tell all."""
        self._tell("frame_dropped", call)

    def batch_ended(self, batch: Batch) -> None:
        """Tell all."""
        self._tell("batch_ended", batch)

    def _tell(self, event: str, *values: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, event)(*values)
            except Exception:
                name = type(observer).__name__
                self.errors[name] += 1
                log.exception(
                    "the observer %s failed in %s: what it records is incomplete; requests go on",
                    name,
                    event,
                )
