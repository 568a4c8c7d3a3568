"""A server with a real network, and both clients with each kind of source that they take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.frame_sources import SOURCES
from tests.support.serving import server_processes


@pytest.fixture(scope="session")
def untrained_server() -> Iterator[str]:
    """The address of a process that serves a real network: its answers depend on the pixels."""
    options = ("--engine", "torch", "--device", "cpu", "--max-batch-size", "4")
    with server_processes() as start:
        yield start("--variants", "untrained=random:0", *options).wait_until_listening()


@pytest.fixture(params=SOURCES, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def sourced(request: pytest.FixtureRequest) -> tuple[type, type]:
    """The class of a client, and that of a source."""
    return request.param
