from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc

from resnet50_client import _channels as module
from resnet50_client._channel_config import ChannelConfig
from resnet50_client._channels import Channels
from resnet50_client._resolver import Resolver


class Watched:
    """A lock that records when a thread has to wait for it."""

    def __init__(self, waited_for: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._waited_for = waited_for

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._waited_for()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_slow_thread_does_not_put_old_certificates_back(monkeypatch):
    """One that reads the old ones is held up until another that reads the new ones has been."""
    went_on = threading.Event()
    lock = SimpleNamespace(Lock=lambda: Watched(went_on.set), Event=threading.Event)
    monkeypatch.setattr(module, "threading", lock)
    used: list[str] = []

    def current() -> SimpleNamespace:
        if not other.is_alive() and not went_on.is_set():
            other.start()
            went_on.wait(60)
            return old
        return new

    def secure_channel(_where: str, credentials: str, _options: object, **_: object) -> Any:
        used.append(credentials)
        return grpc.insecure_channel("localhost:1")

    def call() -> None:
        channels.stubs()
        went_on.set()

    old, new = (SimpleNamespace(for_channel=lambda name=name: name) for name in ("old", "new"))
    connection = SimpleNamespace(
        credentials=SimpleNamespace(certificates=SimpleNamespace(current=current)),
        server_name=lambda: None,
        channel=ChannelConfig(),
    )
    kind = SimpleNamespace(secure_channel=secure_channel)
    channels = Channels(connection, Resolver(["localhost:1"]), kind)  # type: ignore[arg-type]
    other = threading.Thread(target=call)
    channels.stubs()
    other.join()
    assert used == ["old", "new"]
    for channel in channels.close():
        channel.close()
