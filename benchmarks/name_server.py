"""A DNS server of one name, whose addresses change: RFC 1035 over UDP, A records only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import cast

A, AAAA, INTERNET = 1, 28, 1
# Response, recursion desired and available; NXDOMAIN adds 3.
FLAGS, NO_SUCH_NAME = 0x8180, 3
# The name of the question, which begins at byte 12.
POINTER_TO_NAME = 0xC00C


class NameServer(asyncio.DatagramProtocol):
    """Answers for one name.

    Args:
        name: Without the dot at its end.
        ttl_s: Time that resolvers may keep an answer, in seconds.

    Attributes:
        addresses: IPv4 addresses of the name; they may be changed at any time.
        queries: Number of questions for the name's IPv4 addresses.
    """

    def __init__(self, name: str, ttl_s: int) -> None:
        self.addresses: list[str] = []
        self.queries = 0
        self._name, self._ttl_s = name, ttl_s
        self._transport: asyncio.DatagramTransport | None = None

    @contextlib.asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", port: int = 53) -> AsyncIterator[int]:
        """Serve on a UDP port; yields it."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        try:
            yield int(transport.get_extra_info("sockname")[1])
        finally:
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer a question."""
        assert self._transport is not None
        self._transport.sendto(self.answer(data), addr)

    def answer(self, query: bytes) -> bytes:
        """Return the response to a query with one question."""
        end = 12
        labels = []
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length].decode("ascii", "replace"))
            end += 1 + length
        kind, network = struct.unpack_from("!HH", query, end + 1)
        question = query[12 : end + 5]
        found: list[str] = []
        known = ".".join(labels).lower() == self._name
        if known and (kind, network) == (A, INTERNET):
            self.queries += 1
            found = self.addresses
        flags = FLAGS if known else FLAGS | NO_SUCH_NAME
        head = query[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0)
        records = (
            struct.pack("!HHHIH", POINTER_TO_NAME, A, INTERNET, self._ttl_s, 4)
            + socket.inet_aton(address)
            for address in found
        )
        return head + question + b"".join(records)
