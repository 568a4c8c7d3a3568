"""Variants loaded and unloaded while serving: by whom, from where, and the calls meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resnet50.v1 import (
    inference_pb2,
    variant_pb2,
)
from resnet50_client._aio_status import keep_status
from resnet50_server.lifecycle.loader import load_variant
from resnet50_server.lifecycle.spec_source import SpecSource
from resnet50_server.variants.directory import VariantsDirectory
from tests.support.administering import (
    APP,
    DRAINING,
    FAILED,
    IMAGE,
    LOADING,
    READY,
    administrator,
    describe,
    refused,
)
from tests.support.scrape import ON, scrape
from tests.support.serving import connected, engines_of, queues_of, until, until_result
from tests.support.weights import calm, custom_variant


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of variants, of which the null engine reads the descriptions only."""
    folder = tmp_path / "variants"
    for name in ("digits", "pets"):
        describe(folder / name)
    return folder


async def test_variant_is_loaded_from_the_folder_and_answers(folder, tmp_path):
    async with administrator(folder) as admin:
        loaded = await admin.load("digits")
        assert (loaded.name, loaded.state, loaded.category_count) == ("digits", READY, 2)
        assert (await admin.classify("digits")).variant.digest == loaded.digest
        variants = admin.server.parts.variants
        paused = variants.loaded_variant(variants.resolve("digits", "name"))
        # Unloading waits for calls that use it, and no longer.
        await until(lambda: not paused.requests)
        assert await admin.states() == {"IMAGENET1K_V2": READY, "digits": READY}


async def test_real_weights_are_loaded_beside_those_that_serve(tmp_path):
    folder = tmp_path / "variants"
    custom_variant(folder / "mine", calm(1, 10))
    options = {"engine": "torch", "variants": ["untrained=random:0"], "max_batch_size": 1}
    async with administrator(folder, **options) as admin:
        loaded = await admin.load("mine")
        assert (loaded.engine, loaded.trained, loaded.category_count) == ("torch", True, 10)
        reply = await admin.classify("mine")
        assert (reply.variant.name, reply.variant.digest) == ("mine", loaded.digest)
        await admin.unload("mine")
        assert (await admin.classify("")).variant.name == "untrained"


@pytest.mark.parametrize("call", ["load", "unload"])
async def test_token_without_admin_changes_nothing(folder, tmp_path, call):
    async with administrator(folder) as admin:
        with refused("PERMISSION_DENIED", "admin"):
            await getattr(admin, call)("digits", token=APP)
        assert await admin.states() == {"IMAGENET1K_V2": READY}


@pytest.mark.parametrize("call", ["load", "unload"])
async def test_server_without_a_folder_changes_no_variants(tmp_path, call):
    async with administrator(tmp_path / "none", variants_dir=None) as admin:
        with refused("UNIMPLEMENTED", "--variants-dir"):
            await getattr(admin, call)("digits")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        ".",
        "../variants/digits",
        "/etc",
        "digits/",
        "digits/../pets",
        "digits\x00",
        "digits\n",
        "~root",
        "C:\\digits",
        "random:0",
        "x" * 65,
    ],
)
async def test_paths_are_not_names(folder, tmp_path, name):
    async with administrator(folder) as admin:
        with refused("INVALID_ARGUMENT", "name: must be the name of a directory"):
            await admin.load(name)


async def test_unknown_name_is_not_found_and_lists_the_directories(folder, tmp_path):
    (folder / "a file").write_text("")
    async with administrator(folder) as admin:
        with refused("NOT_FOUND", "digits, pets"):
            await admin.load("cats")


@pytest.mark.parametrize("what", ["folder", "variant.json", "weights.pth", "weights.safetensors"])
async def test_links_do_not_lead_out_of_the_folder(folder, tmp_path, what):
    describe(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / what).touch()
    if what == "folder":
        (folder / "linked").symlink_to(tmp_path / "elsewhere")
    else:
        describe(folder / "linked")
        (folder / "linked" / what).unlink(missing_ok=True)
        (folder / "linked" / what).symlink_to(tmp_path / "elsewhere" / what)
    async with administrator(folder) as admin:
        with refused("INVALID_ARGUMENT", "leads out of variants_dir"):
            await admin.load("linked")


async def test_links_within_the_folder_are_followed(folder, tmp_path):
    # As Kubernetes mounts things.
    (folder / "current").symlink_to(folder / "digits")
    async with administrator(folder) as admin:
        assert (await admin.load("current")).name == "current"


