"""Engines for the CPU, opened on a small variant, and comparisons of their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resnet50_server.engines.base import BatchOutput, Images
from resnet50_server.lifecycle.engine_builder import BuiltEngine, build_engine, prepare_variant
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.pictures import photo_like

CATEGORIES = 10
CROP = 64
GRAPHS = ("onnxruntime", "openvino")


def small_variant(directory: Path) -> Path:
    """Write a custom variant of small pictures, which computes fast."""
    transform = weights.TRANSFORM | {"resize": CROP, "crop": CROP}
    state = weights.calm(3, CATEGORIES)
    return weights.custom_variant(directory, state, CATEGORIES, transform=transform)


def pictures(count: int = 4, crop: int = CROP) -> Images:
    return [np.asarray(photo_like(crop, crop, 100 + seed)) for seed in range(count)]


def open_variant(argument: str, cache: Path, **settings: Any) -> BuiltEngine:
    options = Settings(variants=[argument], device="cpu", graph_cache_dir=cache, **settings)
    return build_engine(prepare_variant(parse_variant(argument), options), options)


def in_order(output: BatchOutput) -> np.ndarray:
    """Return the probability of each category, by its index."""
    found = np.full_like(output.probabilities, np.nan)
    np.put_along_axis(found, output.indices, output.probabilities, axis=1)
    return found


def assert_equal(found: BatchOutput, expected: BatchOutput, tolerance: float) -> None:
    assert np.abs(in_order(found) - in_order(expected)).max() <= tolerance
    assert found.embeddings is not None and expected.embeddings is not None  # requested
    assert found.embeddings.shape == expected.embeddings.shape
    for one, two in zip(found.embeddings, expected.embeddings, strict=True):
        assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.999
