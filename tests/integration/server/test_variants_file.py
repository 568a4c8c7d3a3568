"""Servers that follow a variants file: real processes whose file changes while calls run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from resnet50.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from tests.support.administering import IMAGE, describe, tokens_file
from tests.support.scrape import ON, Scrape, fetch, scrape
from tests.support.serving import (
    DECODING,
    ServerProcess,
    connected,
    queues_of,
    server_processes,
    serving,
    until,
    until_result,
)
from tests.support.traffic import frame, held_back, metadata

FAST = ("--engine", "timed", "--timed-alpha-ms", "1", "--timed-beta-ms", "0")
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
BOTH = f'[[variant]]\nname = "{V2}"\n[[variant]]\nname = "{V1}"\n'
SPLIT = f'[[split]]\nvariant = "{V2}"\ncandidate = "{V1}"\ncanary_percent = 100\n'


def pets(folder: Path) -> str:
    return f'[[variant]]\nname = "pets"\ndirectory = "{folder}/pets"\n'


class Pod:
    """A server process that follows a file, and its client."""

    def __init__(self, path: Path, process: ServerProcess) -> None:
        self.path = path
        self.process = process
        address = process.wait_until_listening()
        stdout = process.process.stdout
        assert stdout is not None
        self.metrics_url = stdout.readline().removeprefix("metrics on ").strip()
        self.channel = grpc.aio.insecure_channel(address)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.variants = variant_pb2_grpc.VariantServiceStub(self.channel)

    async def metrics(self) -> Scrape:
        status, text = await asyncio.to_thread(fetch, f"{self.metrics_url}/metrics")
        assert status == 200
        return Scrape(text)

    async def revision(self) -> str:
        (revision,) = (await self.metrics()).of("resnet50_variants_file_info", "revision")
        return revision

    async def change(self, text: str) -> None:
        """Replace the file, and wait until its content is active."""
        before = await self.revision()
        write(self.path, text)
        await until_result(self.revision, lambda revision: revision != before)

    async def classify(self, variant: str = "", key: str | None = None) -> str:
        """Return the name of the variant that answers."""
        options = inference_pb2.ClassifyOptions(variant=variant, top_k=1)
        request = inference_pb2.ClassifyRequest(options=options, image=IMAGE)
        reply = await self.inference.Classify(request, metadata=metadata(key), timeout=60)
        return reply.variant.name

    async def names(self) -> list[str]:
        """Return the names of the variants, the default first."""
        request = variant_pb2.ListVariantsRequest()
        found = await self.variants.ListVariants(request, metadata=metadata(), timeout=60)
        return [one.name for one in found.variants]

    async def splits(self) -> list[tuple[str, str, float]]:
        request = variant_pb2.ListTrafficSplitsRequest()
        found = await self.variants.ListTrafficSplits(request, metadata=metadata(), timeout=60)
        return [
            (one.split.variant, one.split.candidate, one.split.canary_percent)
            for one in found.reports
        ]


def write(path: Path, text: str) -> None:
    """Replace a file at once."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, path)


@contextlib.asynccontextmanager
async def followed(path: Path, *arguments: str) -> AsyncIterator[Pod]:
    """Run a server process that follows a file."""
    with server_processes() as start:
        options = ("--variants-file", str(path), "--metrics-listen", "127.0.0.1:0")
        options += ("--tokens-file", str(tokens_file(path.parent)))
        pod = Pod(path, start(*options, *FAST, *arguments))
        try:
            yield pod
        finally:
            await pod.channel.close()


@contextlib.asynccontextmanager
async def calling(pod: Pod) -> AsyncIterator[list[str]]:
    """Call a server all the time, in several ways; each call has to succeed.

    Yields the names of the variants that have answered.
    """
    stopped, answered = asyncio.Event(), []

    async def call(variant: str) -> None:
        while not stopped.is_set():
            answered.append(await pod.classify(variant))

    async def stream() -> None:
        opened = pod.inference.ClassifyStream(metadata=metadata())
        options = inference_pb2.ClassifyOptions(variant=V2, top_k=1)
        config = inference_pb2.ClassifyStreamConfig(options=options)
        await opened.write(inference_pb2.ClassifyStreamRequest(config=config))
        number = 0
        while not stopped.is_set():
            await opened.write(frame(number, IMAGE.encoded))
            reply = await opened.read()
            assert (reply.frame_id, reply.HasField("error")) == (number, False), reply
            number += 1
        await opened.done_writing()
        assert await opened.read() is grpc.aio.EOF

    callers = [asyncio.create_task(one) for one in (call(""), call(""), call(V2), stream())]
    try:
        yield answered
        # Calls of each kind after the last change.
        before = len(answered)
        await until(lambda: len(answered) > before + 20 or any(one.done() for one in callers))
    finally:
        stopped.set()
        await asyncio.gather(*callers)