async def test_failed_load_changes_nothing_and_gives_the_reason(folder, tmp_path):
    (folder / "digits" / "variant.json").write_text("{}")
    describe(folder / "bare")  # no weights
    options = {"engine": "torch", "variants": ["untrained=random:0"]}
    async with administrator(folder, **options) as admin:
        with refused("FAILED_PRECONDITION", "categories"):
            await admin.load("digits")
        with refused("FAILED_PRECONDITION", "weights"):
            await admin.load("bare")
        assert await admin.states() == {"untrained": READY, "digits": FAILED, "bare": FAILED}
        with refused("NOT_FOUND", "untrained"):
            await admin.classify("bare")


async def test_spec_with_many_errors_is_reported_in_a_few_lines(folder, caplog):
    describe(folder / "pets", categories=range(30_000))
    (folder / "digits" / "variant.json").write_text(
        json.dumps({f"{number:060}": 0 for number in range(50_000)})
    )
    async with administrator(folder) as admin:
        with refused(
            "FAILED_PRECONDITION", "categories: 0: is not a string; 1: is not a string; 2: is not"
        ):
            await admin.load("pets")
        with refused("FAILED_PRECONDITION", "and 49997 more"):
            await admin.load("digits")
        request = variant_pb2.ListVariantsRequest()
        listed = await admin.variants.ListVariants(request, metadata=admin.token())
    failures = {one.name: one.last_failure for one in listed.variants}
    assert "and 29997 more" in failures["pets"]
    assert max(map(len, failures.values())) < 2048
    assert max(map(len, caplog.messages)) < 4096


async def test_a_description_that_would_steer_a_terminal_is_refused(folder):
    describe(folder / "pets", categories=["cat", "\x1b[2J\r\nfake: cat 99%"])
    async with administrator(folder) as admin:
        with refused("FAILED_PRECONDITION", r"categories: 1: '\x1b[2J\r\nfake: cat 99%' has char"):
            await admin.load("pets")


@pytest.mark.parametrize("what", ["folder", "variant.json", "weights.safetensors"])
async def test_a_link_to_itself_is_refused(folder, caplog, what):
    path = folder / "loop" if what == "folder" else folder / "loop" / what
    if what != "folder":
        describe(folder / "loop")
        path.unlink(missing_ok=True)
    path.symlink_to(path)
    async with administrator(folder) as admin:
        with refused("FAILED_PRECONDITION", f"name: loop: {path.name} is a link that leads to its"):
            await admin.load("loop")
    assert "Traceback" not in caplog.text


async def test_more_categories_than_one_reply_has_are_refused(folder):
    describe(folder / "pets", categories=[str(number) for number in range(1001)])
    async with administrator(folder) as admin:
        await admin.load("pets")
        options = inference_pb2.ClassifyOptions(variant="pets", top_k=1000)
        request = inference_pb2.ClassifyRequest(options=options, image=IMAGE)
        reply = await admin.inference.Classify(request, metadata=admin.token())
        assert len(reply.classification.categories) == 1000
        request.options.top_k = 1001
        with refused("INVALID_ARGUMENT", "options.top_k: is 1001, at most 1000 categories are"):
            await admin.inference.Classify(request, metadata=admin.token())


async def test_variant_that_is_served_is_not_loaded_again(folder, tmp_path):
    describe(folder / "IMAGENET1K_V2")
    async with administrator(folder) as admin:
        await admin.load("digits")
        with refused("FAILED_PRECONDITION", "served already"):
            await admin.load("digits")
        with refused("FAILED_PRECONDITION", "served already"):
            await admin.load("IMAGENET1K_V2")
        assert await admin.states() == {"IMAGENET1K_V2": READY, "digits": READY}


async def test_default_and_unknown_variants_are_not_unloaded(folder, tmp_path):
    async with administrator(folder) as admin:
        with refused("FAILED_PRECONDITION", "SetDefaultVariant"):
            await admin.unload("DEFAULT")
        with refused("NOT_FOUND", "IMAGENET1K_V2"):
            await admin.unload("digits")
        with refused("INVALID_ARGUMENT", "is empty"):
            await admin.unload("")


class Gate:
    """Holds an engine until it is opened."""

    def __init__(self, engine, loop: asyncio.AbstractEventLoop) -> None:
        self.entered = asyncio.Event()
        self._opened = threading.Event()
        self.closed = False
        run, close = engine.run, engine.close

        def paused(*arguments):
            loop.call_soon_threadsafe(self.entered.set)
            self._opened.wait(60)
            assert not self.closed
            return run(*arguments)

        def noted():
            self.closed = True
            close()

        engine.run, engine.close = paused, noted

    def open(self) -> None:
        self._opened.set()


