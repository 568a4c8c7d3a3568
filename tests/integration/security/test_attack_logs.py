"""Attacks on a server's log, metadata and headers, and images that hang its decoders."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import grpc
import pytest

import resnet50_server.inference.pipeline
from benchmarks.metadata_flood import Flood, literal
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_server.images.decode import decode
from tests.support import hostile, weights
from tests.support.attacked_server import (
    INVALID,
    MALFORMED,
    NORMAL,
    REFUSED,
    SETTINGS,
    Victim,
    told,
)
from tests.support.pictures import encode, photo_like, picture
from tests.support.serving import DECODING, connected, server_processes, serving

SLOW = encode(photo_like(64, 48), "JPEG")


async def test_attacks_leave_only_our_own_lines_on_stderr():
    """One file alone could make decoders write a warning for each of its 40,000 tags."""
    with server_processes() as start:
        victim = Victim(start(*SETTINGS))
        async with grpc.aio.insecure_channel(victim.address) as victim.channel:
            for attack in REFUSED.values():
                for send in (victim.unary, victim.upload, victim.frame):
                    await send(attack.content)
            for content in MALFORMED.values():
                await victim.malformed("resnet50.v1.InferenceService/Classify", content)
            for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
                options = {"compression": "tiff_lzw"} if form == "TIFF" else {}
                whole = encode(picture(64, 48), form, **options)
                for seed in range(40):
                    code, _ = await victim.unary(hostile.mutated(whole, seed))
                    assert code in (grpc.StatusCode.OK, INVALID)
        status, errors = victim.process.terminate()
    assert status == 0
    foreign = [line for line in errors.splitlines() if not is_ours(line)]
    assert foreign == []


async def test_non_utf8_metadata_is_not_logged_and_calls_go_on():
    """gRPC logs a traceback for each value, on the event loop, for calls of any client."""
    with server_processes() as start:
        victim = Victim(start(*SETTINGS))
        flood = Flood(victim.address, b"\xff")
        try:
            async with grpc.aio.insecure_channel(victim.address) as victim.channel:
                while flood.calls < 100:
                    code, text = await victim.unary(NORMAL)
                    assert code is grpc.StatusCode.OK, text
        finally:
            flood.close()
        status, errors = victim.process.terminate()
    assert status == 0
    assert [line for line in errors.splitlines() if not is_ours(line)] == []


METHODS_OF_EACH_SERVICE = (
    "resnet50.v1.InferenceService/Classify",
    "resnet50.v1.InferenceService/ClassifyStream",
    "resnet50.v1.VariantService/ListVariants",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
)


@pytest.mark.parametrize("method", METHODS_OF_EACH_SERVICE)
async def test_call_with_too_many_metadata_pairs_is_refused(method):
    async with serving() as server, connected(server) as channel:

        async def told_with(pairs: int) -> tuple[grpc.StatusCode, str]:
            # The SDK's gRPC adds one: user-agent.
            metadata = [("x-more", str(number)) for number in range(pairs - 1)]
            call = channel.stream_unary(f"/{method}")(iter([b""]), metadata=metadata, timeout=30)
            return await call.code(), await call.details()

        if method != "grpc.health.v1.Health/Watch":  # which would not end
            assert "metadata" not in (await told_with(64))[1]
        code, text = await told_with(65)
    assert code is INVALID
    assert text == "metadata: has more pairs than 64, the limit; send fewer"


async def test_broken_headers_write_nothing_to_stderr():
    """gRPC's C core writes there by itself, at the level ERROR."""
    broken = (
        literal(0, b"grpc-timeout", b"zz"),
        literal(0, b"grpc-encoding", b"?"),
        literal(0, b"te", b"?"),
        literal(0, b"x-bin", b"?"),
    )
    with server_processes() as start:
        victim = Victim(start(*SETTINGS))
        for more in broken:
            flood = Flood(victim.address, b"x", 1, 1000, more)
            async with grpc.aio.insecure_channel(victim.address) as victim.channel:
                while flood.calls < 20:
                    code, text = await victim.unary(NORMAL)
                    assert code is grpc.StatusCode.OK, text
            flood.close()
        status, errors = victim.process.terminate()
    assert status == 0
    assert [line for line in errors.splitlines() if not is_ours(line)] == []


def is_ours(line: str) -> bool:
    """Whether it is a line of our log that is no complaint."""
    return re.match(r"\S+ \S+ INFO resnet50_server\.", line) is not None


async def test_slow_decoding_is_refused_in_a_process():
    with server_processes() as start:
        victim = Victim(start(*SETTINGS, "--decode-timeout-s", "1e-9"))
        async with grpc.aio.insecure_channel(victim.address) as victim.channel:
            for send in (victim.unary, victim.upload, victim.frame):
                code, text = await send(NORMAL)
                assert code is INVALID
                assert "the limit (decode_timeout_s); send a smaller or simpler image" in text


async def test_endless_image_is_refused_and_a_spare_thread_decodes(monkeypatch):
    entered, leave = threading.Event(), threading.Event()

    def stand_still(source, *arguments, **options):
        if source == SLOW:
            entered.set()
            assert leave.wait(60)
        return decode(source, *arguments, **options)

    monkeypatch.setattr(resnet50_server.inference.pipeline, "decode", stand_still)
    async with (
        serving(decode_threads=1, decode_timeout_s=0.5, **DECODING) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        def classify(content: bytes, **options) -> grpc.aio.Call:
            image = image_pb2.Image(encoded=content)
            return stub.Classify(inference_pb2.ClassifyRequest(image=image), **options)

        code, text = await told(classify(SLOW))
        assert code is INVALID
        assert "within 0.5 s, the limit (decode_timeout_s)" in text
        assert entered.is_set()
        # Its thread is still taken.
        assert (await classify(NORMAL)).timing.batch_size == 1
        leave.set()


def test_code_in_weights_is_not_run_and_stops_the_start(tmp_path):
    sprung = tmp_path / "sprung"
    directory = weights.custom_variant(tmp_path / "mine", {"fc.weight": Trap(sprung)})
    with server_processes() as start:
        process = start("--variants", f"mine={directory}", "--device", "cpu").process
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output == ""
    (message,) = [line for line in errors.splitlines() if "resnet50-server:" in line]
    assert "was refused: it is broken, or a pickle that could run code (it needs" in message
    assert "Traceback" not in errors
    assert not sprung.exists()


class Trap:
    """A value whose unpickling leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
