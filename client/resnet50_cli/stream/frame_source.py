"""Sources of frames for `stream`: a video, a camera or a folder of images."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet50_client._frames import FrameAnswer
from resnet50_client.images import ImageInput, VideoFrame
from resnet50_client.types import Classification
from resnet50_client.video.clock import Pacer

from ..image_files import LeftOut, find_images

FOLDER_FPS = 25.0


@dataclass
class SourceFrame:
    """One frame of a source, from reading it to its response.

    Attributes:
        image: The image to send; None once it is no longer needed.
        number: Position in the video, or among the folder's images.
        time_s: Presentation time in seconds from the start.
        name: Name in error messages.
        sent_at: When it was passed to the stream, in seconds of the monotonic clock.
        answer: The response.
        latency_s: Seconds from `sent_at` to the response.
    """

    image: ImageInput | None
    number: int
    time_s: float
    name: str
    sent_at: float = 0.0
    answer: FrameAnswer[Classification] | None = None
    latency_s: float = 0.0


def read_frames(
    source: str,
    stop: threading.Event,
    *,
    fps: float | None,
    encoding: str,
    real_time: bool,
    options: dict[str, Any],
) -> Generator[SourceFrame, None, None]:
    """Yield the frames of a video file, a URL, a camera (by number) or a folder.

    Args:
        source: Path of the file or folder, the URL, or the camera's number.
        stop: Ends waits of the source when it is set.
        fps: Frames per second; None for all frames of a video, `FOLDER_FPS` for a folder.
        encoding: Wire format of video frames, "raw" or "jpeg".
        real_time: Yield the frames of a file or a folder at their presentation times.
        options: Further arguments of `frames_from_video`, for videos only.

    Raises:
        ImportError: A package that decodes video is not installed.
        OSError: The source cannot be read.
        ValueError: The decoder rejects the source, or the options do not go with it.
    """
    path = Path(source)
    if path.is_dir():
        given = ", ".join(name for name in options if name != "timeout_s")
        if given:
            raise ValueError(f"{given}: for videos only, and {source} is a folder")
        rate = fps or FOLDER_FPS
        frames = _folder_frames(source, rate)
        return _paced(frames, stop) if real_time else frames
    from resnet50_client.video import frames_from_video

    camera = source.isdecimal() and not path.exists()
    return _video_frames(
        frames_from_video(
            int(source) if camera else source,
            fps=fps,
            encoding="jpeg" if encoding == "jpeg" else "raw",
            real_time=real_time,
            stop=stop,
            **options,
        )
    )


def _folder_frames(folder: str, rate: float) -> Generator[SourceFrame, None, None]:
    left_out = LeftOut()
    for number, image in enumerate(find_images([folder], left_out)):
        yield SourceFrame(image, number, number / rate, image)
    left_out.report()


def _video_frames(frames: Generator[VideoFrame, None, None]) -> Generator[SourceFrame, None, None]:
    with closing(frames):
        for frame in frames:
            yield SourceFrame(frame, frame.number, frame.time_s, f"frame {frame.number}")


def _paced(
    frames: Generator[SourceFrame, None, None], stop: threading.Event
) -> Generator[SourceFrame, None, None]:
    """Yield each frame at its presentation time."""
    pacer = Pacer(stop)
    with closing(frames):
        for frame in frames:
            pacer.wait(frame.time_s)
            yield frame


class InFlightFrames:
    """Frames that were sent and not yet passed to `done`, in order.

    The SDK's sending thread iterates over `images`; the command's thread calls `answered`.

    Args:
        source: Yields the frames.
        stop: No frame is sent after this is set.
        keep: Maximum number of frames whose pixels are kept for `done`; None to keep no pixels.
        done: Called with each answered frame, in the frames' order.
    """

    def __init__(
        self,
        source: Generator[SourceFrame, None, None],
        stop: threading.Event,
        keep: int | None,
        done: Callable[[SourceFrame], None],
    ) -> None:
        self.sent = 0
        self._source = source
        self._stop = stop
        # With "latest", many frames can be dropped behind one that is being computed.
        self._slots = threading.Semaphore(keep) if keep else None
        self._done = done
        # The sending thread inserts while the command's thread removes, so it is never iterated.
        self._frames: dict[int, SourceFrame] = {}
        self._oldest = 0
        self._closed = False

    def images(self) -> Iterator[ImageInput]:
        """Yield the frames' images."""
        with closing(self._source):
            while self._acquire_slot():
                frame = next(self._source, None)
                if frame is None or frame.image is None:
                    return
                image = frame.image
                if self._slots is None:
                    frame.image = None
                frame.sent_at = time.monotonic()
                self._frames[self.sent] = frame
                self.sent += 1
                yield image

    def answered(self, answer: FrameAnswer[Classification]) -> tuple[SourceFrame, int | None]:
        """Add a response; return its frame, and the number of the frame that replaced it if any."""
        frame = self._frames[answer.frame_id]
        frame.answer, frame.latency_s = answer, time.monotonic() - frame.sent_at
        newer = None if answer.replaced_by is None else self._frames[answer.replaced_by].number
        # In order: a frame's replacement is newer, so it has not been removed yet.
        while (oldest := self._frames.get(self._oldest)) is not None and oldest.answer is not None:
            del self._frames[self._oldest]
            self._oldest += 1
            self._done(oldest)
            if self._slots is not None:
                self._slots.release()
        return frame, newer

    def close(self) -> None:
        """Stop sending."""
        self._closed = True

    def _acquire_slot(self) -> bool:
        while not (self._stop.is_set() or self._closed):
            if self._slots is None or self._slots.acquire(timeout=0.1):
                return True
        return False
