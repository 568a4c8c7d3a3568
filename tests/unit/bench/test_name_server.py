"""The DNS server of the trials answers as resolvers expect."""

from __future__ import annotations

import asyncio
import socket
import struct

from benchmarks.name_server import AAAA, A, NameServer


def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def addresses(response: bytes, asked: bytes) -> list[str]:
    """Return the addresses of a response; checks its question, TTL and types."""
    number, _, questions, count, _, _ = struct.unpack_from("!HHHHHH", response)
    assert (number, questions) == (7, 1)
    assert response[12 : len(asked)] == asked[12:]
    records = response[len(asked) :]
    assert len(records) == 16 * count
    found = []
    for start in range(0, len(records), 16):
        pointer, kind, network, ttl_s, length = struct.unpack_from("!HHHIH", records, start)
        assert (pointer, kind, network, ttl_s, length) == (0xC00C, A, 1, 5, 4)
        found.append(socket.inet_ntoa(records[start + 12 : start + 16]))
    return found


def test_name_has_its_present_addresses():
    names = NameServer("servers.test", 5)
    asked = query("Servers.test", A)
    assert addresses(names.answer(asked), asked) == []
    names.addresses = ["10.77.1.2", "10.77.2.2"]
    assert addresses(names.answer(asked), asked) == names.addresses
    assert names.queries == 2


def test_name_without_ipv6_exists_and_other_names_do_not():
    names = NameServer("servers.test", 5)
    names.addresses = ["10.77.1.2"]
    for name, kind, code in (("servers.test", AAAA, 0), ("other.test", A, 3)):
        asked = query(name, kind)
        response = names.answer(asked)
        assert addresses(response, asked) == []
        assert struct.unpack_from("!H", response, 2)[0] & 0xF == code


async def test_questions_are_answered_over_udp():
    names = NameServer("servers.test", 5)
    names.addresses = ["10.77.1.2"]
    asked = query("servers.test", A)
    async with names.listening(port=0) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(client, asked, ("127.0.0.1", port))
            response = await asyncio.wait_for(loop.sock_recv(client, 512), 60)
    assert addresses(response, asked) == names.addresses
