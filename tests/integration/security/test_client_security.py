"""TLS, client certificates and tokens of both clients, against a server that wants them."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import math
import socket

import grpc
import psutil
import pytest

from resnet50_client import (
    AsyncClient,
    CallCancelledError,
    Client,
    RetryPolicy,
    UnauthenticatedError,
    UnavailableError,
)
from tests.support import certs
from tests.support.clients import Caller, items
from tests.support.secured import (
    PNG,
    TOKEN,
    Files,
    bundle,
    every_call,
    fronting,
    replaced,
    server_credentials,
)
from tests.support.serving import serving, until, until_result

ONCE = RetryPolicy(attempts=1)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def connections_to(address: str) -> int:
    """Return how many connections of this process to an address are open."""
    port = int(address.rpartition(":")[2])
    return sum(
        one.status == psutil.CONN_ESTABLISHED and one.raddr.port == port
        for one in psutil.Process().net_connections("tcp")
    )


def parts_of(client: Client | AsyncClient) -> list[object]:
    """Return the objects of the SDK that a client refers to, directly or not."""
    found: dict[int, object] = {}
    left: list[object] = [client]
    while left:
        one = left.pop()
        ours = type(one).__module__.startswith("resnet50_client")
        if id(one) not in found and (ours or isinstance(one, dict | list | tuple)):
            found[id(one)] = one
            left += gc.get_referents(one)
    return [one for one in found.values() if type(one).__module__.startswith("resnet50_client")]


async def refusal(client: Caller) -> UnavailableError:
    with pytest.raises(UnavailableError) as error:
        await client.classify(PNG)
    return error.value


# TLS


@pytest.mark.parametrize("form", ["path", "text path", "bytes"])
async def test_every_call_goes_through_tls(kind, ca, files, form):
    path = files.ca(ca)
    trusted = {"path": path, "text path": str(path), "bytes": path.read_bytes()}[form]
    async with (
        fronting(server_credentials(ca)) as front,
        Caller(kind, front.address, ca=trusted) as client,
    ):
        await every_call(client)
    assert "ClassifyStream" in front.methods() and "EmbedUpload" in front.methods()
    assert set(front.authorizations) == {None}


async def test_list_of_addresses_goes_through_tls(kind, ca):
    async with fronting(server_credentials(ca)) as one, fronting(server_credentials(ca)) as two:
        addresses = [one.address, two.address]
        async with Caller(kind, addresses, ca=bundle(ca)) as client:
            while not (one.seen and two.seen):
                await client.classify(PNG)


async def test_unix_socket_speaks_tls_and_takes_tokens(kind, ca, tmp_path):
    credentials = server_credentials(ca)
    where = f"unix:{tmp_path / 's'}"
    async with fronting(credentials, where) as front:
        front.tokens = {TOKEN}
        async with Caller(kind, front.address, ca=bundle(ca), token=TOKEN) as client:
            await client.classify(PNG)


async def test_authority_that_is_not_trusted_is_told(kind, ca, other_ca):
    async with (
        fronting(server_credentials(ca)) as front,
        Caller(kind, front.address, ca=bundle(other_ca), retry=ONCE) as client,
    ):
        error = await refusal(client)
    assert "TLS failed: the server's certificate is not signed by a CA in ca" in error.message
    assert front.address in error.message
    assert isinstance(error.__cause__, grpc.RpcError)
    assert front.seen == []


async def test_certificate_of_another_name_is_named_or_expected(kind, ca):
    async with fronting(server_credentials(ca, "models.example")) as front:
        async with Caller(kind, front.address, ca=bundle(ca), retry=ONCE) as client:
            error = await refusal(client)
        assert "another name; see server_name" in error.message
        named = {"ca": bundle(ca), "server_name": "models.example"}
        async with Caller(kind, front.address, **named) as client:
            await client.classify(PNG)


async def test_clear_text_and_tls_that_meet_are_told(kind, ca):
    async with fronting() as plain, fronting(server_credentials(ca)) as secure:
        async with Caller(kind, plain.address, ca=bundle(ca), retry=ONCE) as client:
            assert "the server does not use TLS" in (await refusal(client)).message
        async with Caller(kind, secure.address, retry=ONCE) as client:
            error = await refusal(client)
        assert "this client uses plaintext: does the server require TLS" in error.message
    assert plain.seen == secure.seen == []


async def test_absent_server_is_not_blamed_on_tls(kind, ca):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        for arguments in ({}, {"ca": bundle(ca)}):
            async with Caller(kind, address, retry=ONCE, **arguments) as client:
                assert "TLS" not in (await refusal(client)).message


# Client certificates


async def test_client_certificate_is_shown(kind, ca, files):
    credentials = server_credentials(ca, clients=bundle(ca))
    certificate = files.client(ca, "camera-7")
    async with (
        fronting(credentials) as front,
        Caller(kind, front.address, ca=bundle(ca), **certificate) as client,
    ):
        await every_call(client)
    assert {one.client for one in front.seen} == {"camera-7"}


async def test_missing_or_foreign_client_certificate_is_told(kind, ca, other_ca, files):
    async with fronting(server_credentials(ca, clients=bundle(ca))) as front:
        for certificate in ({}, files.client(other_ca, "stranger")):
            async with Caller(
                kind, front.address, ca=bundle(ca), retry=ONCE, **certificate
            ) as client:
                assert "does it require a client certificate" in (await refusal(client)).message
    assert front.seen == []


async def test_renewed_client_certificate_does_not_end_streams(kind, ca, files):
    credentials = server_credentials(ca, clients=bundle(ca))
    certificate = files.client(ca, "old")
    async with (
        fronting(credentials) as front,
        Caller(kind, front.address, ca=files.ca(ca), **certificate) as client,
    ):
        stream = items(client, "classify_stream", [PNG] * 40, window=1)
        await anext(stream)
        files.client(ca, "new")
        await client.classify(PNG)
        assert (front.seen[0].client, front.seen[-1].client) == ("old", "new")
        assert len([item async for item in stream]) == 39
        await client.embed(PNG)
    assert [one.client for one in front.seen] == ["old", "new", "new"]


async def test_connection_of_an_old_certificate_ends_after_its_calls(kind, ca, files):
    credentials = server_credentials(ca, clients=bundle(ca))
    certificate = files.client(ca, "old")
    async with (
        fronting(credentials) as front,
        Caller(kind, front.address, ca=bundle(ca), **certificate) as client,
    ):
        stream = items(client, "classify_stream", [PNG] * 8, window=1)
        await anext(stream)
        for name in ("new", "newer"):
            files.client(ca, name)
            await client.classify(PNG)
        gc.collect()
        await until(lambda: connections_to(front.address) == 2)
        assert len([item async for item in stream]) == 7
        del stream
        gc.collect()
        await until(lambda: connections_to(front.address) == 1)


async def test_close_ends_streams_on_an_old_certificate(kind, ca, files):
    credentials = server_credentials(ca, clients=bundle(ca))
    certificate = files.client(ca, "old")
    async with fronting(credentials) as front:
        client = Caller(kind, front.address, ca=bundle(ca), **certificate)
        stream = items(client, "classify_stream", itertools.repeat(PNG), window=1)
        await anext(stream)
        files.client(ca, "new")
        await client.classify(PNG)
        await client.close()
        with pytest.raises(CallCancelledError):
            while True:
                await anext(stream)


async def test_renewed_authority_is_trusted(kind, ca, other_ca, files):
    trusted = files.ca(other_ca)
    async with (
        fronting(server_credentials(ca)) as front,
        Caller(kind, front.address, ca=trusted, retry=ONCE) as client,
    ):
        await refusal(client)
        files.ca(other_ca, ca)
        await client.classify(PNG)


async def test_half_renewed_certificate_waits_for_its_key(kind, ca, files):
    credentials = server_credentials(ca, clients=bundle(ca))
    certificate = files.client(ca, "old")
    old_key = files.key.read_bytes()
    async with (
        fronting(credentials) as front,
        Caller(kind, front.address, ca=bundle(ca), **certificate) as client,
    ):
        await client.classify(PNG)
        files.client(ca, "new")
        new_key = files.key.read_bytes()
        for between in (old_key, b"", b"nonsense"):
            replaced(files.key, between)
            await client.classify(PNG)
        files.key.unlink()
        await client.classify(PNG)
        replaced(files.key, new_key)
        await client.classify(PNG)
    assert [one.client for one in front.seen] == ["old"] * 5 + ["new"]


# The server's own TLS and tokens


def hashed(**secrets: str) -> bytes:
    """Return a server's file of tokens, by their names."""
    entry = '[[token]]\nname = "{}"\nsha256 = "{}"\nscopes = ["infer"]\n'
    return "".join(
        entry.format(name, hashlib.sha256(secret.encode()).hexdigest())
        for name, secret in secrets.items()
    ).encode()


