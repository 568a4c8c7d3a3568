"""Addresses that cannot be bound: the reason, and how to fix it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from resnet50_server.api.listen import listen, server_options
from resnet50_server.settings import Settings


@contextlib.asynccontextmanager
async def listening(address: str) -> AsyncIterator[str]:
    """Listen on an address; give it with the port that was chosen."""
    settings = Settings(listen=[address], variants=["x=random:0"], allow_plaintext=True)
    server = grpc.aio.server(options=server_options(settings))
    try:
        (bound,) = await listen(server, settings, None)
        await server.start()
        yield bound
    finally:
        await server.stop(None)


async def reason(address: str) -> str:
    """Return why an address cannot be bound."""
    with pytest.raises(OSError, match=r"^listen: cannot listen on ") as refused:
        async with listening(address):
            pass
    text = str(refused.value)
    assert "\n" not in text
    return text.removeprefix(f"listen: cannot listen on {address}: ")


async def test_second_server_on_a_port_is_refused():
    async with listening("127.0.0.1:0") as taken:
        assert await reason(taken) == (
            "Address already in use; stop the process that listens there, or set another address"
            " with --listen"
        )


async def test_address_of_another_machine_is_refused():
    assert await reason("192.0.2.1:0") == (
        "Cannot assign requested address; use an address of this machine, or 0.0.0.0 or [::] for"
        " all"
    )


async def test_socket_in_a_folder_that_is_missing_is_refused(tmp_path):
    assert await reason(f"unix:{tmp_path}/missing/s") == (
        "No such file or directory; create the socket's folder first"
    )


async def test_file_in_the_place_of_a_socket_is_kept(tmp_path):
    file: Path = tmp_path / "s"
    file.write_bytes(b"mine")
    assert (await reason(f"unix:{file}")).startswith("Address already in use; ")
    assert file.read_bytes() == b"mine"


async def test_socket_path_that_is_too_long_is_refused(tmp_path):
    said = await reason(f"unix:{tmp_path}/{'s' * 200}")
    assert said.startswith("AF_UNIX path too long")
    assert "set another path with --listen" in said


async def test_socket_of_another_server_is_not_replaced(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert (await reason(f"unix:{path}")).startswith("another server does; stop it")
