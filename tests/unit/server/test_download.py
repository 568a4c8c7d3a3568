"""Downloads of official checkpoints that fail."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from resnet50_server.errors import WeightsError
from resnet50_server.variants import download
from resnet50_server.variants.official import official_facts
from resnet50_server.variants.spec import parse_variant

V2 = official_facts()["variants"]["IMAGENET1K_V2"]


def test_download_from_a_silent_peer_times_out(monkeypatch, tmp_path):
    """A peer takes the connection and says nothing, as a broken proxy does."""
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setitem(V2, "url", f"http://127.0.0.1:{port}/resnet50-11ad3fa6.pth")
        with pytest.raises(WeightsError, match="timed out") as refused:
            download.fetch(parse_variant("IMAGENET1K_V2"), tmp_path)
    assert "random:0" in str(refused.value)
    assert list(tmp_path.glob("resnet50*")) == []


def test_stalled_download_fails_without_global_timeouts(monkeypatch, tmp_path):
    """A server that serves has other sockets than that of its download."""
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    limits = []
    with closing(socket.create_server(("127.0.0.1", 0))) as peer:

        def send_half() -> None:
            connection, _ = peer.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            connection.recv(1)  # until the other side gives up
            limits.append(socket.getdefaulttimeout())
            connection.close()

        sending = threading.Thread(target=send_half)
        sending.start()
        port = peer.getsockname()[1]
        monkeypatch.setitem(V2, "url", f"http://127.0.0.1:{port}/resnet50-11ad3fa6.pth")
        with pytest.raises(WeightsError, match=r"TimeoutError|timed out"):
            download.fetch(parse_variant("IMAGENET1K_V2"), tmp_path)
        sending.join()
    assert limits == [None]
    assert list(tmp_path.glob("resnet50*")) == []
