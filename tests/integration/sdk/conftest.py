"""A server with a real network, a fake one, and both clients with each source that they take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet50_client.testing import FakeServer
from tests.support.clips import fill, write_clip
from tests.support.frame_sources import SOURCES
from tests.support.serving import server_processes


@pytest.fixture(scope="session")
def untrained_server() -> Iterator[str]:
    """The address of a process that serves a real network: its answers depend on the pixels."""
    options = ("--engine", "torch", "--device", "cpu", "--max-batch-size", "4")
    with server_processes() as start:
        yield start("--variants", "untrained=random:0", *options).wait_until_listening()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A fake server of two categories."""
    with FakeServer(categories=("cat", "dog"), dimension=8) as fake:
        yield fake


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames, each of another grey."""
    frames = [fill((20 * number, 128, 128), 64, 48, "yuv420p") for number in range(10)]
    return write_clip(tmp_path / "clip.mkv", frames)


@pytest.fixture(params=SOURCES, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def sourced(request: pytest.FixtureRequest) -> tuple[type, type]:
    """The class of a client, and that of a source."""
    return request.param
