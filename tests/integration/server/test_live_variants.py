"""Variants that change while the server answers: replaced, made the default, evicted."""

from __future__ import annotations

import asyncio
import shutil
import threading
from functools import partial

import grpc
import pytest
from torchvision.models import ResNet50_Weights

from resnet50.v1 import inference_pb2, inference_pb2_grpc, variant_pb2
from resnet50_server.lifecycle import loader
from resnet50_server.lifecycle.loader import load_variant
from tests.support.administering import (
    APP,
    DRAINING,
    LOADING,
    READY,
    administrator,
    describe,
    refused,
)
from tests.support.live_variants import (
    PICTURES,
    REAL,
    ask,
    listed,
    open_stream,
    put,
    replace,
    send,
    set_default,
    told,
)
from tests.support.pictures import encode, photo_like
from tests.support.serving import (
    DECODING,
    connected,
    engines_of,
    queues_of,
    serving,
    until,
    until_result,
)
from tests.support.weights import calm, publish


@pytest.fixture
def folder(tmp_path):
    """A folder of variants, of which the null engine reads the descriptions only."""
    describe(tmp_path / "variants" / "digits")
    return tmp_path / "variants"


# Replacing


async def test_replies_across_a_swap_carry_the_right_digest(tmp_path):
    """Under load: unary calls and a stream; no call fails, no number is another weights'."""
    folder = tmp_path / "variants"
    put(folder, "mine", 1)
    async with administrator(folder, **REAL) as admin:
        first = await admin.load("mine")
        expected = {first.digest: [told(await ask(admin, one, "mine")) for one in PICTURES]}
        seen: list[tuple[str, int, tuple[int, float]]] = []
        stopped = asyncio.Event()

        async def call() -> None:
            while not stopped.is_set():
                for number, picture in enumerate(PICTURES):
                    reply = await ask(admin, picture, "mine")
                    seen.append((reply.variant.digest, number, told(reply)))

        async def watch() -> None:
            stream, frame_id = await open_stream(admin, "mine"), 0
            while not stopped.is_set():
                await send(stream, frame_id, PICTURES[frame_id % 3])
                reply = await stream.read()
                assert (reply.frame_id, reply.HasField("error")) == (frame_id, False), reply
                seen.append((reply.variant.digest, frame_id % 3, told(reply)))
                frame_id += 1
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF

        callers = [asyncio.create_task(one) for one in (call(), call(), watch())]
        for seed in (2, 1, 2):
            put(folder, "mine", seed)
            before = len(seen)
            swapped = await replace(admin, "mine")
            assert swapped.replaced_digest != swapped.variant.digest
            digest = swapped.variant.digest
            expected[digest] = [told(await ask(admin, one, "mine")) for one in PICTURES]
            await until(lambda digest=digest, n=before: any(one[0] == digest for one in seen[n:]))
        stopped.set()
        await asyncio.gather(*callers)
        assert len(expected) == 2
        assert len({tuple(answers) for answers in expected.values()}) == 2
        for digest, number, answer in seen:
            assert answer[0] == expected[digest][number][0]
            assert answer[1] == pytest.approx(expected[digest][number][1], abs=2e-3)
        # The replaced variant is freed by itself.
        await until_result(lambda: listed(admin), lambda variants: len(variants) <= 2)
        assert len(engines_of(admin.server)) == 2


async def test_old_weights_answer_their_requests_then_close(tmp_path):
    folder = tmp_path / "variants"
    put(folder, "mine", 1)
    # Three engine threads: two are held by the old weights, the other one loads the new ones.
    options = REAL | {"instances": 3, "engine_threads": 1}
    async with administrator(folder, **options) as admin:
        old = await admin.load("mine")
        engine, opened, closed = engines_of(admin.server)[1], threading.Event(), []
        run, close = engine.run, engine.close
        engine.run = lambda *arguments: (opened.wait(60), run(*arguments))[1]
        engine.close = lambda: (close(), closed.append(True))
        try:
            stream = await open_stream(admin, "mine")
            await send(stream, 1)
            waiting = asyncio.ensure_future(ask(admin, PICTURES[0], "mine"))
            loaded = admin.server.parts.variants.find("mine")
            await until(lambda: loaded.requests == 2 and not loaded.queue.waiting)
            put(folder, "mine", 2)
            new = (await replace(admin, "mine")).variant
            shown = [(one.digest, one.state, one.requests) for one in (await listed(admin))[1:]]
            assert shown == [(new.digest, READY, 0), (old.digest, DRAINING, 2)]
            assert (await ask(admin, PICTURES[0], "mine")).variant.digest == new.digest
            await send(stream, 2)
            await until(lambda: loaded.latest().requests == 0)
            assert not closed
        finally:
            opened.set()
        assert (await waiting).variant.digest == old.digest
        replies = [await stream.read() for _ in range(2)]
        assert [(one.frame_id, one.variant.digest) for one in replies] == [
            (1, old.digest),
            (2, new.digest),
        ]
        await until(lambda: closed)
        assert loaded.requests == 0
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