async def until_accepted(client: Caller) -> None:
    """Wait until the server has read its tokens again."""

    async def accepted() -> bool:
        try:
            await client.classify(PNG)
        except UnauthenticatedError:
            return False
        return True

    await until_result(accepted, bool)


async def test_everything_is_renewed_under_load_without_a_failed_call(kind, ca, other_ca, tmp_path):
    first, second = (secret * 8 for secret in ("first-", "second-"))
    for name in ("server", "client"):
        (tmp_path / name).mkdir()
    servers, files = certs.Files(tmp_path / "server", certs.issue(ca)), Files(tmp_path / "client")
    tokens = replaced(tmp_path / "server" / "tokens.toml", hashed(a=first))
    token = replaced(tmp_path / "client" / "token", first)
    clients_ca = replaced(tmp_path / "server" / "clients.pem", bundle(ca) + bundle(other_ca))
    certificate = files.client(ca, "old")
    trusted = files.ca(ca)
    settings = servers.settings | {"tls_client_ca": clients_ca, "tokens_file": tokens}
    answered, over = 0, False
    async with serving(**settings) as server:
        address = server.addresses[0]
        arguments = {"ca": trusted, **certificate, "retry": ONCE}
        async with Caller(kind, address, token_file=token, **arguments) as client:

            async def load() -> None:
                nonlocal answered
                while not over:
                    await client.classify(PNG)
                    answered += 1

            async def some_answers() -> None:
                wanted = answered + 10
                await until(lambda: not (answered < wanted and not loading.done()))

            loading = asyncio.create_task(load())
            await some_answers()
            files.client(other_ca, "new")
            await some_answers()
            files.ca(ca, other_ca)
            await some_answers()
            servers.put(certs.issue(other_ca))
            await some_answers()
            files.client(other_ca, "newer")  # a connection that is shown the server's new one
            await some_answers()
            replaced(tokens, hashed(a=first, b=second))
            async with Caller(kind, address, token=second, **arguments) as probe:
                await until_accepted(probe)
            replaced(token, second)
            await some_answers()
            replaced(tokens, hashed(b=second))
            await some_answers()
            over = True
            await loading
    assert answered > 50


