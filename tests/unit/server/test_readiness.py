"""Why a server accepts no images."""

from __future__ import annotations

import asyncio

from resnet50_server.lifecycle.readiness import Readiness
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.runtime.fatal import DeviceLost, EngineHung
from resnet50_server.variants.spec import parse_variant


async def test_first_fault_of_a_server_is_the_one_reported():
    failed = asyncio.Event()
    variants = VariantRegistry([parse_variant("a=random:0")], None)
    readiness = Readiness(variants, lambda: False, failed)
    assert readiness.server_problem() == "the variants are being loaded"
    readiness.fail(DeviceLost("the device is lost"))
    readiness.fail(EngineHung("an engine hangs because of that"))
    assert failed.is_set()
    assert readiness.server_problem() == "the device is lost"
    assert readiness.variant_problems() == {"a": "the device is lost"}
