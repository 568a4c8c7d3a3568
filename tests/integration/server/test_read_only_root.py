"""The image's entry point as another user, on a root file system that cannot be written."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc

from resnet50.v1 import inference_pb2, inference_pb2_grpc
from tests.support.administering import IMAGE
from tests.support.containers import USER, contained, isolates
from tests.support.deployments import Dockerfile


def test_image_exports_graphs_as_another_user_on_a_read_only_root(tmp_path):
    image, root = Dockerfile(), tmp_path / "root"
    environment = image.environment | {
        "HOME": "/tmp",
        "RESNET50_LISTEN": "127.0.0.1:0",
        "RESNET50_METRICS_LISTEN": "127.0.0.1:0",
        "RESNET50_VARIANTS": "x=random:0",
        "RESNET50_ENGINE": "onnxruntime",
    }
    # `python -m resnet50_server` is what the installed command runs.
    command, environment = contained(
        [sys.executable, "-m", "resnet50_server", *image.command[1:]],
        environment,
        {image.volume: None, "/tmp": None},
        root,
    )
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), line + process.stderr.read()
        assert asyncio.run(answer(line.removeprefix("listening on ").strip())) == "x"
        seen = Path(f"/proc/{process.pid}/root") if isolates() else root
        graphs = seen / image.environment["RESNET50_GRAPH_CACHE_DIR"].lstrip("/")
        owners = {path.stat().st_uid for path in graphs.rglob("*") if path.is_file()}
        assert len(owners) == 1
        assert not isolates() or owners == {int(USER.partition(":")[0])}
        process.terminate()
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log
    assert "cannot be written" not in log


async def answer(address: str) -> str:
    """Return the name of the variant that answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = await stub.Classify(inference_pb2.ClassifyRequest(image=IMAGE), timeout=60)
        return reply.variant.name