# Priority


async def test_bulk_calls_say_so_and_a_stream_may_differ(kind):
    async with fronting() as front:
        async with Caller(kind, front.address) as client:
            await client.classify(PNG)
            [one async for one in items(client, "embed_many", [PNG], priority="bulk")]
        async with Caller(kind, front.address, priority="bulk") as client:
            await client.classify(PNG)
            [one async for one in items(client, "classify_stream", [PNG], priority="interactive")]
            with pytest.raises(ValueError, match=r"^priority: is 'low'"):
                [one async for one in items(client, "classify_many", [PNG], priority="low")]
    told = [one.metadata.get("x-priority") for one in front.seen]
    assert told == [None, "bulk", "bulk", None]


# Secrets


async def test_secrets_are_in_no_representation_and_no_error(kind, ca, files, capfd, caplog):
    caplog.set_level(0)
    certificate = files.client(ca, "camera-7")
    pem = {name: path.read_bytes() for name, path in certificate.items()}
    key = pem["key"].decode().splitlines()[1]
    shown = []
    async with fronting(server_credentials(ca, clients=bundle(ca))) as front:
        front.tokens = {"another"}
        async with Caller(
            kind, front.address, ca=bundle(ca), token=TOKEN, timeout_s=math.inf, **pem
        ) as client:
            shown += parts_of(client.client)
            with pytest.raises(UnauthenticatedError) as error:
                await client.classify(PNG)
            shown += [error.value, error.value.__cause__]
    assert front.authorizations == [f"Bearer {TOKEN}"]
    output = "".join(capfd.readouterr())
    for text in (*map(repr, shown), *map(str, shown), caplog.text, output):
        assert TOKEN not in text and key not in text
