"""The worked example of a custom variant, built and served for real."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest
from serving import server_processes

from resnet50_client import AsyncClient, Classification

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


def test_served_digits_are_recognised_through_the_sdk(digits, tmp_path):
    built = digits.build(tmp_path / "digits", choice="random")
    data = digits.digits()

    async def served(address: str) -> tuple[list[Classification], float]:
        async with AsyncClient(address) as client:
            await client.wait_until_ready()
            held_out = data.held_out
            results = await asyncio.gather(*(client.classify(image, top_k=1) for image in held_out))
            variant = await client.variant("digits")
        return results, variant.published_accuracy.acc_at_1

    with server_processes() as start:
        address = start("--variants", f"digits={tmp_path / 'digits'}").wait_until_listening()
        results, published = asyncio.run(served(address))
    labels = [result.top.label for result in results]
    right = sum(
        label == digits.CATEGORIES[digit]
        for label, digit in zip(labels, data.held_out_labels, strict=True)
    )
    assert right / len(labels) >= 0.94
    assert max(result.timing.batch_size for result in results) > 1
    assert right / len(labels) == pytest.approx(built, abs=0.005)
    assert published == pytest.approx(100 * built, abs=0.01)
