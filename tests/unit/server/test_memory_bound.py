"""The bound of the server's memory follows from its settings, and the docs say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from resnet50_server.lifecycle.engine_builder import estimate_memory
from resnet50_server.memory_bound import MIB, describe, memory_bound, total
from resnet50_server.settings import Settings

LIMITS = Path(__file__).resolve().parents[3] / "docs" / "reference" / "limits.md"


def settings(**values: Any) -> Settings:
    return Settings(variants=["IMAGENET1K_V2"], **values)


def test_docs_have_the_parts_of_the_defaults():
    parts = memory_bound(settings())
    text = LIMITS.read_text().partition("## Memory")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([a-z' ]+) \| (\d+) \|", text, re.MULTILINE))
    assert {part.name: str(part.size // MIB) for part in parts} == rows
    assert f"| **in all** | **{total(parts) // MIB}** |" in text


@pytest.mark.parametrize(
    ("name", "more", "bytes_each"),
    [
        ("max_request_bytes", 10 * MIB, 2),
        ("max_receive_bytes", 8 * MIB, 1),
        ("max_streams", 10, 3 * 4 * MIB),
        ("max_uploads", 10, 2 * 4 * MIB),
        ("max_send_bytes", MIB, 1),
        ("response_cache_bytes", 10 * MIB, 1),
        ("max_image_pixels", 1_000_000, 22),
        ("max_requests", 100, 2 * 2 * 128 * 1024),
        ("max_connections", 100, 64 * 1024),
    ],
)
def test_every_limit_counts(name, more, bytes_each):
    before = getattr(settings(), name)
    grown = total(memory_bound(settings(**{name: before + more})))
    assert grown - total(memory_bound(settings())) >= more * bytes_each


def test_oip_request_larger_than_the_window_counts():
    def responses(**values: Any) -> int:
        parts = memory_bound(settings(oip=True, max_images_per_call=4096, **values))
        return {part.name: part.size for part in parts}["stream responses"]

    tensors = 4096 * 4 * (1000 + 2048)  # in the message, serialized, and in gRPC
    assert responses(max_streams=10) >= 10 * 3 * tensors
    assert responses(max_streams=10, max_frames_in_flight=4096) == 10 * 4096 * 80 * 1024


def test_image_that_is_sent_as_pixels_counts():
    bound = {part.name: part.size for part in memory_bound(settings(max_request_bytes=MIB))}
    assert bound["images in flight"] == 2 * 4 * settings().max_image_pixels


def test_larger_crops_raise_the_bound_of_decoded_images():
    usual, small, large = (
        {part.name: part.size for part in memory_bound(settings(), input_pixels=pixels)}
        for pixels in (256 * 256, 224 * 224, 512 * 512)
    )
    assert usual == small
    assert large["decoded images"] == 4 * usual["decoded images"] == 1024 * 3 * 512 * 512


def test_line_in_the_log_names_the_whole_and_its_parts():
    line = describe(memory_bound(settings(engine="null", max_streams=100)))
    assert re.match(r"\d+ MiB of memory at most: stream buffers 1232, decoding \d+, ", line)
    assert "variants" not in line


def test_estimate_counts_weights_of_each_engine_instance():
    assert estimate_memory(1000, "fp32", "onnxruntime", 8) == 8 * estimate_memory(
        1000, "fp32", "onnxruntime"
    )
    assert estimate_memory(1000, "fp32", "openvino", 8) == estimate_memory(1000, "fp32", "openvino")
    # Which one it will be is not known yet.
    assert estimate_memory(1000, "fp32", "auto", 8) == estimate_memory(
        1000, "fp32", "onnxruntime", 8
    )
    before, after = (total(memory_bound(settings(), instances)) for instances in (1, 8))
    assert after - before > 1000 * MIB
