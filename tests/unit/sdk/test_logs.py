"""DEBUG lines of `resnet50_client`: one for each thing that it does by itself."""

from __future__ import annotations

import logging
import os
import re
import socket
from types import SimpleNamespace

import pytest
import trustme

from resnet50_client import RetryPolicy, UnavailableError, _resolver
from resnet50_client._resolver import REFRESH_S, Resolver
from resnet50_client._tls import CertificateSources
from resnet50_client._watched_file import WatchedFile
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller, items
from tests.support.threads import join_threads

QUICK = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.01)


@pytest.fixture(autouse=True)
def debug(caplog):
    caplog.set_level(logging.DEBUG, "resnet50_client")


OURS = "resnet50_client"


def lines(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("resnet50_client")
    ]


def one_line(caplog, pattern: str) -> str:
    (line,) = (line for line in lines(caplog) if re.search(pattern, line))
    return line


async def test_channel_is_logged_when_it_is_opened(kind, caplog):
    with FakeServer() as server:
        async with Caller(kind, server.address) as client:
            await client.classify(b"a")
            await client.classify(b"b")
    assert server.address in one_line(caplog, "^opening a channel to ")


async def test_retries_are_logged_with_their_pause_and_reason(kind, caplog):
    with FakeServer() as server:
        server.script(UnavailableError("is starting"), {"tabby": 1.0})
        async with Caller(kind, server.address, retry=QUICK) as client:
            await client.classify(b"a")
    line = one_line(caplog, "attempt 1 failed")
    assert re.fullmatch(
        r"resnet50.v1.InferenceService/Classify: attempt 1 failed, the next one is in 0.01 s: "
        rf"{server.address}: is starting",
        line,
    )
    one_line(caplog, "^resnet50.v1.InferenceService/Classify: attempt 2 starts$")


async def test_resumed_streams_are_logged(kind, caplog):
    with FakeServer() as one, FakeServer() as other:

        def frames():
            yield b"a"
            # The frame before is answered, so one of the two has the stream.
            (one if one.received else other).stop()
            yield b"b"

        async with Caller(kind, [one.address, other.address], retry=QUICK) as client:
            answers = [each async for each in items(client, "classify_stream", frames(), window=1)]
    assert [answer.error for answer in answers] == [None, None]
    assert any(re.search("ClassifyStream: attempt 1 failed", line) for line in lines(caplog))
    assert any(re.search("ClassifyStream: attempt 2 starts", line) for line in lines(caplog))


def test_changed_certificates_are_logged(tmp_path, caplog):
    old, new = trustme.CA(), trustme.CA()
    path = tmp_path / "ca.pem"
    old.cert_pem.write_to_path(path)
    sources = CertificateSources(ca=path)
    sources.current()
    assert lines(caplog) == []
    new.cert_pem.write_to_path(path)
    sources.current()
    assert one_line(caplog, "^changed ca: used for new connections$")
    assert one_line(caplog, "^ca: .*ca.pem has changed$")


def test_changed_certificates_that_are_invalid_are_a_warning(tmp_path, caplog):
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    sources = CertificateSources(ca=path)
    path.write_text("no PEM")
    for _ in range(3):
        sources.current()
    assert "contains no PEM certificates" in one_line(caplog, "^changed certificates are not used")
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    path.unlink()
    sources.current()
    assert one_line(caplog, "^certificates cannot be read, the previous ones are used: .*ca")


def test_changed_token_file_is_logged_without_the_token(tmp_path, caplog):
    path = tmp_path / "token"
    path.write_text("s3cret-old")
    os.utime(path, (1, 1))
    file = WatchedFile(path, "token_file")
    assert lines(caplog) == []
    path.write_text("s3cret-new")
    assert file.content() == b"s3cret-new"
    line = one_line(caplog, "has changed")
    assert str(path) in line
    assert "s3cret" not in caplog.text


def test_changed_addresses_are_logged(monkeypatch, caplog):
    hosts = {"a": "10.0.0.1", "b": "10.0.0.2"}
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, **_: [(socket.AF_INET, 1, 6, "", (hosts[host], port))],
    )
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(_resolver, "time", SimpleNamespace(monotonic=lambda: clock.now))
    resolver = Resolver(["a:1", "b:2"])
    resolver.wait(60)
    join_threads("resolve names")
    assert "10.0.0.1:1" in one_line(caplog, "^server: addresses are now ")
    hosts["a"] = "10.0.0.9"
    for _ in range(2):
        clock.now += REFRESH_S
        assert resolver.target  # starts a lookup
        join_threads("resolve names")
    assert "10.0.0.9:1" in lines(caplog)[-1]
    assert len(lines(caplog)) == 2


async def test_tokens_are_in_no_line(kind, caplog):
    with FakeServer() as server:
        server.script(UnavailableError("is starting"), {"tabby": 1.0})
        async with Caller(kind, server.address, retry=QUICK, token="s3cret") as client:
            await client.classify(b"a")
    assert server.received[-1].metadata["authorization"] == "Bearer s3cret"
    assert len(lines(caplog)) >= 3
    assert "s3cret" not in caplog.text


async def test_nothing_is_logged_above_debug_in_normal_operation(kind, caplog):
    with FakeServer() as server:
        async with Caller(kind, server.address) as client:
            await client.classify(b"a")
            assert [one async for one in items(client, "embed_stream", [b"a", b"b"])]
    assert {record.levelname for record in caplog.records} <= {"DEBUG"}
