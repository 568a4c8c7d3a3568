"""The worked example of a custom variant, built and served for real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from resnet50_client import AsyncClient, Classification, Variant
from tests.support.examples import EXAMPLES, run_example
from tests.support.serving import server_processes


def served(digits, directory: Path, *arguments: str) -> tuple[list[Classification], float, Variant]:
    """Serve the variant; return what is said of the held-out digits, and how much is right."""
    data = digits.digits()

    async def call(address: str) -> tuple[list[Classification], Variant]:
        async with AsyncClient(address, timeout_s=120.0) as client:
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


def test_served_digit_is_compared_with_torchvisions_answer(built, monkeypatch):
    directory, _ = built
    image = EXAMPLES / "seven.png"
    with server_processes() as start:
        server = start("--variants", f"digits={directory}", "--engine", "torch")
        monkeypatch.setenv("RESNET50_SERVER", server.wait_until_listening())
        printed = run_example("compare_torchvision", f"digits={directory}", image)
    assert printed.startswith(f"{image}: seven 98.7%, as torchvision; ")
    assert float(printed.rpartition("; ")[2]) < 1e-4


def test_other_weights_are_told_from_the_served_ones(built, monkeypatch, tmp_path):
    directory, _ = built
    changed = load_file(directory / "weights.safetensors")
    changed["fc.weight"] = -changed["fc.weight"]
    save_file(changed, tmp_path / "weights.safetensors")
    (tmp_path / "variant.json").write_bytes((directory / "variant.json").read_bytes())
    with server_processes() as start:
        server = start("--variants", f"digits={directory}", "--engine", "torch")
        monkeypatch.setenv("RESNET50_SERVER", server.wait_until_listening())
        printed = run_example("compare_torchvision", f"digits={tmp_path}", EXAMPLES / "seven.png")
    assert "seven 98.7%, NOT as torchvision; " in printed
