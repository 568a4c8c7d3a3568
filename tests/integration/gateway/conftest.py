"""A real server and a real gateway in front of it, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.gateways import client, gateway
from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes


@pytest.fixture(scope="session")
def photo() -> bytes:
    """An image file."""
    return encode(photo_like(320, 240), "JPEG", quality=90)


@pytest.fixture(scope="module")
def server_arguments() -> tuple[str, ...]:
    """Return the arguments of the server; modules replace it."""
    return ("--variants", "IMAGENET1K_V2", "--engine", "null")


@pytest.fixture(scope="module")
def address(server_arguments: tuple[str, ...]) -> Iterator[str]:
    """The address of a server."""
    with server_processes() as start:
        yield start(*server_arguments).wait_until_listening()


@pytest.fixture(scope="module")
def gateway_options() -> tuple[str, ...]:
    """Return the options of the gateway; modules replace it."""
    return ()


@pytest.fixture(scope="module")
def url(address: str, gateway_options: tuple[str, ...]) -> Iterator[str]:
    """The URL of a gateway in front of the server."""
    with gateway(address, options=gateway_options) as found:
        yield found


@pytest.fixture
def http(url: str) -> Iterator[httpx2.Client]:
    """A client of the gateway."""
    with client(url) as opened:
        yield opened
