"""A watched folder of variants: new, changed and removed directories."""

from __future__ import annotations

import shutil

import pytest

from tests.support.administering import READY, administrator, describe, refused
from tests.support.live_variants import PICTURES, REAL, ask, listed, put, set_default
from tests.support.serving import until, until_result


@pytest.fixture
def folder(tmp_path):
    """A folder of variants, of which the null engine reads the descriptions only."""
    describe(tmp_path / "variants" / "digits")
    return tmp_path / "variants"


async def test_watched_folder_loads_replaces_and_unloads(tmp_path):
    folder = tmp_path / "variants"
    folder.mkdir()
    options = REAL | {"watch_variants_s": 0.05}
    async with administrator(folder, **options) as admin:

        async def digest() -> str:
            ready = [one for one in await listed(admin) if (one.name, one.state) == ("mine", READY)]
            return ready[0].digest if ready else ""

        async def changed(before: str) -> str:
            return await until_result(digest, lambda now: now != before)

        put(folder, "mine", 1)
        first = await changed("")
        put(folder, "mine", 2)
        second = await changed(first)
        assert (await ask(admin, PICTURES[0], "mine")).variant.digest == second
        # Half a file: the served variant keeps serving, and the reason is shown.
        (folder / "mine" / "weights.pth").write_bytes(b"half")
        await until_result(
            lambda: listed(admin),
            lambda variants: any("broken" in one.last_failure for one in variants),
        )
        assert await digest() == second
        shutil.rmtree(folder / "mine")
        assert await changed(second) == ""
        await until_result(lambda: listed(admin), lambda variants: len(variants) <= 1)
        with refused("NOT_FOUND", "untrained"):
            await ask(admin, PICTURES[0], "mine")


async def test_variant_of_a_removed_directory_is_unloaded_when_unused(folder, tmp_path, caplog):
    async with administrator(folder, watch_variants_s=0.01) as admin:
        await until_result(admin.states, lambda states: states.get("digits") == READY)
        await set_default(admin, "digits")
        shutil.rmtree(folder / "digits")
        await until(
            lambda: "digits is the default, for requests that name no variant" in caplog.text
        )
        assert list(await admin.states()) == ["digits", "IMAGENET1K_V2"]
        await set_default(admin, "IMAGENET1K_V2")
        await until_result(admin.states, lambda states: "digits" not in states)
        assert caplog.text.count("digits is the default, for requests that name no variant") == 1