async def test_stream_of_replaced_weights_ends_with_the_new_ones(folder):
    async with administrator(folder) as admin:
        await admin.load("digits")
        stream = await open_stream(admin, "digits")
        await replace(admin, "digits")
        await send(stream, 1)
        assert (await stream.read()).frame_id == 1
        await admin.unload("digits")
        with refused("UNAVAILABLE", "variant digits is being unloaded"):
            await asyncio.wait_for(stream.read(), 30)


async def test_upload_begun_before_a_swap_gets_the_new_weights(tmp_path):
    folder = tmp_path / "variants"
    put(folder, "mine", 1)
    content = encode(photo_like(80, 70, 0))
    async with administrator(folder, **REAL) as admin:
        old = await admin.load("mine")
        upload = await begin_upload(admin, content, "mine")
        put(folder, "mine", 2)
        new = (await replace(admin, "mine")).variant
        # The old weights do not wait for clients that still send.
        await until_result(lambda: listed(admin), lambda variants: len(variants) <= 2)
        await upload.write(inference_pb2.ClassifyUploadRequest(chunk=content[50:]))
        await upload.done_writing()
        reply = await upload
        assert reply.variant.digest == new.digest != old.digest


async def begin_upload(admin, content: bytes, variant: str):
    """Send half an image."""
    upload = admin.inference.ClassifyUpload(metadata=admin.token())
    options = inference_pb2.ClassifyUploadOptions(
        options=inference_pb2.ClassifyOptions(variant=variant)
    )
    await upload.write(inference_pb2.ClassifyUploadRequest(options=options))
    await upload.write(inference_pb2.ClassifyUploadRequest(chunk=content[:50]))
    await until(lambda: admin.server.snapshot().bytes == 50)
    return upload


async def test_arriving_upload_is_answered_before_its_unload(folder):
    content = encode(photo_like(80, 70, 0))
    async with administrator(folder) as admin:
        await admin.load("digits")
        upload = await begin_upload(admin, content, "")
        loaded = admin.server.parts.variants.find("")
        await set_default(admin, "digits")
        unloading = asyncio.create_task(admin.unload("IMAGENET1K_V2"))
        await until(lambda: loaded.retired)
        await upload.write(inference_pb2.ClassifyUploadRequest(chunk=content[50:]))
        await upload.done_writing()
        assert (await upload).variant.name == "IMAGENET1K_V2"
        await unloading
        assert not loaded.uploads and not loaded.requests
        assert await admin.states() == {"digits": READY}


async def test_slow_upload_is_told_that_its_variant_is_unloaded(folder):
    content = encode(photo_like(80, 70, 0))
    async with administrator(folder, drain_timeout_s=0.1) as admin:
        await admin.load("digits")
        upload = await begin_upload(admin, content, "digits")
        await admin.unload("digits")
        await upload.write(inference_pb2.ClassifyUploadRequest(chunk=content[50:]))
        await upload.done_writing()
        with refused("UNAVAILABLE", "variant digits is being unloaded"):
            await upload


async def test_options_unfit_for_new_weights_fail_frame_by_frame(folder, tmp_path):
    async with administrator(folder) as admin:
        await admin.load("digits")
        stream = admin.inference.ClassifyStream(metadata=admin.token())
        options = inference_pb2.ClassifyOptions(variant="digits", top_k=2)
        config = inference_pb2.ClassifyStreamConfig(options=options)
        await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
        await send(stream, 1)
        assert not (await stream.read()).HasField("error")
        shutil.rmtree(folder / "digits")
        describe(folder / "digits", categories=["only"])
        await replace(admin, "digits")
        await send(stream, 2)
        error = (await stream.read()).error
        assert (error.code, "options.top_k: is 2" in error.message) == (3, True)


