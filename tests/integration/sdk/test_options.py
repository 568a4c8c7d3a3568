"""Defaults of a client: `with_options`, overrides of profiles, and pickling."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle

import pytest

from resnet50_client import (
    Client,
    RetryPolicy,
    UnavailableError,
    VariantNotFoundError,
)
from tests.support.clients import Caller, classify_once, items
from tests.support.faults import line_to


def derived(caller: Caller, **options) -> Caller:
    """Return a caller of `with_options`, which shares the client's connections."""
    other = object.__new__(Caller)
    other.client = caller.client.with_options(**options)
    other.admin = caller.admin
    return other


async def test_options_of_a_derived_client_reach_the_server(kind, server):
    async with Caller(kind, server.address, metadata={"x-tenant": "a"}) as client:
        other = derived(
            client,
            variant="IMAGENET1K_V2",
            priority="bulk",
            caller_key="user-1",
            metadata={"x-request-id": "request-7"},
        )
        await other.classify(b"image")
        await client.classify(b"image")
        _ = [one async for one in items(other, "embed_many", [b"image"])]
    first, second, third = server.received
    for one in (first, third):
        assert one.options["variant"] == "IMAGENET1K_V2"
        assert one.metadata["x-priority"] == "bulk"
        assert one.metadata["x-caller-key"] == "user-1"
        assert one.metadata["x-request-id"] == "request-7"
        assert one.metadata["x-tenant"] == "a"
    assert "variant" not in second.options
    assert second.metadata["x-tenant"] == "a"
    assert second.metadata["x-request-id"] != "request-7"
    assert not {"x-priority", "x-caller-key"} & second.metadata.keys()


CALLS = ["classify", "embed", "classify_stream", "embed_stream"]


async def called(caller: Caller, method: str, **options) -> None:
    """Make a call for one image."""
    if method in ("classify", "embed"):
        await getattr(caller, method)(b"image", **options)
    else:
        _ = [one async for one in items(caller, method, [b"image"], **options)]


@pytest.mark.parametrize("method", CALLS)
async def test_options_of_a_call_go_before_those_of_the_client(kind, server, method):
    defaults = {"priority": "bulk", "caller_key": "a", "metadata": {"x-tenant": "a", "x-zone": "z"}}
    async with Caller(kind, server.address, **defaults) as client:
        await called(
            client,
            method,
            variant="IMAGENET1K_V2",
            priority="interactive",
            caller_key="b",
            metadata={"x-tenant": "b"},
            request_id="request-7",
        )
        await called(client, method)
    first, second = (one.metadata for one in server.received)
    names = ("x-priority", "x-caller-key", "x-tenant", "x-zone")
    assert [first.get(name) for name in names] == [None, "b", "b", "z"]
    assert [second.get(name) for name in names] == ["bulk", "a", "a", "z"]
    assert server.received[0].options["variant"] == "IMAGENET1K_V2"
    assert first["x-request-id"] == "request-7" != second["x-request-id"]


@pytest.mark.parametrize("method", CALLS)
async def test_request_id_in_metadata_is_that_of_the_call(kind, server, method):
    async with Caller(kind, server.address, metadata={"x-request-id": "a"}) as client:
        await called(client, method)
        await called(client, method, metadata={"x-request-id": "b"})
        await called(client, method, metadata={"x-request-id": "b"}, request_id="c")
    assert [one.metadata["x-request-id"] for one in server.received] == ["a", "b", "c"]


@pytest.mark.parametrize("method", ["classify", "embed"])
async def test_result_has_the_request_id_and_its_source(kind, server, method):
    async with Caller(kind, server.address) as client:
        given = await getattr(client, method)(b"image", request_id="request-7")
        generated = await getattr(client, method)(b"image")
    assert (given.request_id, given.source) == ("request-7", b"image")
    assert generated.request_id == server.received[1].metadata["x-request-id"]


@pytest.mark.parametrize("method", CALLS)
async def test_error_without_a_server_has_the_request_id(kind, method):
    # Streams look for a server until the timeout.
    options = {"retry": RetryPolicy(attempts=1), "timeout_s": 3.0}
    async with Caller(kind, "127.0.0.1:1", **options) as client:
        with pytest.raises(UnavailableError) as given:
            await called(client, method, request_id="request-7")
        with pytest.raises(UnavailableError) as generated:
            await called(client, method)
    assert given.value.request_id == "request-7"
    assert len(generated.value.request_id) == 32


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"authorization": "x"}, "'authorization' cannot be set: use token"),
        ({"x-tenant": "ü"}, "the value of 'x-tenant' must be printable ASCII"),
        ({"x-request-id": "a b"}, "^request_id: is 'a b', must be 1 to 128 of"),
        ("x-tenant", "must map keys to values"),
    ],
)
async def test_wrong_metadata_of_a_call_are_refused(kind, server, method, metadata, message):
    async with Caller(kind, server.address) as client:
        with pytest.raises(ValueError, match=message):
            await called(client, method, metadata=metadata)
    assert server.received == []


