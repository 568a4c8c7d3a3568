"""Opening of video sources: files, URLs and cameras."""

from __future__ import annotations

import errno
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from .._redaction import redact
from ..images import is_url

if TYPE_CHECKING:
    from av.container import InputContainer

VideoSource: TypeAlias = str | os.PathLike[str] | int | IO[bytes]
"""A path, a URL, a camera's number or a binary file; see `frames_from_video`."""

_CAMERA = re.compile(r"/dev/video\d+")
# Formats whose URL is that of a playlist, so that its size says nothing.
_PLAYLISTS = ("hls", "dash")
_MAX_THREADS = 8  # each holds a frame or more of its own
_UNALIGNED = 1  # AV_CODEC_FLAG_UNALIGNED
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source; `frames_from_video` describes them.

    Attributes:
        av_options: Options of FFmpeg.
        timeout_s: Longest silence of a network source in seconds.
        reconnect_s: Longest time without a connection to a live source in seconds.
        camera_format: Pixel format or codec of a camera.
        size: Width and height of a camera's frames in pixels.
        rate: Frames per second of a camera.
    """

    av_options: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    reconnect_s: float = 60.0
    camera_format: str | None = None
    size: tuple[int, int] | None = None
    rate: float | None = None

    def of_camera(self) -> dict[str, str]:
        """Return the options of FFmpeg's v4l2 device for a camera's format, size and rate."""
        options: dict[str, str] = {}
        if self.camera_format is not None:
            options["input_format"] = self.camera_format
        if self.size is not None:
            options["video_size"] = "{}x{}".format(*self.size)
        if self.rate is not None:
            options["framerate"] = f"{self.rate:g}"
        return options


class Source:
    """A source that can be opened, and again after a failure.

    Args:
        source: As of `frames_from_video`.
        options: How it is opened.

    Attributes:
        name: Name for messages; a URL without credentials.
        options: How it is opened.

    Raises:
        TypeError: It is of no known type.
        ValueError: The options do not go with the source.
    """

    def __init__(self, source: VideoSource, options: SourceOptions) -> None:
        known = isinstance(source, (str, os.PathLike, int)) or hasattr(source, "read")
        if not known or isinstance(source, bool):
            raise TypeError(
                f"source: {type(source).__name__} is not a path, a URL, a camera's number or a"
                " binary file"
            )
        self.options = options
        self._source = source
        self._file = f"/dev/video{source}" if isinstance(source, int) else source
        if isinstance(self._file, os.PathLike):
            self._file = os.fspath(self._file)
        text = self._file if isinstance(self._file, str) else ""
        self.is_camera = _CAMERA.fullmatch(text) is not None
        self._scheme = text.partition("://")[0].lower() if is_url(text) else ""
        self.is_network = self._scheme not in ("", "file")
        self.name = f"camera {source}" if isinstance(source, int) else self._name()
        if options.of_camera() and not self.is_camera:
            raise ValueError(
                f"camera_format, size and rate: go with a camera, not with {self.name}; options of"
                " other sources go into av_options"
            )

    def open(self) -> InputContainer:
        """Open the source.

        Raises:
            OSError: It cannot be opened, or contains no video that can be decoded.
        """
        import av

        if self.is_camera and sys.platform != "linux":
            raise OSError(f"{self._file}: cameras are opened by number or device on Linux only")
        began = time.monotonic()
        try:
            container: InputContainer = av.open(self._file, mode="r", **self._arguments())
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.ExitError) or self.was_silent_since(began):
                raise self.silence() from None
            if isinstance(error, OSError):  # PyAV's own are these too, and name the file
                if self.cause(error) is error:
                    raise
                raise OSError(error.errno, self.reason(error), self.name) from None
            raise OSError(
                f"{self.name} cannot be read as video: {self.reason(error)}"
            ) from self.cause(error)
        try:
            self._configure(container)
        except BaseException:
            container.close()
            raise
        return container

    def is_live(self, container: InputContainer) -> bool:
        """Return True for cameras, and for network sources without an end."""
        if self.is_camera or not self.is_network:
            return self.is_camera
        if container.duration is not None:
            return False
        return container.format.name.startswith(_PLAYLISTS) or container.size <= 0

    def was_silent_since(self, began: float) -> bool:
        """Return True if a network source has sent nothing for `timeout_s`.

        PyAV then interrupts FFmpeg, some of whose formats return an error of another kind.

        Args:
            began: When waiting for it began, in seconds of the monotonic clock.
        """
        return self.is_network and time.monotonic() - began >= self.options.timeout_s

    def silence(self) -> TimeoutError:
        """Return the error of a source that sends nothing."""
        return TimeoutError(
            errno.ETIMEDOUT,
            f"no data for {self.options.timeout_s:g} s; check the source, or raise timeout_s",
            self.name,
        )

    def reason(self, error: BaseException) -> str:
        """Return an error's message without credentials."""
        return self._redacted(getattr(error, "strerror", None) or str(error))

    def cause(self, error: BaseException) -> BaseException | None:
        """Return an error as the cause of another; None if it contains credentials."""
        return error if self._redacted(str(error)) == str(error) else None

    def _name(self) -> str:
        if isinstance(self._source, os.PathLike):
            return str(Path(self._source))
        return (
            redact(self._source, self._source)
            if isinstance(self._source, str)
            else repr(self._source)
        )

    def _redacted(self, text: str) -> str:
        return redact(text, self._file) if isinstance(self._file, str) else redact(text)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of `av.open`."""
        arguments: dict[str, Any] = {}
        options: dict[str, str] = {}
        timeout_s = read_timeout_s = self.options.timeout_s
        if self.is_camera:
            arguments["format"] = "v4l2"
            options |= self.options.of_camera()
        if self._scheme == "rtsp":
            options["rtsp_transport"] = "tcp"  # UDP loses packets of large frames: grey areas
        if self._scheme in ("http", "https"):
            # FFmpeg resumes a broken download where it ended, which takes its time.
            read_timeout_s += self.options.reconnect_s
            if math.isfinite(timeout_s):
                options["rw_timeout"] = str(max(1, round(timeout_s * 1e6)))
            if self.options.reconnect_s:
                longest_s = min(self.options.reconnect_s, 3600.0)
                options |= {"reconnect": "1", "reconnect_delay_max": str(math.ceil(longest_s))}
        options |= self.options.av_options
        if options:
            arguments["options"] = options
        if self.is_network:
            limits = (timeout_s, read_timeout_s)
            arguments["timeout"] = tuple(one if math.isfinite(one) else None for one in limits)
        return arguments

    def _configure(self, container: InputContainer) -> None:
        """Set the decoder's options.

        Raises:
            OSError: There is no video, or no decoder for it.
        """
        if not container.streams.video:
            raise OSError(f"{self.name} contains no video")
        context = container.streams.video[0].codec_context
        if context is None:
            raise OSError(f"{self.name} contains video that FFmpeg cannot decode")
        # Cropping to the pixel, rather than to what FFmpeg's vector instructions prefer.
        context.flags |= _UNALIGNED
        # Decoding several frames at once delays each by as many frames.
        context.thread_type = "SLICE" if self.is_live(container) else "AUTO"
        context.thread_count = min(cpus(), _MAX_THREADS)


def cpus() -> int:
    """Return the number of CPUs that this process may use: by affinity and by cgroup quota."""
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:
        affinity = os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(affinity, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota
        return affinity
