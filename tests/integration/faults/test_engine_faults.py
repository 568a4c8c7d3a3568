"""Faults of engine, decoders and event loop, in real processes, and what callers see of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from resnet50_client import (
    AsyncClient,
    InvalidImageError,
    RetryPolicy,
    ServerError,
    UnavailableError,
)
from resnet50_server.batching.variant_health import MIN_NON_FINITE
from resnet50_server.engines.reference_check import fixed_image
from resnet50_server.lifecycle.self_test import self_test
from tests.support import weights
from tests.support.clients import KINDS, Caller, items
from tests.support.faulty_server import MAGENTA, MARK
from tests.support.pictures import PHOTOS, encode, photo_like
from tests.support.scrape import ON, Scrape, fetch, get, scrape
from tests.support.serving import (
    ServerProcess,
    connected,
    server_processes,
    serving,
    until,
)

GOOD = [encode(photo_like(96, 64, seed), "JPEG") for seed in range(8)]
BAD = encode(Image.new("RGB", (64, 64), tuple(MAGENTA.tolist())), "PNG")
MARKED = GOOD[0] + MARK
TIMED = ("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "5")
ONCE = RetryPolicy(attempts=1)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Load:
    """Callers that keep calling: single calls and an ordered stream, of both clients."""

    def __init__(self) -> None:
        self.calls = self.frames = 0
        self.enough = False
        self.tasks: list[asyncio.Task[None]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def on(cls, addresses: list[str]) -> AsyncIterator[Load]:
        """Load servers until the block ends; raises what any call did."""
        load = cls()
        async with contextlib.AsyncExitStack() as stack:
            for kind in KINDS:
                caller = await stack.enter_async_context(Caller(kind, addresses))
                load.tasks += [asyncio.create_task(load.call(caller)) for _ in range(4)]
                load.tasks.append(asyncio.create_task(load.stream(caller)))
            await load.go_on()
            yield load
            await load.go_on()
            load.enough = True
            await asyncio.gather(*load.tasks)

    async def go_on(self) -> None:
        """Wait until as many have been answered again."""
        calls, frames = self.calls + 40, self.frames + 40

        def more() -> bool:
            failed = [one for one in self.tasks if one.done() and one.exception()]
            return bool(failed) or (self.calls >= calls and self.frames >= frames)

        await until(more)

    async def call(self, caller: Caller) -> None:
        while not self.enough:
            await caller.classify(GOOD[0])
            self.calls += 1

    async def stream(self, caller: Caller) -> None:
        def images():
            while not self.enough:
                yield GOOD[1]

        number = 0
        async for answer in items(caller, "classify_stream", images()):
            assert answer.error is None, answer
            assert answer.frame_id == number
            number, self.frames = number + 1, self.frames + 1


# A device that hangs


async def test_hung_engine_refuses_calls_and_ends_the_process():
    with server_processes() as start:
        hanging = start(*TIMED, "--engine-timeout-s", "0.5", fault="engine-hangs")
        other = start(*TIMED)
        addresses = [one.wait_until_listening() for one in (hanging, other)]
        async with (
            grpc.aio.insecure_channel(addresses[0]) as channel,
            AsyncClient(addresses[0], retry=ONCE) as direct,
            Load.on(addresses),
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            with pytest.raises(UnavailableError, match="lost its engine; call another one"):
                await direct.classify(BAD)
            assert (await watch.read()).status == NOT_SERVING
            status, errors = await asyncio.to_thread(hanging.wait_until_ended)
        assert other.terminate()[0] == 0
    assert status == 71, errors
    assert "has not returned from the engine" in errors
    assert "hang_here" in errors  # where it hangs


async def test_hung_engine_exits_with_its_status_whatever_else_hangs():
    flags = ("--engine-timeout-s", "0.5", "--drain-timeout-s", "0.5")
    with server_processes() as start:
        process = start(*TIMED, *flags, fault="engine-and-stop-hang")
        address = process.wait_until_listening()
        async with AsyncClient(address, retry=ONCE) as client:
            with pytest.raises(UnavailableError):
                await client.classify(BAD)
        status, errors = await asyncio.to_thread(process.wait_until_ended)
    assert status == 71, errors
    assert "the server did not stop within 1 s" in errors


@pytest.mark.parametrize("fault", ["loop-hangs", "gil-is-kept"])
async def test_blocked_event_loop_ends_the_process(fault):
    with server_processes() as start:
        process = start(*TIMED, fault=fault)
        address = process.wait_until_listening()
        async with AsyncClient(address, retry=ONCE) as client:
            await client.classify(GOOD[0])
            with pytest.raises(UnavailableError):
                await client.classify(MARKED)
        status, errors = await asyncio.to_thread(process.wait_until_ended)
    assert status == 1, errors
    assert "Timeout (0:00:02)!" in errors
    assert "in infer_or_not" in errors


# A decoder that hangs, or crashes


async def test_decoders_that_hang_are_replaced_until_none_is_left():
    with server_processes() as start:
        process = start(
            *TIMED,
            *("--decode-threads", "1", "--decode-timeout-s", "0.3"),
            *("--metrics-listen", "127.0.0.1:0"),
            fault="decoder-hangs",
        )
        address = process.wait_until_listening()
        metrics = process.process.stdout.readline().removeprefix("metrics on ").strip()
        async with AsyncClient(address, retry=ONCE) as client:
            for _ in range(4):
                with pytest.raises(InvalidImageError, match="decode_timeout_s"):
                    await client.classify(MARKED)
                await client.classify(GOOD[0])
            _, text = await asyncio.to_thread(fetch, f"{metrics}/metrics")
            assert Scrape(text).one("resnet50_decode_threads_stuck") == 4
            with pytest.raises(InvalidImageError, match="decode_timeout_s"):
                await client.classify(MARKED)
            with pytest.raises(UnavailableError):
                await client.classify(GOOD[0])
        status, errors = await asyncio.to_thread(process.wait_until_ended)
    assert status == 72, errors
    assert "all 5 decode threads, 4 spare ones included, have been stuck" in errors
    assert errors.count("in hang_here") == 5


async def test_crash_of_a_server_fails_no_call_and_says_where_it_was():
    with server_processes() as start:
        crashing, other = start(*TIMED), start(*TIMED)
        addresses = [one.wait_until_listening() for one in (crashing, other)]
        async with Load.on(addresses):
            os.kill(crashing.process.pid, signal.SIGSEGV)
            status, errors = await asyncio.to_thread(crashing.wait_until_ended)
        assert other.terminate()[0] == 0
    assert status == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in errors
    assert "Thread 0x" in errors


RAISED = [
    MemoryError("no room"),
    RecursionError("too deep"),
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    GeneratorExit(),
    StopIteration(),
    OSError("gone"),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda one: type(one).__name__)
async def test_whatever_a_decoder_raises_fails_its_image_alone(raised, monkeypatch):
    import resnet50_server.inference.pipeline

    decode = resnet50_server.inference.pipeline.decode

    def decode_or_raise(source, *arguments, **options):
        if source.endswith(MARK):
            raise raised
        return decode(source, *arguments, **options)

    monkeypatch.setattr(resnet50_server.inference.pipeline, "decode", decode_or_raise)
    async with (
        serving(engine="timed", timed_alpha_ms=0.0, timed_beta_ms=0.0) as server,
        AsyncClient(server.addresses[0], retry=ONCE) as client,
    ):
        images = [GOOD[0], MARKED, GOOD[1], MARKED, GOOD[2]]
        calls = await asyncio.gather(
            *(client.classify(image) for image in images), return_exceptions=True
        )
        answers = [answer async for answer in client.classify_stream(images)]
    for failed in ([type(call) for call in calls], [type(answer.error) for answer in answers]):
        assert [kind is ServerError for kind in failed] == [False, True, False, True, False]


# Batches that fail


async def test_engine_that_fails_once_fails_no_call():
    with server_processes() as start:
        process = start(*TIMED, "--timed-alpha-ms", "50", fault="engine-fails-once")
        async with AsyncClient(process.wait_until_listening(), retry=ONCE) as client:
            await asyncio.gather(*(client.classify(image) for image in [*GOOD, BAD, *GOOD]))
        status, errors = process.terminate()
    assert status == 0, errors
    assert "(attempt 1 of 2)" in errors
    assert "(attempt 2 of 2)" not in errors


async def test_batches_that_fail_do_not_end_a_server_that_computes():
    """The engine passes its self-tests."""
    with server_processes() as start:
        process = start(*TIMED, fault="engine-fails")
        async with AsyncClient(process.wait_until_listening(), retry=ONCE) as client:
            for _ in range(12):
                with pytest.raises(ServerError):
                    await client.classify(BAD)
            await client.classify(GOOD[0])
            frames = [one async for one in client.classify_stream([*GOOD, BAD], window=1)]
        assert [type(one.error) for one in frames] == [type(None)] * len(GOOD) + [ServerError]
        status, errors = process.terminate()
    assert status == 0, errors


# Memory


def size_of(process: ServerProcess) -> int:
    """Return a process's address space in bytes."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(re.search(r"VmSize:\s+(\d+) kB", status)[1]) * 1024