class UnreadSource:
    """Images that are not accepted."""

    def __iter__(self):
        raise AssertionError("the source was read")


@pytest.mark.parametrize("method", [*CALLS, "classify_many", "embed_many"])
async def test_closed_client_refuses_a_call_before_it_reads_an_image(kind, server, method):
    client = Caller(kind, server.address)
    await client.close()
    image = "missing.jpg" if method in ("classify", "embed") else UnreadSource()
    with pytest.raises(RuntimeError, match="is closed; create a new one"):
        called = getattr(client.client, method)(image)
        await called  # only a call with one answer comes to this


async def test_variant_without_a_name_is_that_of_the_client(kind, server):
    async with Caller(kind, server.address, variant="DEFAULT") as client:
        assert (await client.get_variant()).name == "IMAGENET1K_V2"
    async with Caller(kind, server.address, variant="other") as client:
        with pytest.raises(VariantNotFoundError):
            await client.get_variant()


async def test_derived_client_shares_connections_and_their_end(kind, server):
    async with line_to(server.address) as line:
        client = Caller(kind, line.address)
        other = derived(client, timeout_s=60.0)  # before the first call
        await other.classify(b"image")
        await client.classify(b"image")
        assert line.connections == 1
        await other.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await client.classify(b"image")


async def test_derived_timeout_and_retry_apply(kind, server):
    server.script(*[UnavailableError("restarting")] * 2)
    async with Caller(kind, server.address) as client:
        other = derived(client, retry=RetryPolicy(attempts=2, initial_backoff_s=0.01))
        with pytest.raises(UnavailableError, match="tried 2 times"):
            await other.classify(b"image")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metadata": {"authorization": "x"}}, "'authorization' cannot be set: use token"),
        ({"metadata": {"x-priority": "bulk"}}, "'x-priority' cannot be set: use priority"),
        ({"metadata": {"grpc-timeout": "1S"}}, "'grpc-timeout' cannot be set: it is gRPC's"),
        ({"metadata": {"X-Tenant": "a"}}, "the key 'X-Tenant' must be of a-z"),
        ({"metadata": {"x-bin": "a"}}, "not end with '-bin'"),
        ({"metadata": {"x-tenant": "ü"}}, "the value of 'x-tenant' must be printable ASCII"),
        ({"metadata": {"x-tenant": 7}}, "the value of 'x-tenant' must be printable ASCII"),
        ({"variant": 7}, "variant: is 7"),
        ({"timeout_s": 0}, "timeout_s: is 0"),
        ({"priority": "high"}, "priority: is 'high'"),
        ({"caller_key": "ü"}, "caller_key: is 'ü'"),
    ],
)
def test_wrong_options_are_refused_by_name(kind, options, text):
    with pytest.raises(ValueError, match=text):
        kind("localhost:1", **options)
    with pytest.raises(ValueError, match=text):
        kind("localhost:1").with_options(**options)


async def test_overrides_take_precedence_over_the_environment(kind, server, monkeypatch):
    monkeypatch.setenv("RESNET50_SERVER", server.address)
    monkeypatch.setenv("RESNET50_VARIANT", "unknown")
    await classify_once(kind.from_environment(variant="DEFAULT"))
    assert [one.options["variant"] for one in server.received] == ["DEFAULT"]
    with pytest.raises(VariantNotFoundError, match="unknown"):
        await classify_once(kind.from_environment())


def label(client: Client) -> str:
    return client.classify(b"image", timeout_s=60).top.label


def test_client_is_pickled_into_another_process(server):
    server.script({"dog": 1.0}, {"cat": 1.0})
    spawn = multiprocessing.get_context("spawn")
    with (
        Client(server.address).with_options(
            variant="DEFAULT", metadata={"x-tenant": "a"}
        ) as client,
        concurrent.futures.ProcessPoolExecutor(1, spawn) as pool,
    ):
        assert client.classify(b"image").top.label == "dog"
        assert pool.submit(label, client).result() == "cat"
    assert [one.options["variant"] for one in server.received] == ["DEFAULT"] * 2
    assert [one.metadata["x-tenant"] for one in server.received] == ["a"] * 2


def test_copy_of_a_client_has_connections_of_its_own(server):
    client = Client(server.address)
    other = copy.copy(client)
    client.close()
    with other:
        assert other.classify(b"image").top


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"token": "secret"}, "token: a secret is not written into a pickle; pass token_file"),
    ],
)
def test_secrets_are_not_pickled(kind, arguments, text):
    client = kind("localhost:1", **arguments)
    with pytest.raises(TypeError, match=text):
        pickle.dumps(client)


async def test_metadata_of_a_derived_client_is_pickled_with_it(kind, server):
    client = kind(server.address, metadata={"x-tenant": "a"})
    client = client.with_options(metadata={"x-request-id": "request-7"})
    await classify_once(pickle.loads(pickle.dumps(client)))
    (received,) = server.received
    assert received.metadata["x-tenant"] == "a"
    assert received.metadata["x-request-id"] == "request-7"