async def test_unload_answers_calls_ends_streams_then_frees_engine(folder, tmp_path):
    async with administrator(folder, max_batch_size=1, **ON) as admin:
        await admin.load("digits")
        engine = engines_of(admin.server)[1]
        gate = Gate(engine, asyncio.get_running_loop())
        options = inference_pb2.ClassifyOptions(variant="digits")
        stream = keep_status(admin.inference.ClassifyStream(metadata=admin.token()))
        config = inference_pb2.ClassifyStreamConfig(options=options)
        await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
        frame = inference_pb2.Frame(frame_id=7, image=IMAGE)
        await stream.write(inference_pb2.ClassifyStreamRequest(frame=frame))
        await gate.entered.wait()
        waiting = asyncio.ensure_future(admin.classify("digits"))
        await until(lambda: queues_of(admin.server)[1].waiting)
        unloading = asyncio.create_task(admin.unload("digits"))
        await until_result(admin.states, lambda states: states["digits"] == DRAINING)
        with refused("NOT_FOUND", "IMAGENET1K_V2"):
            await admin.classify("digits")
        with refused("FAILED_PRECONDITION", "another variant"):
            await admin.load("pets")
        assert not gate.closed
        gate.open()
        assert (await waiting).variant.name == "digits"
        assert (await stream.read()).frame_id == 7
        with refused("UNAVAILABLE", "digits is being unloaded; frame 7 was the last one"):
            await stream.read()
        assert (await unloading).state == DRAINING
        assert gate.closed
        assert len(queues_of(admin.server)) == 1
        shed = (await scrape(admin.server)).of("resnet50_shed_total", "limit")
        assert shed == {"unloading": 1}
        # And back again.
        assert (await admin.load("digits")).state == READY
        assert (await admin.classify("digits")).variant.name == "digits"


async def test_loaded_variant_has_zeros_before_anything_happens(folder, tmp_path):
    async with administrator(folder, **ON) as admin:
        await admin.load("digits")
        found = await scrape(admin.server)
        for outcome in ("answered", "refused", "dropped"):
            assert found.one("resnet50_images_total", variant="digits", outcome=outcome) == 0


async def test_server_answers_while_the_disk_of_its_variants_hangs(folder, monkeypatch):
    asked, answers = threading.Event(), threading.Event()
    find = VariantsDirectory.find

    def hang(directory: VariantsDirectory, name: str) -> Path:
        asked.set()
        answers.wait(60)
        return find(directory, name)

    monkeypatch.setattr(VariantsDirectory, "find", hang)
    monkeypatch.setattr("resnet50_server.parts.SpecSource", partial(SpecSource, timeout_s=0.5))
    async with administrator(folder) as admin, connected(admin.server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            loading = asyncio.ensure_future(admin.load("digits"))
            await until(asked.is_set)
            with refused("UNAVAILABLE", "did not answer within 0.5 s: its disk hangs"):
                while True:
                    await admin.classify("")
                    assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
                    if loading.done():
                        await loading
            # No request waits for a thread that is waiting already.
            with refused("UNAVAILABLE", f"variants_dir: {folder} did not answer"):
                await admin.load("pets")
            assert await admin.states() == {"IMAGENET1K_V2": READY}
        finally:
            answers.set()
        assert (await admin.load("digits")).name == "digits"


async def test_load_goes_on_though_its_caller_gave_up(folder, tmp_path, monkeypatch):
    entered, opened = asyncio.Event(), asyncio.Event()

    async def slow(settings, devices, spec, *arguments):
        if spec.name == "digits":
            entered.set()
            await opened.wait()
        return await load_variant(settings, devices, spec, *arguments)

    monkeypatch.setattr("resnet50_server.parts.load_variant", slow)
    async with administrator(folder) as admin:
        request = variant_pb2.LoadVariantRequest(name="digits")
        call = admin.variants.LoadVariant(request, metadata=admin.token())
        loading = asyncio.ensure_future(call)
        await entered.wait()
        assert await admin.states() == {"IMAGENET1K_V2": READY, "digits": LOADING}
        with refused("UNAVAILABLE", "still being loaded; wait until ListVariants shows it"):
            await admin.classify("digits")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        opened.set()
        await until_result(admin.states, lambda states: states["digits"] == READY)
