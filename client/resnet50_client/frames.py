"""The frames of one stream that wait for their answers: everything about a stream but its I/O."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from resnet50.v1 import image_pb2, inference_pb2

from .errors import InvalidRequestError, Resnet50Error, error_of_status
from .images import ImageInput, to_image

Result = TypeVar("Result")
Delivery: TypeAlias = Literal["ordered", "latest"]
Errors: TypeAlias = Literal["return", "raise"]
DELIVERIES = {
    "ordered": inference_pb2.DELIVERY_ORDERED,
    "latest": inference_pb2.DELIVERY_LATEST,
}
DEFAULT_WINDOW = 32


@dataclass(frozen=True)
class FrameAnswer(Generic[Result]):
    """What became of one frame: one of `result`, `error` and `replaced_by` is set.

    Attributes:
        frame_id: Its position among the frames that were given, from 0.
        result: What the server made of it.
        error: Why there is no result: the frame could not be read or was refused.
        replaced_by: The newer frame that took its place (delivery "latest").
    """

    frame_id: int
    result: Result | None = None
    error: Resnet50Error | OSError | TypeError | None = None
    replaced_by: int | None = None

    @property
    def dropped(self) -> bool:
        """Whether a newer frame took its place."""
        return self.replaced_by is not None

    def outcome(self, errors: Errors) -> Result | Exception:
        """Return an ordered frame's result, or its error; raise that instead if so asked."""
        if self.error is not None:
            if errors == "raise":
                raise self.error
            return self.error
        assert self.result is not None  # only "latest" streams drop frames
        return self.result

    def __repr__(self) -> str:
        what = f"replaced by {self.replaced_by}" if self.dropped else self.error or self.result
        return f"FrameAnswer({self.frame_id}: {what!r})"


@dataclass(frozen=True)
class StreamKind(Generic[Result]):
    """What a stream asks for.

    Attributes:
        method: The RPC's name.
        request: The class of its requests.
        config: Its first request.
        read: Makes a result out of a reply that holds one.
        delivery: "ordered" or "latest".
        pixel_format: Layout of frames that are arrays.
    """

    method: str
    request: Callable[..., Any]
    config: Any
    read: Callable[[Any], Result]
    delivery: Delivery
    pixel_format: str | None


class Unanswered(Generic[Result]):
    """The frames of one stream between caller and answer, in order, never more than `window`.

    After a broken connection, `restart` makes them be sent again: none is lost, and since an answer
    takes its frame out, none is answered twice.

    Args:
        kind: What the stream asks for.
        window: How many frames may wait for their answers.
    """

    def __init__(self, kind: StreamKind[Result], window: int) -> None:
        if window < 1:
            raise InvalidRequestError(f"window: is {window}, must be 1 or more", field="window")
        self._kind = kind
        self._window = window
        self._frames: dict[int, inference_pb2.Frame] = {}
        self._unsent: collections.deque[int] = collections.deque()
        self._broken: dict[int, Resnet50Error | OSError | TypeError] = {}
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """Whether another frame may be added."""
        return len(self._frames) < self._window

    def read(self, image: ImageInput) -> image_pb2.Image | Exception:
        """Read an image; may block, and may run while the other methods do."""
        try:
            return to_image(image, self._kind.pixel_format)
        except (Resnet50Error, OSError, TypeError) as error:
            return error

    def add(self, image: image_pb2.Image | Exception) -> None:
        """Take the next frame, as `read` made it."""
        frame_id = self._next_id
        self._next_id += 1
        if isinstance(image, (Resnet50Error, OSError, TypeError)):
            # An empty frame goes in its place: the server's refusal keeps its turn for the error.
            self._broken[frame_id] = image
            image = image_pb2.Image()
        assert isinstance(image, image_pb2.Image)  # `read` gives nothing else
        self._frames[frame_id] = inference_pb2.Frame(frame_id=frame_id, image=image)
        self._unsent.append(frame_id)

    def next_request(self) -> Any | None:
        """Return the next request to send; None if all that were added have been sent."""
        if not self._unsent:
            return None
        return self._kind.request(frame=self._frames[self._unsent.popleft()])

    def answer(self, reply: Any) -> FrameAnswer[Result]:
        """Take the answer to a frame."""
        frame_id = reply.frame_id
        self._frames.pop(frame_id, None)
        error = self._broken.pop(frame_id, None)
        outcome = reply.WhichOneof("outcome")
        if outcome == "dropped":
            return FrameAnswer(frame_id, replaced_by=reply.dropped.replaced_by_frame_id)
        if error is not None:
            return FrameAnswer(frame_id, error=error)
        if outcome == "error":
            return FrameAnswer(frame_id, error=error_of_status(reply.error))
        return FrameAnswer(frame_id, result=self._kind.read(reply))

    def restart(self) -> list[FrameAnswer[Result]]:
        """Send what is unanswered again; of a "latest" stream only the newest, the rest dropped."""
        dropped: list[FrameAnswer[Result]] = []
        if self._kind.delivery == "latest" and self._frames:
            newest = max(self._frames)
            for frame_id in [one for one in self._frames if one != newest]:
                del self._frames[frame_id]
                self._broken.pop(frame_id, None)
                dropped.append(FrameAnswer(frame_id, replaced_by=newest))
        self._unsent = collections.deque(self._frames)
        return dropped
