"""Reading of decoded frames with their times; connections to live sources are renewed."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._retries import Backoff, RetryPolicy
from .clock import MAX_STEP_S, Clock, Pacer
from .source import Source

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

# Minimum seconds between log lines about undecodable packets, which may be many.
LOST_LOG_S = 10.0
_BACKOFF = RetryPolicy(initial_backoff_s=0.5, max_backoff_s=8.0)
_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT


class SourceLostError(ConnectionError):
    """A live source was lost, and could not be connected to again within `reconnect_s`.

    Attributes:
        source: Name of the source, without credentials.
        frames: Number of frames decoded before.
    """

    # With defaults, as pickle and copy pass the message alone, and set the attributes then.
    def __init__(self, message: str, source: str = "", frames: int = 0) -> None:
        super().__init__(message)
        self.source = source
        self.frames = frames


@dataclass(frozen=True)
class DecodedFrame:
    """A frame as the decoder returns it.

    Attributes:
        frame: The frame.
        stream: Its stream, whose tags apply where the frame has none.
        time_s: Seconds from the first frame.
    """

    frame: av.VideoFrame
    stream: VideoStream
    time_s: float


def read_frames(
    source: Source, stop: threading.Event, *, real_time: bool = False
) -> Generator[DecodedFrame, None, None]:
    """Yield the frames of a source in presentation order.

    Args:
        source: The source.
        stop: Ends the frames when it is set, also while waiting for a connection.
        real_time: Yield the frames of a file at their times.

    Raises:
        SourceLostError: A live source was lost.
        OSError: The source cannot be opened or read.
    """
    live = False
    clock: Clock | None = None
    pacer = Pacer(stop, MAX_STEP_S) if real_time else None
    outage: _Outage | None = None
    count = 0
    while not stop.is_set():
        failure: OSError | None = None
        try:
            with closing(source.open()) as container:
                live = source.is_live(container)
                if clock is None:
                    clock = _clock(container, live)
                elif not live:  # a broadcast that has ended meanwhile, and is a recording now
                    return
                else:
                    clock.reconnected()
                for frame in decoded_frames(container, source, stop):
                    if outage is not None:
                        outage.end()
                        outage = None
                    count += 1
                    time_s = clock.time_s(frame.time)
                    if pacer is not None and not live:
                        pacer.wait(time_s)
                    yield DecodedFrame(frame, container.streams.video[0], time_s)
            if stop.is_set() or not live or not source.options.reconnect_s:
                return
        except OSError as error:
            if count == 0 or not live or not source.options.reconnect_s:
                raise
            failure = error
        outage = outage or _Outage(source, count)
        if stop.wait(outage.pause_s(failure)):
            return


class _Outage:
    """The time without a connection to a live source.

    Args:
        source: The source.
        frames: Number of frames before.
    """

    def __init__(self, source: Source, frames: int) -> None:
        self._source = source
        self._frames = frames
        self._began = time.monotonic()
        self._backoff = Backoff(_BACKOFF)
        self._attempts = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._began

    def end(self) -> None:
        """Log that the source has sent a frame."""
        _log.warning("%s: connected again after %.1f s", self._source.name, self.elapsed_s)

    def pause_s(self, failure: OSError | None) -> float:
        """Return the pause before the next attempt in seconds.

        Args:
            failure: Why there is no connection; None if the source ended the stream.

        Raises:
            SourceLostError: There was none for `reconnect_s`.
        """
        name, limit_s = self._source.name, self._source.options.reconnect_s
        reason = "the stream ended" if failure is None else self._source.reason(failure)
        if self.elapsed_s >= limit_s:
            raise SourceLostError(
                f"{name}: lost after {self._frames} frames, and not connected again in"
                f" {self.elapsed_s:.0f} s and {self._attempts} attempts, the last: {reason}; check"
                " the source and the network, or raise reconnect_s",
                name,
                self._frames,
            ) from (self._source.cause(failure) if failure is not None else None)
        self._attempts += 1
        pause_s = min(self._backoff.next_s(), max(0.0, limit_s - self.elapsed_s))
        _log.warning("%s: %s; connecting again in %.1f s", name, reason, pause_s)
        return pause_s


def _clock(container: InputContainer, live: bool) -> Clock:
    rate = container.streams.video[0].average_rate
    permitted = bool(container.format.flags & _TS_DISCONT)
    return Clock(float(rate) if rate else None, restarts=live or permitted, live=live)


def decoded_frames(
    container: InputContainer, source: Source, stop: threading.Event
) -> Iterator[av.VideoFrame]:
    """Yield decodable frames in presentation order.

    Args:
        container: The opened source.
        source: Its name and options.
        stop: Ends the frames once it is set.

    Raises:
        OSError: Reading fails, or there is no decodable frame.
    """
    import av

    stream = container.streams.video[0]
    count = 0
    lost = _LostPackets(source)
    end_pts = -math.inf
    try:
        for packet in _packets(container, source):
            if stop.is_set():
                return
            if packet.pts is not None:
                end_pts = max(end_pts, packet.pts + (packet.duration or 0))
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                lost.add(error)  # one lost packet does not end a camera's stream
                continue
            for frame in frames:
                count += 1
                yield frame
    except av.FFmpegError as error:
        raise OSError(
            f"reading {source.name} failed after {count} frames: {source.reason(error)}"
        ) from source.cause(error)
    if count == 0:
        failure = lost.last
        reason = f": {source.reason(failure)}" if failure else ""
        raise OSError(f"{source.name} contains no decodable frame{reason}") from (
            source.cause(failure) if failure else None
        )
    _check_end(stream, source, end_pts)


def _packets(container: InputContainer, source: Source) -> Iterator[av.Packet[VideoStream]]:
    """Yield the packets of the video, and an empty one at the end.

    Raises:
        TimeoutError: A network source has sent nothing for `timeout_s`.
        av.FFmpegError: They cannot be read.
    """
    import av

    packets = iter(container.demux(container.streams.video[0]))
    while True:
        began = time.monotonic()
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            # The silence may have been noticed when the source was opened.
            if isinstance(error, av.error.ExitError) or source.was_silent_since(began):
                raise source.silence() from None
            raise
        if packet is None:
            return
        if not packet.size and source.was_silent_since(began):  # the end, as some formats have it
            raise source.silence()
        yield packet


def _check_end(stream: VideoStream, source: Source, end_pts: float) -> None:
    """Check that a file ended where its header says.

    Demuxers take a lost connection for the end of the file.

    Raises:
        OSError: The file comes from the network, and more than `MAX_STEP_S` are missing.
    """
    if stream.duration is None or stream.time_base is None or not math.isfinite(end_pts):
        return
    tick_s = float(stream.time_base)
    whole_s = stream.duration * tick_s
    read_s = (end_pts - (stream.start_time or 0)) * tick_s
    if whole_s - read_s <= MAX_STEP_S:
        return
    text = f"{source.name}: ends after {read_s:.1f} of {whole_s:.1f} s"
    if source.is_network:
        raise OSError(f"{text}: the connection was lost")
    _log.warning("%s: the file is incomplete", text)


class _LostPackets:
    """Logs undecodable packets: the first, then at most one line per `LOST_LOG_S`.

    Attributes:
        last: Error of the last one.
    """

    def __init__(self, source: Source) -> None:
        self.last: Exception | None = None
        self._source = source
        self._count = 0
        self._next_log_s = -math.inf

    def add(self, error: Exception) -> None:
        """Count an undecodable packet."""
        self.last = error
        self._count += 1
        if time.monotonic() >= self._next_log_s:
            self._next_log_s = time.monotonic() + LOST_LOG_S
            _log.warning(
                "%s: a packet cannot be decoded, %d so far: %s",
                self._source.name,
                self._count,
                self._source.reason(error),
            )
