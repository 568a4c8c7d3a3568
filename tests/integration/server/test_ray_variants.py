"""Variants of a server on Ray: a configuration is applied, and undone without one."""

from __future__ import annotations

from resnet50_server.ray.options import VariantConfig
from resnet50_server.ray.variants import ServerVariants
from tests.support.administering import ADMIN, administrator, describe
from tests.support.live_variants import listed

OWN = "IMAGENET1K_V2"


async def default_and_others(admin) -> tuple[str, set[str]]:
    variants = await listed(admin)
    (default,) = [one.name for one in variants if one.server_default]
    return default, {one.name for one in variants} - {default}


async def test_configuration_is_undone_by_an_empty_one(tmp_path):
    for name in ("blue", "green"):
        describe(tmp_path / "variants" / name)
    (tmp_path / "token").write_text(ADMIN)
    async with administrator(tmp_path / "variants") as admin:
        variants = ServerVariants(admin.server.addresses[0], str(tmp_path / "token"))
        for name in ("blue", "green"):
            await variants.apply(VariantConfig(variants=(name,), default=name))
            assert await default_and_others(admin) == (name, {OWN})
        await variants.apply(VariantConfig(variants=("green",)))
        assert await default_and_others(admin) == (OWN, {"green"})
        await variants.apply(VariantConfig(variants=("green",), default="green"))
        await variants.apply(VariantConfig())
        assert await default_and_others(admin) == (OWN, set())


async def test_empty_configuration_takes_no_token_and_no_server():
    await ServerVariants("127.0.0.1:1", None).apply(VariantConfig())
