"""Network sources that stall, break, restart and go away, over real connections."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from resnet50_client import SourceLostError, VideoFrame, frames_from_video
from tests.support.clips import fill, write_clip
from tests.support.video_server import (
    VideoServer,
    ending,
    file,
    refusing,
    silent,
    video_server,
)

FPS, FRAMES = 25, 30
# A camera's stream has no end and no header with all of it: FFmpeg reads ahead to find its tracks.
LIVE = {"probesize": "2000", "analyzeduration": "0"}


def clip(path: Path, codec: str = "libx264") -> bytes:
    """Return a clip whose frames are told apart by their luma: 40, 44, ..."""
    frames = [fill((40 + 4 * number, 128, 128), 64, 48, "yuv420p") for number in range(FRAMES)]
    options = {"crf": "1", "tune": "zerolatency"}
    write_clip(path, frames, codec=codec, fps=FPS, codec_options=options)
    return path.read_bytes()


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> bytes:
    return clip(tmp_path_factory.mktemp("stream") / "clip.ts")


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> bytes:
    return clip(tmp_path_factory.mktemp("mp4") / "clip.mp4")


def luma(frame: VideoFrame) -> float:
    return float(frame.image[:48].mean())


def address(server: VideoServer) -> str:
    return f"tcp://127.0.0.1:{server.port}"


def check_times(frames: list[VideoFrame]) -> None:
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0)
    assert [frame.number for frame in frames] == list(range(len(frames)))


@pytest.mark.parametrize("scheme", ["tcp", "http", "rtsp"])
def test_silent_source_is_an_error_that_says_what_to_do(scheme):
    with video_server(silent()) as server:
        url = f"{scheme}://user:s3cret@127.0.0.1:{server.port}/stream"
        with pytest.raises(TimeoutError, match=r"no data for 0\.3 s; check the source") as failed:
            next(frames_from_video(url, timeout_s=0.3))
    assert failed.value.filename == f"{scheme}://***@127.0.0.1:{server.port}/stream"
    assert "s3cret" not in repr(failed.value)


def test_source_that_falls_silent_is_an_error_without_reconnecting(stream):
    with video_server(silent(stream)) as server:
        frames = frames_from_video(address(server), av_options=LIVE, timeout_s=0.5, reconnect_s=0)
        given = []
        with pytest.raises(TimeoutError, match=r"no data for 0\.5 s"):
            given.extend(frames)  # appends what comes before the error
    assert len(given) >= FRAMES - 1
    assert server.count == 1


def test_live_source_that_ends_has_ended_without_reconnecting(stream):
    with video_server(ending(stream)) as server:
        frames = list(frames_from_video(address(server), av_options=LIVE, reconnect_s=0))
    assert len(frames) == FRAMES
    assert server.count == 1


@pytest.mark.parametrize("break_", [ending, silent])
def test_broken_connection_is_renewed(break_, stream, caplog):
    with video_server(break_(stream), break_(stream), silent(stream)) as server:
        frames = frames_from_video(address(server), av_options=LIVE, timeout_s=0.5)
        with caplog.at_level(logging.WARNING):
            given = list(itertools.islice(frames, 2 * FRAMES + 5))
        frames.close()
    assert server.count == 3
    check_times(given)
    assert sorted({round(luma(frame), -1) for frame in given})[-1] >= 150
    assert f"tcp://127.0.0.1:{server.port}: " in caplog.text
    assert "connecting again in" in caplog.text
    assert caplog.text.count("connected again after") == 2


def test_server_that_restarts_is_found_again(stream, caplog):
    def serve_and_stop(server: VideoServer, connected: socket.socket) -> None:
        connected.sendall(stream)
        server.stop_listening()

    with video_server(serve_and_stop, silent(stream)) as server:
        frames = frames_from_video(address(server), av_options=LIVE)
        with caplog.at_level(logging.WARNING):
            given = list(itertools.islice(frames, FRAMES))
            refused = threading.Event()

            class Restart(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    if "refused" in record.getMessage() and not refused.is_set():
                        refused.set()
                        server.restart()

            logger, handler = logging.getLogger("resnet50_client"), Restart()
            logger.addHandler(handler)
            try:
                given.extend(itertools.islice(frames, FRAMES - 5))
            finally:
                logger.removeHandler(handler)
        frames.close()
    assert refused.is_set()
    assert server.count == 2
    check_times(given)


def test_source_that_is_gone_ends_with_a_typed_error(stream):
    with video_server(ending(stream), refusing) as server:
        url = f"tcp://user:s3cret@127.0.0.1:{server.port}"
        given = []
        with pytest.raises(SourceLostError, match="check the source and the network") as lost:
            for frame in frames_from_video(url, av_options=LIVE, reconnect_s=1.5):
                given.append(frame)
    assert isinstance(lost.value, ConnectionError)
    assert lost.value.source == f"tcp://***@127.0.0.1:{server.port}"
    assert lost.value.frames == len(given) == FRAMES
    assert f"lost after {FRAMES} frames" in str(lost.value)
    assert "reconnect_s" in str(lost.value)
    assert "s3cret" not in repr(lost.value)


def test_a_set_event_ends_the_wait_for_a_connection(stream, caplog):
    stop = threading.Event()
    with video_server(ending(stream), refusing) as server:
        frames = frames_from_video(address(server), av_options=LIVE, stop=stop)

        class Stop(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                stop.set()

        logger, handler = logging.getLogger("resnet50_client"), Stop()
        logger.addHandler(handler)
        try:
            given = list(frames)
        finally:
            logger.removeHandler(handler)
    assert len(given) == FRAMES


def test_live_sources_are_not_paced(stream, monkeypatch):
    monkeypatch.setattr("resnet50_client.video.clock.Pacer.wait", None)  # would be called
    with video_server(ending(stream)) as server:
        frames = frames_from_video(address(server), av_options=LIVE, reconnect_s=0, real_time=True)
        assert len(list(frames)) == FRAMES


def test_file_of_a_web_server_is_read_to_its_end(mp4):
    with video_server(file(mp4)) as server:
        url = f"http://127.0.0.1:{server.port}/clip.mp4"
        given = list(frames_from_video(url))
    assert [round(luma(frame)) for frame in given] == [40 + 4 * one for one in range(FRAMES)]


def test_broken_download_is_resumed_where_it_ended(mp4):
    with video_server(file(mp4, until=len(mp4) // 2), file(mp4)) as server:
        url = f"http://127.0.0.1:{server.port}/clip.mp4"
        given = list(frames_from_video(url))
    assert server.count > 1
    assert [round(luma(frame)) for frame in given] == [40 + 4 * one for one in range(FRAMES)]


def still_frames() -> list[av.VideoFrame]:
    return [fill((40 + number, 128, 128), 64, 48, "yuvj420p") for number in range(100)]


def test_download_that_stays_broken_is_an_error(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", still_frames(), codec="mjpeg", fps=10, full_range=True)
    content = path.read_bytes()
    with video_server(file(content, until=len(content) // 2, ranges=False)) as server:
        url = f"http://127.0.0.1:{server.port}/clip.mkv"
        given = []
        with pytest.raises(OSError, match=rf"{url}.*(failed after|ends after)"):
            for frame in frames_from_video(url, reconnect_s=0):
                given.append(frame)
    assert 20 < len(given) < 80


def test_incomplete_file_is_read_with_a_warning(tmp_path, caplog):
    path = write_clip(tmp_path / "clip.avi", still_frames(), codec="mjpeg", fps=10, full_range=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        assert 20 < len(list(frames_from_video(path))) < 80


SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 26
a=control:track
"""


@pytest.mark.parametrize(
    "options, transport", [({}, "RTP/AVP/TCP"), ({"rtsp_transport": "udp"}, "RTP/AVP/UDP")]
)
def test_rtsp_cameras_are_asked_for_tcp(options, transport):
    asked = []

    def camera(_server: VideoServer, connected: socket.socket) -> None:
        """Answer as a camera does, until it is asked for a transport."""
        with connected.makefile("rwb") as lines:
            while request := lines.readline().decode():
                headers = {}
                while line := lines.readline().decode().strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                method, body, status = request.split()[0], "", "200 OK"
                if method == "DESCRIBE":
                    body = SDP.replace("\n", "\r\n")
                elif method == "SETUP":
                    asked.append(headers["transport"])
                    status = "461 Unsupported Transport"
                kind = "Content-Type: application/sdp\r\n" if body else ""
                lines.write(
                    f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\n{kind}"
                    f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                lines.flush()

    with video_server(camera) as server, pytest.raises(OSError, match="127"):
        next(frames_from_video(f"rtsp://127.0.0.1:{server.port}/x", av_options=options))
    assert asked[0].startswith(transport)