async def test_failed_replacement_changes_nothing_and_is_shown(tmp_path):
    folder = tmp_path / "variants"
    directory = put(folder, "mine", 1)
    async with administrator(folder, **REAL) as admin:
        before = await admin.load("mine")
        whole = (directory / "weights.pth").read_bytes()
        (directory / "weights.pth").write_bytes(whole[: len(whole) // 2])
        with refused("FAILED_PRECONDITION", "weights.pth was refused: it is broken"):
            await replace(admin, "mine")
        (shown,) = [one for one in await listed(admin) if one.name == "mine"]
        assert (shown.state, shown.digest) == (READY, before.digest)
        assert "it is broken" in shown.last_failure
        assert (await ask(admin, PICTURES[0], "mine")).variant.digest == before.digest
        (directory / "weights.pth").write_bytes(whole)
        assert (await replace(admin, "mine")).variant.last_failure == ""


async def test_engine_of_wrong_weights_never_answers(tmp_path, monkeypatch):
    folder = tmp_path / "variants"
    put(folder, "mine", 1)
    async with administrator(folder, **REAL) as admin:
        before = await admin.load("mine")
        build_engine, opened, closed = loader.build_engine, [], []

        def other(prepared, settings):
            """Open what a mixed-up graph would be: other weights under the same digest."""
            put(tmp_path / "other", "mine", 2)
            spec = loader.prepare_variant(prepared.spec, settings).spec
            assert spec.name == "mine"
            wrong = put(tmp_path / "other", "mine", 2)
            moved = type(spec)(**vars(spec) | {"directory": wrong})
            built = build_engine(loader.prepare_variant(moved, settings), settings)
            opened.append(built.engine)
            monkeypatch.setattr(built.engine, "close", partial(closed.append, built.engine))
            return built

        monkeypatch.setattr(loader, "build_engine", other)
        with refused("FAILED_PRECONDITION", "the engine's output does not match these weights"):
            await replace(admin, "mine")
        assert closed == opened and len(opened) == 1
        assert (await ask(admin, PICTURES[0], "mine")).variant.digest == before.digest


async def test_stages_of_loading_are_shown(folder, tmp_path, monkeypatch):
    stages: list[tuple[int, str]] = []

    async def slow(settings, devices, spec, loading, make_room):
        if spec.name == "digits":
            for stage in ("waiting", "reading", "evicting", "building", "warming_up", "verifying"):
                loading.stage = stage
                (one,) = [one for one in await listed(admin) if one.name == "digits"]
                assert one.loading.elapsed_s >= 0
                stages.append((one.state, variant_pb2.LoadingStage.Name(one.loading.stage)))
        return await load_variant(settings, devices, spec, loading, make_room)

    monkeypatch.setattr("resnet50_server.parts.load_variant", slow)
    async with administrator(folder) as admin:
        loaded = await admin.load("digits")
        assert not loaded.HasField("loading")
        names = [f"LOADING_STAGE_{stage}" for stage in ["WAITING", "READING", "EVICTING"]]
        names += [f"LOADING_STAGE_{stage}" for stage in ["BUILDING", "WARMING_UP", "VERIFYING"]]
        assert stages == [(LOADING, name) for name in names]
        stages.clear()
        await replace(admin, "digits")
        assert [state for state, _ in stages] == [READY] * 6


async def test_torchvisions_weights_are_loaded_by_their_name(tmp_path, monkeypatch):
    member = ResNet50_Weights.IMAGENET1K_V1
    publish(monkeypatch, member, calm(1), tmp_path / "published")
    options = REAL | {"weights_dir": tmp_path / "weights"}
    async with administrator(tmp_path / "variants", **options) as admin:
        loaded = await admin.load("ResNet50_Weights.IMAGENET1K_V1")
        assert (loaded.name, loaded.category_count) == ("IMAGENET1K_V1", 1000)


async def test_a_variant_of_the_start_is_replaced_from_its_own_folder(tmp_path):
    directory = put(tmp_path / "elsewhere", "mine", 1)
    options = REAL | {"variants": [f"mine={directory}"]}
    async with administrator(tmp_path / "variants", **options) as admin:
        (before,) = await listed(admin)
        put(tmp_path / "elsewhere", "mine", 2)
        swapped = await replace(admin, "mine")
        assert swapped.replaced_digest == before.digest != swapped.variant.digest
        assert swapped.variant.server_default
        assert (await admin.classify("")).variant.digest == swapped.variant.digest


# The default


async def test_another_default_answers_requests_that_name_none(folder, tmp_path):
    async with administrator(folder) as admin:
        await admin.load("digits")
        stream = await open_stream(admin, "")
        await send(stream, 1)
        assert (await stream.read()).variant.name == "IMAGENET1K_V2"

        with refused("PERMISSION_DENIED", "admin"):
            await set_default(admin, "digits", token=APP)
        with refused("NOT_FOUND", "digits"):
            await set_default(admin, "nothing")
        with refused("INVALID_ARGUMENT", "is empty"):
            await set_default(admin, "")
        answer = await set_default(admin, "digits")
        assert (answer.variant.name, answer.previous) == ("digits", "IMAGENET1K_V2")
        assert answer.variant.server_default
        assert [one.name for one in await listed(admin)] == ["digits", "IMAGENET1K_V2"]
        assert (await admin.classify("")).variant.name == "digits"
        # A stream keeps the weights that it began with.
        await send(stream, 2)
        assert (await stream.read()).variant.name == "IMAGENET1K_V2"
        stream.cancel()
        with refused("FAILED_PRECONDITION", "SetDefaultVariant"):
            await admin.unload("digits")
        await admin.unload("DEFAULT")
        assert await admin.states() == {"digits": READY}


async def test_closing_engine_delays_no_batch_of_others():
    """On a GPU it waits while another engine is built, which takes minutes."""
    names = ["IMAGENET1K_V2", "IMAGENET1K_V1"]
    closing, released = threading.Event(), threading.Event()

    def close() -> None:
        closing.set()
        released.wait(60)

    async with serving(**DECODING, variants=names) as server, connected(server) as channel:
        (unloaded,) = [one for one in queues_of(server) if one.name == names[1]]
        unloaded.engine.close = close
        unloading = asyncio.create_task(server.parts.control.unload(names[1]))
        try:
            assert await asyncio.to_thread(closing.wait, 60)
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = inference_pb2.ClassifyRequest(image=PICTURES[0])
            for _ in range(4):  # more than there are engine threads
                await stub.Classify(request, timeout=60)
            assert not unloading.done()
        finally:
            released.set()
        await unloading
