"""Tokens of both clients, against a server that wants them."""

from __future__ import annotations

import pytest

from resnet50_client import (
    PermissionDeniedError,
    RetryPolicy,
    UnauthenticatedError,
)
from tests.support.clients import Caller, items
from tests.support.secured import (
    PNG,
    TOKEN,
    bundle,
    every_call,
    fronting,
    overloaded,
    replaced,
    server_credentials,
    unavailable,
)


async def test_token_goes_with_every_call(kind, ca):
    async with fronting(server_credentials(ca)) as front:
        front.tokens = {TOKEN}
        async with Caller(kind, front.address, ca=bundle(ca), token=TOKEN) as client:
            await every_call(client)
    methods = {
        *("Check", "Classify", "Embed", "EmbedUpload", "ListVariants", "GetVariant"),
        *("ClassifyStream", "EmbedStream", "ClassifyBatch", "EmbedBatch"),
    }
    assert set(front.methods()) == methods
    assert set(front.authorizations) == {f"Bearer {TOKEN}"}


async def test_missing_wrong_and_unfit_tokens_are_told_apart(kind):
    async with fronting() as front:
        front.tokens = {TOKEN, "other"}
        front.allowed = lambda token: token == TOKEN
        for arguments, expected in (
            ({}, UnauthenticatedError),
            ({"token": "wrong"}, UnauthenticatedError),
            ({"token": "other"}, PermissionDeniedError),
        ):
            async with Caller(kind, front.address, **arguments) as client:
                with pytest.raises(expected):
                    await client.classify(PNG)
                with pytest.raises(expected):
                    [item async for item in items(client, "classify_many", [PNG])]
                with pytest.raises(expected):
                    await client.wait_until_ready(timeout_s=30)


async def test_function_gives_each_call_its_token(kind):
    given = iter(["one", "two", "three"])
    async with (
        fronting() as front,
        Caller(kind, front.address, token=lambda: next(given)) as client,
    ):
        await client.health()
        await client.classify(PNG)
        [item async for item in items(client, "embed_many", [PNG])]
    assert front.authorizations == ["Bearer one", "Bearer two", "Bearer three"]


async def test_token_file_is_read_again_when_it_changes(kind, tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    async with fronting() as front, Caller(kind, front.address, token_file=path) as client:
        await client.health()
        replaced(path, "second\n")
        await client.health()
        path.write_text("thirds")  # in place, of the same length
        await client.health()
        path.write_text("")  # about to be written
        await client.health()
        path.unlink()
        await client.health()
        path.write_text("fourth")
        await client.health()
    told = ["first", "second", "thirds", "thirds", "thirds", "fourth"]
    assert front.authorizations == [f"Bearer {token}" for token in told]


async def test_retries_keep_the_token(kind):
    retry = RetryPolicy(initial_backoff_s=0.01, overload_attempts=2)
    async with fronting() as front:
        front.tokens = {TOKEN}
        front.failures = [unavailable(), overloaded()]
        async with Caller(kind, front.address, token=TOKEN, retry=retry) as client:
            await client.classify(PNG)
    assert front.authorizations == [f"Bearer {TOKEN}"] * 3


async def test_resumed_stream_takes_the_token_of_the_moment(kind):
    given = ["one", "two"]
    async with fronting() as front:
        front.cut_after = 5
        options = {"token": lambda: given.pop(0), "retry": RetryPolicy(initial_backoff_s=0.01)}
        async with Caller(kind, front.address, **options) as client:
            answers = [one async for one in items(client, "classify_stream", [PNG] * 20)]
    assert [answer.result.top.label for answer in answers] == ["tench"] * 20
    assert front.methods() == ["ClassifyStream", "ClassifyStream"]
    assert front.authorizations == ["Bearer one", "Bearer two"]


async def test_token_function_error_does_not_show_its_value(kind):
    async with (
        fronting() as front,
        Caller(kind, front.address, token=lambda: f"Bearer {TOKEN}\n") as client,
    ):
        for call in (client.classify(PNG), anext(items(client, "classify_stream", [PNG]))):
            with pytest.raises(ValueError, match=r"^token: must be visible ASCII") as error:
                await call
            assert TOKEN not in str(error.value)
    assert front.seen == []


async def test_token_leaves_the_machine_in_clear_text_only_if_allowed(kind):
    with pytest.raises(ValueError, match=r"^token: would be sent to models\.example:1 in plain"):
        Caller(kind, "models.example:1", token=TOKEN)
    for allowed in ({"insecure_token": True}, {"tls": True}):
        async with Caller(kind, "models.example:1", token=TOKEN, **allowed):
            pass
