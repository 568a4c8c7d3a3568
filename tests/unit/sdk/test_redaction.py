"""No credential reaches a message, a log or a repr."""

from __future__ import annotations

import logging
import threading
import traceback

import av
import numpy as np
import pytest

from resnet50_cli.images import answers
from resnet50_client import frames_from_video
from resnet50_client._profiles import Profile
from resnet50_client._redaction import redact
from resnet50_client.video import reader
from resnet50_client.video.source import Source, SourceOptions
from tests.support.clients import KINDS

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://user:s3cret@camera/stream", "rtsp://***@camera/stream"),
        ("no route to 'rtsp://user:s3cret@camera:554'", "no route to 'rtsp://***@camera:554'"),
        ("rtsp://s3cret@camera", "rtsp://***@camera"),
        ("rtsp://user:s3cret@s3cret@camera/a", "rtsp://***@camera/a"),
        ("rtsp://user:s3/cret@camera/a", "rtsp://***@camera/a"),
        ("http://camera/a?user=u&password=s3cret&x=1", "http://camera/a?user=u&password=***&x=1"),
        ("http://camera/a?x=1&access_token=s3cret", "http://camera/a?x=1&access_token=***"),
        ("http://camera/a?X-Amz-Signature=s3cret#a", "http://camera/a?X-Amz-Signature=***#a"),
        ("https://camera/a?key=s3cret", "https://camera/a?key=***"),
        ("http://camera/?USR=a&PWD=s3cret", "http://camera/?USR=a&PWD=***"),
        ("a rtsp://u:s3cret@a/ and http://u:s3cret@b/", "a rtsp://***@a/ and http://***@b/"),
    ],
)
def test_credentials_of_urls_are_taken_out(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://camera:554/stream@2x",
        "http://[2001:db8::1]:554/stream@2x",
        "https://host/cat@2x.mp4?fps=5&monkey=3",
        "/home/me@work/cat.mp4",
        "write to me@example.com: 3 of 4",
    ],
)
def test_what_holds_no_credentials_is_left_as_it_is(text):
    assert redact(text) == text


def test_known_url_is_found_whatever_its_password_holds():
    url = "rtsp://user:s3 cret'\"/x@camera/a"
    assert redact(f"cannot open {url!r}, {url}", url) == (
        "cannot open " + repr("rtsp://***@camera/a") + ", rtsp://***@camera/a"
    )


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://user:s3cret@127.0.0.1:1/stream",
        "http://user:s3cret@127.0.0.1:1/clip.mp4",
        "http://127.0.0.1:1/clip.mp4?password=s3cret",
        "nothing://user:s3cret@camera/clip.mp4",
        "http://user:s3 cret@127.0.0.1:1/clip.mp4",
    ],
)
def test_unreachable_camera_is_named_without_password(source):
    """Neither by us, nor by the errors of PyAV, which a traceback would show as the cause."""
    with pytest.raises(OSError, match=r"127\.0\.0\.1|camera") as refused:
        next(frames_from_video(source))
    everything = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
    for secret in (SECRET, "s3 cret", "cret@"):
        # The test's own line is in the traceback, and names no password.
        assert secret not in everything


class Container:
    """A camera whose packets are all broken, and which breaks down in the end."""

    pts, size = None, 1  # it is its packets, too

    def __init__(self, source: str, packets: int, end: Exception | None) -> None:
        self.streams = type("Streams", (), {"video": [object()]})()
        self._packets, self._end = packets, end
        self._error = av.error.InvalidDataError(1, f"broken: {source}", source)

    def demux(self, _stream):
        for _ in range(self._packets):
            yield self
        if self._end is not None:
            raise self._end

    def decode(self):
        raise self._error


def decoded(container: Container, source: str):
    return reader.decoded_frames(container, Source(source, SourceOptions()), threading.Event())


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        Clock.now += 0.5
        return Clock.now


def test_broken_packets_are_logged_rarely_and_redacted(monkeypatch, caplog):
    source = "rtsp://user:s3cret@camera/stream"
    monkeypatch.setattr(reader, "time", Clock())
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(OSError, match="no decodable frame") as refused,
    ):
        list(decoded(Container(source, 100, None), source))
    assert SECRET not in caplog.text + "".join(traceback.format_exception(refused.value))
    assert "rtsp://***@camera/stream: a packet cannot be decoded, 1 so far" in caplog.text
    assert 2 <= len(caplog.records) <= 10


def test_camera_that_breaks_down_is_named_without_its_password():
    source = "rtsp://user:s3cret@camera/stream"
    end = av.error.ConnectionResetError(104, "reset", source)
    with pytest.raises(OSError, match="failed after 0 frames") as refused:
        list(decoded(Container(source, 0, end), source))
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "server",
    [
        "https://user:s3cret@host:50051",
        "user:s3cret@host:50051",
        "user:s3cret/x@host",
        "dns://user:s3cret@host/name",
        ["host:1", "user:s3cret@host:50051"],
        ["unix:/x", "user:s3cret@host:50051"],
        "host:50051?token=s3cret",
        b"user:s3cret@host",
        {"user:s3cret@host": 1},
    ],
    ids=repr,
)
def test_address_with_credentials_is_refused_and_redacted(kind, server):
    with pytest.raises(ValueError, match=r"^server: ") as refused:
        kind(server)
    assert SECRET not in str(refused.value)


def test_profile_address_credentials_are_refused_and_redacted(monkeypatch, tmp_path):
    path = tmp_path / "profiles.toml"
    path.write_text('[profiles.a]\nserver = "user:s3cret@host:1"\n')
    with pytest.raises(ValueError, match="server: must be host:port, without") as refused:
        Profile.named("a", path)
    assert SECRET not in str(refused.value)
    monkeypatch.setenv("RESNET50_SERVER", "host:1,user:s3cret@host:1")
    with pytest.raises(ValueError, match="RESNET50_SERVER: server: must be") as refused:
        Profile.of_environment()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", ["tls", "insecure_token"])
def test_switch_that_is_text_is_refused(name):
    for kind in KINDS:
        with pytest.raises(ValueError, match=f"{name}: is 'false', must be True or False"):
            kind("host:1", **{name: "false"})


def test_pixels_are_not_shown():
    """Messages about arrays have their shape, never what they hold."""
    for kind in KINDS:
        with pytest.raises(TypeError) as refused:
            kind("127.0.0.1:1").classify_many(np.zeros((2, 2, 3), np.uint8))
        assert "[2, 2, 3]" in str(refused.value)


def test_url_given_as_an_image_is_shown_without_password():
    def call(images):
        for path, image in images:
            yield path, ValueError(str(image))

    given = ["rtsp://user:s3cret@camera/a", "token=3.jpg"]
    assert [one.path for one in answers(call, given)] == ["rtsp://***@camera/a", "token=3.jpg"]
