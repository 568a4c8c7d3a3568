"""Fixtures of all tests. `gpu` tests run wherever CUDA is present and nowhere else."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

# Servers that tests start keep nothing in the user's folders, and find nothing there.
_cache = tempfile.TemporaryDirectory(prefix="resnet50-tests-")
os.environ["RESNET50_GRAPH_CACHE_DIR"] = _cache.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
