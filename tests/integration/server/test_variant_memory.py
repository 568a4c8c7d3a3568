"""The limit of the memory of all variants: loads beyond it are refused, or evict others."""

from __future__ import annotations

import pytest

from resnet50.v1 import variant_pb2
from resnet50_server.settings import Settings
from tests.support.administering import READY, administrator, refused
from tests.support.live_variants import PICTURES, REAL, ask, put, replace
from tests.support.serving import serving


def megabytes(count: int) -> int:
    return count * 2**20


@pytest.fixture
def three(tmp_path):
    folder = tmp_path / "variants"
    for seed, name in enumerate(("one", "two", "three")):
        put(folder, name, seed)
    return folder


async def test_variant_beyond_the_budget_is_refused(three, tmp_path):
    # Each takes about 117 MiB in eager PyTorch.
    options = REAL | {"max_variants_bytes": megabytes(300)}
    async with administrator(three, **options) as admin:
        await admin.load("one")
        with refused("FAILED_PRECONDITION", "max_variants_bytes: two takes about 116 MiB"):
            await admin.load("two")
        # Nor is there room for both while one replaces the other.
        with refused("FAILED_PRECONDITION", "untrained 126, one 116"):
            await replace(admin, "one")
        assert (await admin.states())["one"] == READY
        await admin.unload("one")
        assert (await admin.load("two")).state == READY


async def test_lru_variants_are_evicted_but_never_the_default(three, tmp_path):
    options = REAL | {"max_variants_bytes": megabytes(400), "evict_variants": True}
    async with administrator(three, **options) as admin:
        await admin.load("one")
        await admin.load("two")
        await ask(admin, PICTURES[0], "two")
        await ask(admin, PICTURES[0], "one")
        request = variant_pb2.LoadVariantRequest(name="three")
        loaded = await admin.variants.LoadVariant(request, metadata=admin.token())
        assert list(loaded.evicted) == ["two"]
        assert await admin.states() == {"untrained": READY, "one": READY, "three": READY}
        # Its own place is no room for its replacement; the others are.
        assert list((await replace(admin, "three")).evicted) == ["one"]


async def test_variants_beyond_the_budget_stop_the_start(tmp_path):
    from resnet50_server.errors import WeightsError

    with pytest.raises(WeightsError, match="max_variants_bytes: untrained takes about"):
        async with serving(**REAL, max_variants_bytes=megabytes(100)):
            pass


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"watch_variants_s": 1.0}, "watch_variants_s: needs variants_dir"),
        ({"evict_variants": True}, "evict_variants: needs max_variants_bytes"),
    ],
)
def test_settings_that_need_others_say_so(settings, text):
    with pytest.raises(ValueError, match=text):
        Settings(variants=["x=random:0"], **settings)
