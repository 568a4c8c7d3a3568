"""Images of a bulk run, grouped into calls: the state of the run, without I/O."""

from __future__ import annotations

import collections
import copy
import math
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ._batch_sizes import MAX_BATCH_IMAGES, BatchSizes
from ._bulk_flow_control import FlowControl
from ._bulk_images import (
    BatchCall,
    BulkImage,
    BulkLimits,
    ImageError,
    Outcome,
    broke_connections,
    late,
)
from ._codec import with_origin
from ._outcomes import OutcomeQueue
from ._preprocessed import ImageContent
from ._retries import MAX_SENDS, backoff_s
from ._retry_queue import RetryQueue
from ._unsent_images import UnsentImages
from .errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    Resnet50Error,
    ServerError,
    TransformMismatchError,
    UnavailableError,
)

Result = TypeVar("Result")

# Images and results in memory, in bytes; those being read come on top.
MAX_BYTES = 64 * 2**20
# Python objects of a result take up to so many times its bytes on the wire.
RESULT_FACTOR = 8
# Images without a call, at least; otherwise as many as are in flight.
READ_AHEAD = MAX_BATCH_IMAGES
# An image waits so long for others of its batch, then it is sent: the source is slow.
LINGER_S = 0.02
# Images in flight at this many broken connections are sent while nothing else is in flight, so that
# the next break can only be due to them.
ALONE_AFTER = 2
# An image that breaks the connection so many times while no other is in flight is the cause. Once
# may be chance: a connection can break by itself.
TIMES_ALONE = 2
# Errors of a call with one image that are about the image: others would not get them.
_OF_IMAGES = (InvalidImageError, TransformMismatchError, ServerError, DataLossError)