async def test_batch_out_of_memory_is_retried_in_halves(tmp_path):
    folder = weights.custom_variant(tmp_path / "v", weights.calm(categories=10))
    pictures = [np.asarray(photo_like(224, 224, seed)) for seed in range(4)]
    with server_processes() as start:
        process = start(
            *("--variants", f"v={folder}", "--engine", "torch", "--device", "cpu"),
            *("--max-batch-size", "64", "--metrics-listen", "127.0.0.1:0"),
        )
        address = process.wait_until_listening()
        metrics = process.process.stdout.readline().removeprefix("metrics on ").strip()

        async def scraped() -> Scrape:
            return Scrape((await asyncio.to_thread(fetch, f"{metrics}/metrics"))[1])

        async with AsyncClient(address, timeout_s=300.0) as client:
            alone = [await client.classify(one, pixel_format="RGB") for one in pictures]
            # 39 images take some 250 MB beside the weights, of which there is not a half now.
            limit = size_of(process) + 100 * 2**20
            resource.prlimit(process.process.pid, resource.RLIMIT_AS, (limit, -1))
            together = await asyncio.gather(
                *(client.classify(pictures[number % 4]) for number in range(40))
            )
            # Before it is asked: it answers in a thread, whose stack needs memory, too.
            resource.prlimit(process.process.pid, resource.RLIMIT_AS, (-1, -1))
            short = await scraped()
        status, errors = process.terminate()
    for number, result in enumerate(together):
        expected = alone[number % 4]
        assert [one.index for one in result] == [one.index for one in expected]
        for one, other in zip(result, expected, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-4)
    assert short.one("resnet50_batches_out_of_memory_total", variant="v") >= 1
    assert short.one("resnet50_batch_size_limit", variant="v") < 64
    assert short.one("resnet50_images_total", variant="v", outcome="refused") == 0
    assert status == 0, errors
    assert errors.count("has no memory for a batch of") == 1


