"""File access with a time limit."""

from __future__ import annotations

import threading

import pytest

from resnet50_server.variants.disk import Disk


async def test_files_are_read_once_a_thread_can_be_started(monkeypatch):
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    disk = Disk("variants_dir: /models", 60.0)
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            await disk.run(lambda: 1)
    assert await disk.run(lambda: 2) == 2