class Batches(Generic[Result]):
    """The images of a bulk run: read, in flight, to be sent again, and answered.

    Each image gets exactly one outcome. Small images are grouped into calls by number and bytes, a
    large one is a call of its own. Images are sent again, until their time is over, if no server
    was reachable or a server was overloaded. An image that was in flight at several broken
    connections may be their cause, for example by crashing servers: its call is then sent while
    nothing else is in flight, then each of its images, and the one that still breaks the connection
    gets an error, so that the others are answered.

    Errors that all images would get, such as an unknown variant, are the run's `failure`.

    Args:
        limits: Limits of the run.
        clock: Returns the time in seconds.

    Attributes:
        failure: Error that ends the run, once all outcomes before it are taken.
        in_flight: Number of images in flight.
    """

    def __init__(self, limits: BulkLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._flow = FlowControl(limits.timeout_s, limits.max_in_flight)
        self._sizes = BatchSizes()
        self._reading = 0
        self._exhausted = False
        self._source_failure: BaseException | None = None
        self._unsent = UnsentImages(self._sizes)
        # Images to send again; those that may break connections apart.
        self._retries, self._suspects = RetryQueue(), RetryQueue()
        self._asked_at = -math.inf  # when `next_call` was last called
        self._calls: set[BatchCall] = set()
        self._alone = False  # True while a call is in flight that has to be alone
        self.in_flight = 0
        self._unanswered = 0
        self._bytes = 0  # of the images without an outcome
        self._outcomes: OutcomeQueue[Result] = OutcomeQueue(limits.ordered)
        self.failure: BaseException | None = None

    # Reading

    def wants_image(self) -> bool:
        """Return True if another image is to be read now."""
        if self.ended:
            return False
        waiting = len(self._unsent) + self._reading
        return self.bytes < MAX_BYTES and waiting < max(READ_AHEAD, self.window)

    @property
    def window(self) -> int:
        """Number of images that may be in flight now."""
        return self._flow.window

    @property
    def bytes(self) -> int:
        """Size in memory of the images without an outcome, and of the outcomes not taken."""
        return self._bytes + self._outcomes.bytes

    @property
    def ended(self) -> bool:
        """True if no further image is to be read."""
        return self._exhausted or self.failure is not None

    def begin_read(self) -> None:
        """Record that an image is being read, until `add`, `add_error` or `end`."""
        self._reading += 1

    def add(self, index: int, key: Any, source: Any, content: ImageContent) -> None:
        """Add an image that was read."""
        image = BulkImage(index, key, source, content, self._clock() + LINGER_S)
        self._reading -= 1
        self._unanswered += 1
        self._bytes += image.bytes
        self._unsent.add(image)

    def add_error(self, index: int, key: Any, source: Any, error: ImageError) -> None:
        """Add an image that cannot be read."""
        self._reading -= 1
        self._unanswered += 1
        image = BulkImage(index, key, source, None, self._clock())
        self._bytes += image.bytes
        self._finish(image, error=error)

    def end(self, failure: BaseException | None = None) -> None:
        """End the images: the source has no more, or reading it failed."""
        self._reading -= 1
        if not self._exhausted:
            self._exhausted, self._source_failure = True, failure

    # Sending

    def next_call(self) -> BatchCall | None:
        """Return the next call to send now, or None."""
        while self.failure is None and not self._alone:
            now = self._asked_at = self._clock()
            if self._suspects.due <= now:
                if self.in_flight:
                    return None
                images, alone = self._suspects.pop(), True
            else:
                images, alone = self._next_images(now), False
            if not images:
                return None
            if live := self._without_expired(images, now):
                return self._send(live, now, alone)
        return None

    def wait_s(self) -> float | None:
        """Return the seconds until `next_call` may return a call without any event; or None."""
        times = [self._retries.due, self._suspects.due]
        if (send_by := self._unsent.send_by) is not None and not self._no_more_soon():
            times.append(send_by)
        # Those that were due for the last `next_call` wait for an answer to another call.
        due = min((due for due in times if due > self._asked_at), default=math.inf)
        return max(0.0, due - self._clock()) if due < math.inf else None

    def _no_more_soon(self) -> bool:
        """Return True if no image will be read before another one is answered."""
        return not self._reading and not self.wants_image()

    def _next_images(self, now: float) -> list[BulkImage]:
        """Take the images of the next call: of a retry, a large one, or a batch; [] for none."""
        count = min(self._flow.batch_images, self._sizes.max_images)
        if self.in_flight and self._flow.window - self.in_flight < count:
            return []  # rather than a small batch into the rest of a window
        if (due := self._retries.due) <= now:
            rest = collections.deque(self._retries.pop())
            taken = self._sizes.take(rest, count)
            if rest:
                self._retries.push(due, list(rest))
            return taken
        return self._unsent.take(count, now, self._no_more_soon())

    def _without_expired(self, images: list[BulkImage], now: float) -> list[BulkImage]:
        """Give images whose time is over their error; return the others."""
        live = []
        for image in images:
            if image.deadline is None or image.deadline > now:
                live.append(image)
            else:
                self._give_final_error(image, image.last_error or late(self._limits.timeout_s))
        return live

    def _send(self, images: list[BulkImage], now: float, alone: bool) -> BatchCall:
        for image in images:
            if image.deadline is None:
                image.deadline = now + self._limits.timeout_s
        left_s = min(image.deadline or math.inf for image in images) - now
        call = BatchCall(images, left_s, now, alone)
        self._calls.add(call)
        self._alone = alone
        self.in_flight += len(images)
        return call

    # Answers

    def answered(
        self,
        call: BatchCall,
        results: list[Result | Resnet50Error],
        reply_bytes: int = 0,
        request_id: str | None = None,
    ) -> None:
        """Record the answer to a call: a result or an error for each of its images.

        Args:
            call: The call.
            results: As many as it has images.
            reply_bytes: Size of the response.
            request_id: ID of the request.
        """
        now, before = self._clock(), self.in_flight
        self._remove(call)
        if len(results) != len(call.images):
            wrong = ServerError(
                f"the server answered {len(results)} images of a call about {len(call.images)}"
            )
            self._answer_all(call.images, wrong)
            return
        refused: list[BulkImage] = []
        memory = RESULT_FACTOR * reply_bytes // len(results)
        for image, result in zip(call.images, results, strict=True):
            if isinstance(result, Resnet50Error):
                result._set_context(request_id=request_id)
            if isinstance(result, (OverloadedError, UnavailableError)):
                image.last_error, image.failed_alone = result, True
                refused.append(image)
            elif isinstance(result, Resnet50Error):
                self._finish(image, error=result)
            else:
                with_origin(result, image.source, request_id)
                self._finish(image, result, memory=memory)
        if refused:
            self._flow.overloaded(call.started, now)
            self._retry(refused, now)
        else:
            self._flow.answered(len(call.images), before, call.started, now)

    def failed(self, call: BatchCall, error: Resnet50Error, broke: bool = False) -> None:
        """Record that a call failed as a whole.

        Args:
            call: The call.
            error: Its error.
            broke: True if the connection broke while it was in flight, without a status.
        """
        now, images = self._clock(), call.images
        self._remove(call)
        several = len(images) > 1
        for image in images:
            image.last_error, image.failed_alone = error, False
        if isinstance(error, UnavailableError) and broke:
            self._broke(call, now)
        elif isinstance(error, UnavailableError):
            self._retry(images, now)
        elif isinstance(error, OverloadedError):
            self._flow.overloaded(call.started, now)
            self._retry(images, now)
        elif isinstance(error, DeadlineExceededError):
            self._flow.overloaded(call.started, now)
            # Of a call with images sent before, only the time of the oldest ones is over.
            oldest = min(image.deadline or math.inf for image in images)
            self._answer_all([one for one in images if one.deadline == oldest], error)
            self._retry([one for one in images if one.deadline != oldest], now)
        elif several and self._sizes.shrink(images, error):
            self._retry(images, now, pause_s=0.0)
        elif several and isinstance(error, (ServerError, DataLossError)):
            half = len(images) // 2
            self._retry(images[:half], now)
            self._retry(images[half:], now)
        elif isinstance(error, _OF_IMAGES):
            self._answer_all(images, error)
        else:
            self.fail(error)

    def _remove(self, call: BatchCall) -> None:
        self._calls.remove(call)
        self._alone = False
        self.in_flight -= len(call.images)

    def _broke(self, call: BatchCall, now: float) -> None:
        """Send images of a broken connection again, those that may be its cause alone."""
        for image in call.images:
            image.breaks += 1
            image.breaks_alone += call.alone and len(call.images) == 1
            # A server was reachable, so the time of the images begins again.
            image.deadline = None
        breaks = max(image.breaks for image in call.images)
        attempts = self._limits.retry.attempts
        groups = [call.images]
        if attempts is not None and breaks >= attempts:
            assert call.images[0].last_error is not None  # of this break
            self._answer_all(call.images, call.images[0].last_error)
            return
        if call.alone and len(call.images) > 1:
            groups = [[image] for image in call.images]
        elif call.alone and breaks >= MAX_SENDS and call.images[0].breaks_alone >= TIMES_ALONE:
            self._answer_all(call.images, broke_connections(call.images[0]))
            return
        due = now + backoff_s(self._limits.retry, breaks)
        for group in groups:
            (self._suspects if breaks >= ALONE_AFTER else self._retries).push(due, group)

    def _retry(self, images: list[BulkImage], now: float, pause_s: float | None = None) -> None:
        """Send images again after a pause, unless their time will be over, or their attempts."""
        later: list[BulkImage] = []
        for image in images:
            image.tries += pause_s is None
        if pause_s is None and images:
            pause_s = backoff_s(self._limits.retry, max(image.tries for image in images))
            delays = (getattr(image.last_error, "retry_after_s", None) for image in images)
            pause_s = max([pause_s, *(delay for delay in delays if delay is not None)])
        due = now + (pause_s or 0.0)
        attempts = self._limits.retry.attempts
        for image in images:
            unreachable = isinstance(image.last_error, UnavailableError)
            over = image.deadline is not None and due >= image.deadline
            if over or (unreachable and attempts is not None and image.tries >= attempts):
                assert image.last_error is not None  # of the attempt that failed
                self._give_final_error(image, image.last_error)
            else:
                later.append(image)
        if later:
            self._retries.push(due, later)

    def _give_final_error(self, image: BulkImage, error: Resnet50Error) -> None:
        """Give an image the error of its last attempt; no reachable server ends the run."""
        if isinstance(error, UnavailableError) and not image.failed_alone:
            self.fail(error)
        else:
            self._finish(image, error=error)

    def _answer_all(self, images: list[BulkImage], error: Resnet50Error) -> None:
        for image in images:  # each has an error of its own, which may be raised
            self._finish(image, error=error if len(images) == 1 else copy.copy(error))

    def fail(self, error: BaseException) -> None:
        """End the run with an error, unless it has one."""
        if self.failure is None:
            if isinstance(error, UnavailableError):
                count = self._unanswered
                images = "1 image that was" if count == 1 else f"{count} images that were"
                error._complete(f"; {images} read had no result")
            self.failure = error

    def clear(self) -> None:
        """Forget the images, their outcomes and errors: the run has ended."""
        self._unsent = UnsentImages(self._sizes)
        self._retries, self._suspects = RetryQueue(), RetryQueue()
        self._outcomes = OutcomeQueue(self._limits.ordered)
        self._calls.clear()
        self.failure = self._source_failure = None

    # Outcomes

    def _finish(
        self,
        image: BulkImage,
        result: Result | None = None,
        error: Exception | None = None,
        memory: int = 0,
    ) -> None:
        if isinstance(error, Resnet50Error):
            error._set_context(source=image.source)
        self._bytes -= image.bytes
        image.content = None
        size = image.bytes + memory
        self._unanswered -= 1
        self._outcomes.add(Outcome(image.index, image.key, image.source, result, error, size))

    def take(self) -> Outcome[Result] | None:
        """Return the next outcome; None if there is none now."""
        return self._outcomes.take()

    @property
    def finished(self) -> bool:
        """True if no further outcome will come; `failure` may be set then."""
        if self.failure is None and self._exhausted and not (self._unanswered or self._reading):
            self.failure = self._source_failure
            return True
        return self.failure is not None