# Non-finite results


def overflowing(folder: Path) -> Path:
    """Write a variant whose result for a white image is Inf, and finite for photos.

    Its head sums up those numbers of the embedding that are larger for white than for others, times
    a weight that float32 holds: for white the sum is beyond float32.
    """
    state = weights.calm(categories=10)
    mean, std = (torch.tensor(weights.TRANSFORM[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pictures = [Image.open(path).convert("RGB").resize((64, 64)) for path in PHOTOS]
    white, grey = (np.full((64, 64, 3), level, np.uint8) for level in (255, 128))
    images = np.stack([white, grey, fixed_image((64, 64)), *map(np.asarray, pictures)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
    embeddings = weights.run(weights.torchvision_model(state), (pixels - mean) / std)[1]
    largest = embeddings[1:].max(dim=0).values
    summed = (embeddings[0] - largest).argsort(descending=True)[:20]
    sums = embeddings[:, summed].sum(dim=1)
    threshold = float(sums[0] + sums[1:].max()) / 2
    assert sums[0] > 1.1 * threshold > 1.2 * sums[1:].max()
    head = torch.zeros_like(state["fc.weight"])
    head[0, summed] = torch.finfo(torch.float32).max / threshold
    state = state | {"fc.weight": head, "fc.bias": torch.zeros_like(state["fc.bias"])}
    transform = weights.TRANSFORM | {"resize": 64, "crop": 64}
    return weights.custom_variant(folder, state, transform=transform)


async def test_variant_that_overflows_is_out_of_service(tmp_path, caplog):
    """It passes every check at its loading; the rest of the behaviour is `test_sick_variants`'s."""
    photo, white = PHOTOS[0].read_bytes(), encode(Image.new("RGB", (64, 64), "white"))
    async with (
        serving(
            variants=[f"v={overflowing(tmp_path / 'v')}"], engine="torch", device="cpu", **ON
        ) as server,
        connected(server) as channel,
        AsyncClient(server.addresses[0], retry=ONCE) as client,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await client.classify(photo)
        for _ in range(MIN_NON_FINITE):
            assert await get(server, "/readyz") == (200, "ok\n")
            with pytest.raises(ServerError):
                await client.classify(white)
        problem = f"{MIN_NON_FINITE} of its last {MIN_NON_FINITE + 1} results have NaN or Inf"
        assert (await watch.read()).status == NOT_SERVING
        assert await get(server, "/readyz") == (503, f"variant v, the default: {problem}\n")
        assert (await get(server, "/livez"))[0] == 200
        with pytest.raises(UnavailableError, match=f"variant v is out of service: {problem}"):
            await client.classify(photo)
        found = await scrape(server)
        assert found.one("resnet50_non_finite_outputs_total", variant="v") == MIN_NON_FINITE
        assert "load the variant again (LoadVariant with replace)" in caplog.text
        # The fixed image does not overflow, so that the server's own test takes it in again.
        (loaded,) = server.parts.variants.loaded
        assert await self_test(loaded, loaded.reference) is None
