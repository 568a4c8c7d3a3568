"""A pytest plugin: `pytest_plugins = ["resnet50_client.testing.fixtures"]`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .fake_server import FakeServer


@pytest.fixture
def resnet50_server() -> Iterator[FakeServer]:
    """Provide a fake server with its default categories; stopped after the test."""
    with FakeServer() as server:
        yield server
