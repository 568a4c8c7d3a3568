"""What `stream` sends: the frames of a video or camera, or the images of a folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..frames import FrameAnswer
from ..images import ImageInput, VideoFrame
from ..results import Classification
from .images import find_images

FOLDER_FPS = 25.0


@dataclass
class Shot:
    """One frame between its source and its row.

    Attributes:
        image: What is sent; None once nobody needs it again.
        number: Its position in the video, or among the folder's images.
        time_s: When it is shown, in seconds from the start.
        name: What it is called where it failed.
        handed_at: When the stream took it, in seconds of a monotonic clock.
        answer: What became of it.
        latency_s: From there to its answer.
    """

    image: ImageInput | None
    number: int
    time_s: float
    name: str
    handed_at: float = 0.0
    answer: FrameAnswer[Classification] | None = None
    latency_s: float = 0.0


def shots(
    source: str, fps: float | None, encoding: str, real_time: threading.Event | None
) -> Generator[Shot, None, None]:
    """Give the frames of a video file, a camera (a number) or a folder.

    Args:
        source: Where they are.
        fps: How many a second; None for all, of a folder `FOLDER_FPS`.
        encoding: "raw" or "jpeg", how frames of a video are to travel.
        real_time: Give each at its time, as a camera does, until this is set; None to give all as
            they are asked for.

    Raises:
        ImportError: A video's frames need what is not installed.
        OSError: The source cannot be read.
        ValueError: The same, in the decoder's words.
    """
    path = Path(source)
    if path.is_dir():
        rate = fps or FOLDER_FPS
        found = (
            Shot(one, number, number / rate, one)
            for number, one in enumerate(find_images([source]))
        )
        return found if real_time is None else _played(found, real_time)
    from ..video import frames_from_video

    camera = source.isdecimal() and not path.exists()
    frames = frames_from_video(
        int(source) if camera else source,
        fps=fps,
        encoding="jpeg" if encoding == "jpeg" else "raw",
    )
    found = _of_video(frames)
    return found if real_time is None or camera else _played(found, real_time)


def _of_video(frames: Generator[VideoFrame, None, None]) -> Generator[Shot, None, None]:
    with closing(frames):
        for frame in frames:
            yield Shot(frame, frame.number, frame.time_s, f"frame {frame.number}")


def _played(
    found: Generator[Shot, None, None], stop: threading.Event
) -> Generator[Shot, None, None]:
    with closing(found):
        started = None
        for shot in found:
            if started is None:
                started = time.monotonic() - shot.time_s
            stop.wait(max(0.0, started + shot.time_s - time.monotonic()))
            yield shot


class UnderWay:
    """The frames of a stream that are not done with, in order.

    The sending thread reads from `images`, the caller's thread takes the answers.

    Args:
        source: Gives the frames.
        stop: No frame is sent after it is set.
        keep: How many frames may be held for `done`, which then gets their pixels too; None if
            nobody needs those.
        done: Gets each frame with its answer, in the frames' order.
    """

    def __init__(
        self,
        source: Generator[Shot, None, None],
        stop: threading.Event,
        keep: int | None,
        done: Callable[[Shot], None],
    ) -> None:
        self.sent = 0
        self._source = source
        self._stop = stop
        # Under "latest" many frames may be dropped behind one that is being computed.
        self._room = threading.Semaphore(keep) if keep else None
        self._done = done
        # The sending thread adds to it while the answers' one takes from it, so nobody iterates.
        self._shots: dict[int, Shot] = {}
        self._oldest = 0
        self._closed = False

    def images(self) -> Iterator[ImageInput]:
        """Give the frames' images."""
        with closing(self._source):
            while self._has_room():
                shot = next(self._source, None)
                if shot is None or shot.image is None:
                    return
                image = shot.image
                if self._room is None:
                    shot.image = None
                shot.handed_at = time.monotonic()
                self._shots[self.sent] = shot
                self.sent += 1
                yield image

    def answered(self, answer: FrameAnswer[Classification]) -> tuple[Shot, int | None]:
        """Take a frame's answer; return the frame and the number of that in its place, if any."""
        shot = self._shots[answer.frame_id]
        shot.answer, shot.latency_s = answer, time.monotonic() - shot.handed_at
        newer = None if answer.replaced_by is None else self._shots[answer.replaced_by].number
        # In order: what replaces a frame is newer, and so still here.
        while (oldest := self._shots.get(self._oldest)) is not None and oldest.answer is not None:
            del self._shots[self._oldest]
            self._oldest += 1
            self._done(oldest)
            if self._room is not None:
                self._room.release()
        return shot, newer

    def close(self) -> None:
        """Send no more."""
        self._closed = True

    def _has_room(self) -> bool:
        while not (self._stop.is_set() or self._closed):
            if self._room is None or self._room.acquire(timeout=0.1):
                return True
        return False
