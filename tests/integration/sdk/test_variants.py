"""Variants changed through both clients, on a real server."""

from __future__ import annotations

import pytest

from resnet50_client import (
    DeadlineExceededError,
    PermissionDeniedError,
    UnavailableError,
    UnimplementedError,
    VariantChangeError,
    VariantNotFoundError,
)
from tests.support.administering import ADMIN, APP, administered, builds_paused, describe
from tests.support.clients import Caller
from tests.support.pictures import encode, photo_like
from tests.support.secured import fronting, unavailable
from tests.support.serving import until_result

PNG = encode(photo_like(32, 32))


@pytest.fixture
def folder(tmp_path):
    for name in ("digits", "pets"):
        describe(tmp_path / "variants" / name)
    return tmp_path / "variants"


async def states(client: Caller) -> dict[str, str]:
    return {one.name: one.state for one in await client.list_variants()}


async def test_variant_is_loaded_becomes_the_default_and_is_unloaded(kind, folder):
    async with (
        administered(folder) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
    ):
        loaded = await client.load_variant("digits")
        assert (loaded.variant.name, loaded.variant.state) == ("digits", "ready")
        assert (loaded.replaced_digest, loaded.evicted) == (None, ())
        assert (await client.classify(PNG, variant="digits")).variant.digest == (
            loaded.variant.digest
        )
        new = await client.set_default_variant("digits")
        assert (new.variant.name, new.variant.server_default) == ("digits", True)
        assert new.previous == "IMAGENET1K_V2"
        assert (await client.classify(PNG)).variant.name == "digits"
        unloaded = await client.unload_variant("DEFAULT")
        assert (unloaded.name, unloaded.state) == ("IMAGENET1K_V2", "draining")
        assert await states(client) == {"digits": "ready"}


async def test_replaced_variant_is_named_by_its_digest(kind, folder):
    async with (
        administered(folder) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
    ):
        old = (await client.load_variant("digits")).variant
        describe(folder / "digits", categories=("a", "b", "c"))
        with pytest.raises(VariantChangeError, match="served already"):
            await client.load_variant("digits")
        new = await client.load_variant("digits", replace=True)
        assert new.replaced_digest == old.digest
        assert new.variant.category_count == 3


async def test_what_a_server_refuses_is_told_apart(kind, folder, tmp_path):
    describe(folder / "broken", categories=("a", " "))
    async with (
        administered(folder) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
        Caller(kind, server.addresses[0], token=APP) as app,
    ):
        with pytest.raises(VariantNotFoundError, match="digits, pets"):
            await client.load_variant("cats")
        with pytest.raises(VariantNotFoundError) as unknown:
            await client.unload_variant("digits")
        assert "IMAGENET1K_V2" in unknown.value.served
        with pytest.raises(VariantChangeError, match="categories"):
            await client.load_variant("broken")
        with pytest.raises(VariantChangeError, match="no variant"):
            await client.unload_variant("IMAGENET1K_V2")
        for change in (app.load_variant, app.unload_variant, app.set_default_variant):
            with pytest.raises(PermissionDeniedError) as denied:
                await change("digits")
            assert denied.value.scope == "admin"
        # Why it failed stays to be read.
        assert [
            one.last_failure for one in await client.list_variants() if one.name == "broken"
        ] != [""]
    async with (
        administered(folder, variants_dir=None) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
    ):
        with pytest.raises(UnimplementedError, match="--variants-dir"):
            await client.load_variant("digits")


async def test_variant_changes_are_not_retried_on_another_server(kind):
    async with fronting() as front, Caller(kind, front.address) as client:
        for change in (client.load_variant, client.unload_variant, client.set_default_variant):
            front.failures = [unavailable()]
            with pytest.raises(UnavailableError):
                await change("digits")
        # Calls that change nothing are repeated.
        front.failures = [unavailable()]
        await client.list_variants()
        assert front.methods() == [
            *("LoadVariant", "UnloadVariant", "SetDefaultVariant"),
            *("ListVariants", "ListVariants"),
        ]


async def test_load_and_unload_have_a_timeout_of_their_own(kind):
    async with fronting() as front, Caller(kind, front.address, timeout_s=30.0) as client:
        for change in (client.load_variant, client.unload_variant, client.set_default_variant):
            with pytest.raises(PermissionDeniedError):
                await change("digits")
            with pytest.raises(PermissionDeniedError):
                await change("digits", timeout_s=None)
        load, load_none, unload, unload_none, default, none = (one.left_s for one in front.seen)
        assert min(load, load_none, unload, unload_none) > 300.0
        assert max(default, none) < 31.0


async def test_server_goes_on_with_a_load_whose_caller_gave_up(kind, folder, monkeypatch):
    async with (
        administered(folder) as server,
        Caller(kind, server.addresses[0], token=ADMIN) as client,
    ):
        with builds_paused(monkeypatch) as opened:
            with pytest.raises(DeadlineExceededError):
                await client.load_variant("digits", timeout_s=1.0)
            (digits,) = [one for one in await client.list_variants() if one.name == "digits"]
            assert (digits.state, digits.loading.stage) == ("loading", "building")
            with pytest.raises(VariantChangeError, match="another variant"):
                await client.load_variant("pets")
            opened.set()
        ready = {"IMAGENET1K_V2": "ready", "digits": "ready"}
        await until_states(client, ready)
        assert (await client.get_variant("digits")).loading is None


async def until_states(client: Caller, expected: dict[str, str]) -> None:
    await until_result(lambda: states(client), lambda found: found == expected)
