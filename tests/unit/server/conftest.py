"""A small variant and its exported graph, which all tests of CPU engines share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mine(tmp_path_factory) -> str:
    """A custom variant of small pictures, which computes fast."""
    from tests.support.cpu_engines import small_variant  # PyTorch, which most files do without

    return f"mine={small_variant(tmp_path_factory.mktemp('variant') / 'mine')}"


@pytest.fixture(scope="session")
def exported(mine, tmp_path_factory) -> Path:
    """A graph cache that has its graph; no test changes it."""
    from tests.support.cpu_engines import open_variant

    cache = tmp_path_factory.mktemp("graphs")
    open_variant(mine, cache, engine="onnxruntime").engine.close()
    return cache
