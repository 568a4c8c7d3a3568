"""Fixtures of all tests. `gpu` tests run wherever CUDA is present and nowhere else."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import settings

# A loaded machine is slow, and a failure of that kind says nothing about the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

if "PYTEST_XDIST_WORKER" not in os.environ:
    # Servers that tests start keep nothing in the user's folders, and find nothing there. One cache
    # for all processes that run tests, which have this process's environment: weights are made
    # once, a graph is exported once, and an engine is chosen once.
    _cache = tempfile.TemporaryDirectory(prefix="resnet50-tests-")
    os.environ["RESNET50_GRAPH_CACHE_DIR"] = os.path.join(_cache.name, "graphs")
    os.environ["TEST_WEIGHTS_DIR"] = os.path.join(_cache.name, "weights")
    # Images of containers set it; each process that a test starts would compile the project again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
else:
    # As many processes compute as there are CPUs. The threads of an operation wait for one another
    # by computing nothing, so that two take six times the CPU time of one: here, in engines that
    # tests build, whose threads stay set, and in servers.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RESNET50_ENGINE_THREADS", "1")
    # Some test files import torchvision first, and with it the compiler, which takes seconds.
    import resnet50_server.variants.torchvision_models  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # seconds, which most test files do without

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
