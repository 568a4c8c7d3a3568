"""Sources of frames for `stream`: a video, a camera or a folder of images."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet50_bulk.image_files import LeftOut, find_images
from resnet50_client._frames import FrameAnswer
from resnet50_client.images import ImageInput, VideoFrame
from resnet50_client.video.clock import Pacer

from ..output import report_left_out

FOLDER_FPS = 25.0
Images = Generator[ImageInput, None, None]


@dataclass(frozen=True)
class Position:
    """A frame's place in its source.

    Attributes:
        number: Position in the video, or among the folder's images, from 0.
        time_s: Presentation time in seconds from the start.
        name: Name in messages.
    """

    number: int
    time_s: float
    name: str


@dataclass(frozen=True)
class FrameSource:
    """The frames of a video, a camera or a folder.

    Attributes:
        images: Yields the images to send: `VideoFrame`s, or the paths of a folder's images.
        fps: Frames per second of a folder; None for a video, whose frames have their own times.
    """

    images: Images
    fps: float | None = None

    def position(self, answer: FrameAnswer[Any]) -> Position:
        """Return the position of an answer's frame."""
        if isinstance(answer.source, VideoFrame):
            number = answer.source.number
            return Position(number, answer.source.time_s, f"frame {number}")
        assert self.fps is not None
        return Position(answer.frame_id, answer.frame_id / self.fps, answer.source)


def open_source(
    source: str,
    stop: threading.Event,
    *,
    fps: float | None,
    encoding: Literal["raw", "jpeg"] | None,
    real_time: bool,
    options: dict[str, Any],
) -> FrameSource:
    """Return the frames of a video file, a URL, a camera (by number) or a folder.

    Args:
        source: Path of the file or folder, the URL, or the camera's number.
        stop: Ends the frames when it is set, also while waiting.
        fps: Frames per second; None for all frames of a video, `FOLDER_FPS` for a folder.
        encoding: Wire format of video frames; None for either, by their size.
        real_time: Yield the frames of a file or a folder at their presentation times.
        options: Further arguments of `frames_from_video`, for videos only.

    Raises:
        ImportError: A package that decodes video is not installed.
        OSError: The source cannot be read.
        ValueError: The decoder rejects the source, or the options do not go with it.
    """
    path = Path(source)
    if path.is_dir():
        for_videos = [name for name in options if name != "timeout_s"]
        for_videos += ["encoding"] if encoding is not None else []
        if given := ", ".join(for_videos):
            raise ValueError(f"{given}: for videos only, and {source} is a folder")
        rate = fps or FOLDER_FPS
        return FrameSource(_folder_images(source, rate if real_time else None, stop), rate)
    from resnet50_client.video import frames_from_video

    camera = source.isdecimal() and not path.exists()
    frames = frames_from_video(
        int(source) if camera else source,
        fps=fps,
        encoding=encoding,
        real_time=real_time,
        stop=stop,
        **options,
    )
    return FrameSource(_until_stopped(frames, stop))


def _folder_images(folder: str, rate: float | None, stop: threading.Event) -> Images:
    """Yield the paths of a folder's images, at `rate` per second; None for no pauses."""
    left_out, pacer = LeftOut(), Pacer(stop)
    for number, path in enumerate(find_images([folder], left_out)):
        if rate is not None:
            pacer.wait(number / rate)
        if stop.is_set():
            return
        yield path
    report_left_out(left_out)


def _until_stopped(frames: Generator[VideoFrame, None, None], stop: threading.Event) -> Images:
    with closing(frames):
        for frame in frames:
            if stop.is_set():
                return
            yield frame