async def test_server_follows_its_file_while_calls_run(tmp_path):
    describe(tmp_path / "pets")
    write(path := tmp_path / "variants.toml", BOTH)
    async with followed(path) as pod:
        assert (await pod.names(), await pod.splits()) == ([V2, V1], [])
        async with calling(pod) as answered:
            await pod.change(BOTH + pets(tmp_path))
            assert await pod.names() == [V2, V1, "pets"]
            await pod.change('default = "pets"\n' + BOTH + pets(tmp_path))
            await until(lambda: "pets" in answered)
            await pod.change(BOTH + SPLIT)
            await until_result(pod.names, lambda names: names == [V2, V1])
            assert await pod.splits() == [(V2, V1, 100.0)]
            assert await pod.classify() == V1
            # A broken change: the old state stays.
            write(path, BOTH + SPLIT.replace("candidate", "canidate"))
            await until_result(
                pod.metrics, lambda found: found.one("resnet50_variants_file_refused") == 1
            )
            assert await pod.classify() == V1
            await pod.change(BOTH)
            found = await pod.metrics()
            assert found.one("resnet50_variants_file_refused") == 0
            assert found.of("resnet50_variants_file_changes_total", "outcome") == {
                "applied": 4,
                "refused": 1,
            }
            assert await pod.classify() == V2
        status, log = await asyncio.to_thread(pod.process.terminate)
    assert status == 0, log
    wrong = [line for line in log.splitlines() if "canidate" in line]
    assert len(wrong) == 1
    assert "line 7: split 1: canidate: is unknown; known are variant, candidate" in wrong[0]
    assert f"default {V2}; splits {V2} → {V1}" in log


async def test_split_survives_a_restart(tmp_path):
    write(path := tmp_path / "variants.toml", f'default = "{V1}"\n' + BOTH + SPLIT)
    for _ in range(2):
        async with followed(path) as pod:
            assert await pod.names() == [V1, V2]
            assert await pod.splits() == [(V2, V1, 100.0)]
            assert await pod.classify(V2) == V1
            await asyncio.to_thread(pod.process.terminate)


async def test_configmap_whose_link_is_swapped_is_followed(tmp_path):
    mount = tmp_path / "mount"

    def publish(number: int, text: str) -> None:
        """Do as the kubelet: a new directory, and a link to it that replaces the old one."""
        (folder := mount / f"..2026_{number}").mkdir(parents=True)
        (folder / "variants.toml").write_text(text)
        (mount / "..data_tmp").symlink_to(folder.name)
        os.rename(mount / "..data_tmp", mount / "..data")

    publish(1, BOTH)
    (mount / "variants.toml").symlink_to("..data/variants.toml")
    async with followed(mount / "variants.toml") as pod, calling(pod):
        before = await pod.revision()
        publish(2, f'[[variant]]\nname = "{V2}"\n')
        await until_result(pod.revision, lambda revision: revision != before)
        await until_result(pod.names, lambda names: names == [V2])


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("[[variant]]\nnmae = 'a'\n", 2, "line 2: variant 1: nmae: is unknown; known are name,"),
        ("[[variant]]\nname = 'a'\ndirectory = 'gone'\n", 1, "line 3: variant 1: directory: a="),
        (None, 2, "cannot be read: No such file or directory"),
    ],
)
def test_bad_file_ends_the_start_with_its_line(tmp_path, text, status, error):
    path = tmp_path / "variants.toml"
    if text is not None:
        path.write_text(text)
    with server_processes() as start:
        code, log = start("--variants-file", str(path), *FAST).wait_until_ended()
    assert code == status
    assert f"resnet50-server: variants_file: {path}: {error}" in log.splitlines()[-1]


async def test_removed_variant_completes_its_requests_first(tmp_path):
    write(path := tmp_path / "variants.toml", BOTH)
    settings = {"variants": [], "variants_file": path, **DECODING, **ON}
    async with serving(**settings) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        (engine,) = [queue.engine for queue in queues_of(server) if queue.name == V1]
        opened = held_back(engine)
        options = inference_pb2.ClassifyOptions(variant=V1)
        request = inference_pb2.ClassifyRequest(options=options, image=IMAGE)
        waiting = asyncio.ensure_future(stub.Classify(request, timeout=60))
        try:
            await until(lambda: server.snapshot().requests == 1)
            write(path, f'[[variant]]\nname = "{V2}"\n')
            await until(lambda: server.snapshot().variants_file.applied == 1)
            assert [one.name for one in server.snapshot().variants] == [V2]
            assert [one.spec.name for one in server.parts.variants.draining] == [V1]
        finally:
            opened.set()
        assert (await waiting).variant.name == V1
        await until(lambda: not server.parts.variants.draining)
        found = await scrape(server)
        revision = server.snapshot().variants_file.revision
        assert found.of("resnet50_variants_file_info", "revision") == {revision: 1.0}


async def test_admin_calls_work_beside_the_file_until_it_changes(tmp_path):
    (folder := tmp_path / "variants").mkdir()
    describe(folder / "pets")
    write(path := tmp_path / "variants.toml", BOTH)
    async with followed(path, "--variants-dir", str(folder)) as pod:
        for request in (
            variant_pb2.LoadVariantRequest(name="pets"),
            variant_pb2.LoadVariantRequest(name=V1, replace=True),
        ):
            await pod.variants.LoadVariant(request, metadata=metadata(), timeout=60)
        request = variant_pb2.SetDefaultVariantRequest(name="pets")
        await pod.variants.SetDefaultVariant(request, metadata=metadata(), timeout=60)
        assert await pod.names() == ["pets", V2, V1]
        await until_result(
            pod.metrics, lambda found: found.one("resnet50_variants_file_differences") == 2
        )
        await pod.change(BOTH + "# again\n")
        await until_result(pod.names, lambda names: names == [V2, V1])
        _, log = await asyncio.to_thread(pod.process.terminate)
    assert "differs from the active revision: pets is loaded as well; the default is pets" in log
