"""The worked example of a custom variant, built and served for real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from resnet50_client import AsyncClient, Classification, Variant
from tests.support.serving import server_processes


def served(digits, directory: Path, *arguments: str) -> tuple[list[Classification], float, Variant]:
    """Serve the variant; return what is said of the held-out digits, and how much is right."""
    data = digits.digits()

    async def call(address: str) -> tuple[list[Classification], Variant]:
        async with AsyncClient(address) as client:
            await client.wait_until_ready()
            held_out = data.held_out
            results = await asyncio.gather(*(client.classify(image, top_k=1) for image in held_out))
            return results, await client.get_variant("digits")

    with server_processes() as start:
        server = start("--variants", f"digits={directory}", *arguments)
        results, variant = asyncio.run(call(server.wait_until_listening()))
    right = sum(
        result.top.label == digits.CATEGORIES[digit]
        for result, digit in zip(results, data.held_out_labels, strict=True)
    )
    return results, right / len(results), variant


def test_served_digits_are_recognised_through_the_sdk(digits, built):
    directory, accuracy = built
    results, right, variant = served(digits, directory)
    assert right >= 0.94
    assert max(result.timing.batch_size for result in results) > 1
    assert right == pytest.approx(accuracy, abs=0.005)
    assert variant.published_accuracy.acc_at_1 == pytest.approx(100 * accuracy, abs=0.01)
    assert variant.quantization is None


def test_int8_digits_keep_accuracy_and_report_agreement(digits, built, tmp_path):
    directory, accuracy = built
    for number, image in enumerate(digits.digits().train[:120]):
        image.save(tmp_path / f"{number}.png")
    _, right, variant = served(
        digits, directory, "--precision", "int8", "--calibration-dir", str(tmp_path)
    )
    assert right == pytest.approx(accuracy, abs=0.02)
    assert variant.precision == "int8"
    assert variant.embedding_space.endswith("-int8")
    found = variant.quantization
    assert (found.calibration_images, found.compared_images) == (90, 30)
    assert found.top_1_agreement >= 0.9
    assert found.embedding_cosine >= 0.97
