"""Changes of variants and their failures; engines are fakes, everything else is real."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from resnet50_server.errors import NotNow, VariantNotFound, WeightsError
from tests.support.administering import describe
from tests.support.fake_variants import EACH, EngineError, Engines, described, serve, served
from tests.support.serving import until


@pytest.fixture
def folder(tmp_path) -> Path:
    return described(tmp_path / "variants")


# One change at a time


async def test_variant_made_default_during_unload_stays(folder):
    server = await served(folder, "a=random:0", "b=random:1")
    unloading = asyncio.ensure_future(server.control.unload("b"))
    asyncio.get_running_loop().call_soon(server.control.set_default, "b")
    with pytest.raises(NotNow, match="b is the default, for requests that name no variant"):
        await unloading
    assert server.variants.find("").spec.name == "b"
    assert [one.name for one in server.variants.specs] == ["b", "a"]


async def test_variant_of_a_new_traffic_split_is_not_unloaded(folder):
    splits: list[str] = []
    server = await served(folder, "a=random:0", "b=random:1", splits=splits)
    unloading = asyncio.ensure_future(server.control.unload("b"))
    asyncio.get_running_loop().call_soon(splits.append, "a")
    with pytest.raises(NotNow, match="used by the traffic split of a"):
        await unloading
    assert server.names == ["a", "b"]


async def test_variant_out_of_service_does_not_become_the_default(folder):
    server = await served(folder, "a=random:0", "b=random:1")
    server.variants.find("b").queue.health.fail("NaN", "load it again")
    with pytest.raises(NotNow, match="b is out of service: NaN"):
        server.control.set_default("b")
    assert server.variants.default.name == "a"


async def test_cancelled_load_leaves_its_name_free(folder):
    entered, never = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await never.wait()

    server = await served(folder, "a=random:0")
    server.engines.wait = wait
    loading = asyncio.create_task(server.control.load("x"))
    await entered.wait()
    server.control.close()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert server.variants.by_name("x") is None
    assert server.variants.failures == {"x": "the load was cancelled"}


async def test_startup_and_admin_loads_run_one_at_a_time(folder):
    at_once, most = 0, 0

    async def count() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    server = serve(folder, "a=random:0", "b=random:1", engines=Engines(wait=count))
    starting = asyncio.create_task(server.control.load_initial())
    await asyncio.sleep(0)
    with pytest.raises(NotNow, match="another variant is being loaded"):
        await server.control.load("x")
    await starting
    assert (server.names, most) == (["a", "b"], 1)


async def test_startup_waits_for_a_load_in_progress(folder):
    server = serve(folder, "a=random:0")
    loading = asyncio.create_task(server.control.load("x"))
    await asyncio.sleep(0)
    await server.control.load_initial()
    assert loading.done()
    assert server.engines.loads == ["x", "a"]


async def test_cancelled_startup_loads_nothing_more(folder):
    entered, never = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await never.wait()

    server = serve(folder, "a=random:0", engines=Engines(wait=wait))
    starting = asyncio.create_task(server.control.load_initial())
    await entered.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.wait_for(server.control.wait_idle(), 30)
    assert server.names == []


# Memory


async def test_eviction_for_a_failed_load_is_not_undone(folder):
    server = await served(folder, "a=random:0", "b=random:1", max_bytes=2 * EACH, evict=True)
    server.engines.errors["x"] = WeightsError("broken")
    text = "broken; evicted for it, and not loaded again: b"
    with pytest.raises(NotNow, match=f"^name: x cannot be loaded: {text}$"):
        await server.control.load("x")
    assert server.names == ["a"]  # the default stays
    assert server.engines.loads == ["a", "b", "x"]
    assert server.variants.failures == {"x": text}
    await server.control.load("b")  # by hand
    assert server.names == ["a", "b"]


async def test_variant_of_a_traffic_split_is_not_evicted(folder):
    server = await served(
        folder,
        "a=random:0",
        "b=random:1",
        "c=random:2",
        max_bytes=3 * EACH,
        evict=True,
        splits_using=lambda name: ["a"] if name == "b" else [],
    )
    assert (await server.control.load("x")).evicted == ["c"]
    with pytest.raises(NotNow, match="max_variants_bytes: y takes about 2 MiB"):
        server.engines.bytes["y"] = 2 * EACH
        await server.control.load("y")
    assert server.names == ["a", "b", "x"]


async def test_variant_is_not_evicted_for_its_own_replacement(folder):
    server = await served(folder, "a=random:0", max_bytes=2 * EACH, evict=True)
    await server.control.load("x")
    with pytest.raises(NotNow, match="max_variants_bytes: x takes about 1 MiB"):
        await server.control.load("x", replace=True)
    assert server.names == ["a", "x"]


async def test_variant_too_large_even_after_drains_is_rejected(folder):
    engines = Engines(bytes={"y": 3 * EACH})
    server = await served(folder, "a=random:0", engines=engines, max_bytes=3 * EACH)
    await server.control.load("x")
    old = server.variants.find("x")
    old.acquire()
    await server.control.load("x", replace=True)
    assert server.variants.draining == [old]
    with pytest.raises(NotNow, match="max_variants_bytes: y takes about 3 MiB"):
        await server.control.load("y")
    assert server.variants.draining == [old]
    old.release()


async def test_load_waits_for_drains_before_it_evicts(folder):
    engines, stages = Engines(bytes={"y": 2 * EACH}), []
    server = await served(folder, "a=random:0", engines=engines, max_bytes=4 * EACH, evict=True)
    await server.control.load("x")
    old = server.variants.find("x")
    old.acquire()
    await server.control.load("x", replace=True)

    async def poll() -> None:
        loading = server.variants.load_progress(server.variants.resolve("y", "name"))
        stages.append(loading.stage)

    engines.wait = poll
    loading = asyncio.create_task(server.control.load("y"))
    while (found := server.variants.by_name("y")) is None:
        await asyncio.sleep(0)
    while server.variants.load_progress(found).stage != "evicting":
        await asyncio.sleep(0)
    old.release()
    assert (await loading).evicted == []
    assert server.names == ["a", "x", "y"]
    assert stages == ["evicting"]


async def test_nothing_is_evicted_if_memory_suffices(folder):
    server, stages = await served(folder, "a=random:0", max_bytes=2 * EACH, evict=True), []

    async def poll() -> None:
        stages.append(server.variants.load_progress(server.variants.resolve("x", "name")).stage)

    server.engines.wait = poll
    await server.control.load("x")
    assert stages == ["waiting"]  # as the fake says nothing else


async def test_memory_of_a_hung_engine_stays_in_use(folder):
    server = await served(folder, "a=random:0", "b=random:1", max_bytes=2 * EACH)
    loaded = server.variants.find("b")

    async def remove(*_) -> bool:
        return False

    loaded.scheduler.remove = remove
    with pytest.raises(NotNow, match=r"b is unloaded .* its memory stays in use"):
        await server.control.unload("b")
    assert server.variants.by_name("b") is None
    assert server.variants.draining == [loaded]
    with pytest.raises(NotNow, match=r"max_variants_bytes: x takes about 1 MiB .*a 1, b 1"):
        await server.control.load("x")


async def test_load_is_refused_if_an_evicted_engine_hangs(folder):
    server = await served(folder, "a=random:0", "b=random:1", max_bytes=2 * EACH, evict=True)

    async def remove(*_) -> bool:
        return False

    server.variants.find("b").scheduler.remove = remove
    with pytest.raises(NotNow, match=r"max_variants_bytes: x takes .* evicted for it, .*: b$"):
        await server.control.load("x")
    assert [one.name for one in server.variants.specs] == ["a"]


async def test_unload_reports_an_engine_that_could_not_be_closed(folder, caplog):
    server = await served(folder, "a=random:0", "b=random:1")
    loaded = server.variants.find("b")

    def close() -> None:
        raise EngineError("still in use")

    loaded.built.engine.close = close
    with pytest.raises(NotNow, match=r"b is unloaded .* could not be closed"):
        await server.control.unload("b")
    assert server.variants.by_name("b") is None
    assert server.variants.draining == [loaded]
    assert "EngineError: still in use" in caplog.text


# Failures


@pytest.mark.parametrize("error", [EngineError("bad allocation"), MemoryError(), KeyError("x")])
async def test_any_engine_error_is_the_load_error(folder, error, caplog):
    server = await served(folder, "a=random:0")
    server.engines.errors["x"] = error
    with pytest.raises(NotNow) as refused:
        await server.control.load("x")
    assert str(refused.value) == f"name: x cannot be loaded: {error!r}"
    assert server.variants.failures == {"x": repr(error)}
    (warning,) = [one for one in caplog.records if "was not loaded" in one.getMessage()]
    assert bool(warning.exc_info) is not isinstance(error, MemoryError)


async def test_weights_of_a_failed_load_are_freed(folder):
    server = await served(folder, "a=random:0")

    async def load() -> None:
        with pytest.raises(NotNow):
            await server.control.load("x")

    server.engines.errors["x"] = WeightsError("broken")
    # Errors hold each other in circles.
    gc.disable()
    try:
        await load()
        await asyncio.sleep(0)
        server.engines.errors.clear()
        assert server.engines.weights[-1]() is None
    finally:
        gc.enable()


async def test_rejected_loads_are_not_recorded_as_failures(folder):
    server = await served(folder, "IMAGENET1K_V2")
    for name in ("DEFAULT", "IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2"):
        with pytest.raises(NotNow, match="IMAGENET1K_V2 is served already"):
            await server.control.load(name)
    assert server.variants.failures == {}


async def test_failed_load_of_an_alias_is_recorded_by_name(folder):
    server = await served(folder, "IMAGENET1K_V2")
    server.engines.errors["IMAGENET1K_V2"] = WeightsError("broken")
    with pytest.raises(NotNow, match="broken"):
        await server.control.load("DEFAULT", replace=True)
    assert server.variants.failures == {"IMAGENET1K_V2": "broken"}
    server.engines.errors.clear()
    await server.control.load("DEFAULT", replace=True)
    assert server.variants.failures == {}


# Loading


@pytest.mark.parametrize("source", ["elsewhere", "random:1"])
async def test_startup_variant_can_be_loaded_again_after_unload(folder, tmp_path, source):
    if source == "elsewhere":
        describe(tmp_path / source)
        source = str(tmp_path / source)
    server = await served(folder, "a=random:0", f"m={source}")
    await server.control.unload("m")
    await server.control.load("m")
    assert server.names == ["a", "m"]


async def test_unknown_name_lists_what_can_be_loaded(folder):
    server = await served(folder, "a=random:0")
    with pytest.raises(VariantNotFound) as unknown:
        await server.control.load("cats")
    text = str(unknown.value)
    assert text.startswith("name: no variant 'cats' can be loaded here; there are: IMAGENET1K_")
    assert text.endswith(", a, x, y")


async def test_replaced_variant_is_not_referenced_once_freed(folder):
    served = serve(folder, f"x={folder}/x")
    await served.control.load_initial()
    old = weakref.ref(served.variants.loaded[0])
    await served.control.load("x", replace=True)
    await until(lambda: gc.collect() is not None and old() is None)


async def test_name_is_removed_with_its_last_variant_in_memory(folder):
    server, removed = await served(folder, "a=random:0"), []
    server.variants.on_removed(removed.append)
    await server.control.load("x")
    old = server.variants.find("x")
    old.acquire()
    await server.control.load("x", replace=True)
    await server.control.unload("x")
    assert (server.variants.draining, removed) == ([old], [])
    old.release()
    await until(lambda: not server.variants.draining)
    assert removed == ["x"]


async def test_name_stays_while_the_replacement_of_its_variant_serves(folder):
    server, removed = await served(folder, "a=random:0"), []
    server.variants.on_removed(removed.append)
    await server.control.load("x")
    await server.control.load("x", replace=True)
    await until(lambda: not server.variants.draining)
    assert removed == []
