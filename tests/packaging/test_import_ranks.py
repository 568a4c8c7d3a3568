"""Imports of the server go one way: down the ranks of its packages, never up."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.imports import modules

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "server" / "resnet50_server"
# From the bottom to the top; a package may import from its own rank and those below it.
RANKS = [
    {"runtime"},
    {"errors", "settings"},
    {"auth", "images"},
    {"context", "events", "variants"},
    {"engines"},
    {"batching"},
    {"lifecycle"},
    {"inference"},
    {"offline", "ray", "rollout"},
    {"api"},
    {"telemetry"},
    {"memory_bound", "parts", "server", "sizes"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
GRPC = ("grpc", "grpc_channelz", "grpc_health", "grpc_reflection", "resnet50")
# Third-party modules that only these packages, or modules, may import.
CONFINED = {
    GRPC: {"api", "ray.variants"},
    ("torch", "torchvision"): {"engines", "variants", "images.resize", "images.transform"},
    ("prometheus_client",): {"telemetry"},
    ("opentelemetry",): {"telemetry"},
}


def upward(root: Path) -> list[str]:
    """Return the imports that go up, and those of packages without a rank."""
    wrong = []
    for module, found in modules(root):
        mine = module.partition(".")[0]
        for name in found:
            package, _, rest = name.partition(".")
            theirs = rest.partition(".")[0]
            if package == root.name and theirs and mine:
                if mine not in RANK or theirs not in RANK:
                    wrong.append(f"{module} imports {name}: add the package to RANKS")
                elif RANK[theirs] > RANK[mine]:
                    wrong.append(f"{module} imports {name}, which is above it")
    return wrong


def unordered(page: str) -> list[str]:
    """Return the neighbouring rows of a page's table of packages whose ranks go up."""
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.M)
    rows = [found for cell in cells if RANK.keys() >= set(found := re.findall(r"\w+", cell))]
    assert sum(map(len, rows)) == sum(path.is_file() for path in SERVER.glob("*/__init__.py"))
    return [
        f"{', '.join(upper)} is above {', '.join(lower)}"
        for upper, lower in pairwise(rows)
        if min(RANK[name] for name in upper) < max(RANK[name] for name in lower)
    ]


def misplaced(root: Path) -> list[str]:
    """Return the imports of third-party modules from where they do not belong."""
    return [
        f"{module} imports {name}, which only {', '.join(sorted(places))} may"
        for module, found in modules(root)
        for name in found
        for confined, places in CONFINED.items()
        if name.partition(".")[0] in confined
        and not any(module == place or module.startswith(f"{place}.") for place in places)
    ]


def test_no_import_of_the_server_goes_up():
    assert upward(SERVER) == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/explanation/architecture.md"])
def test_the_tables_of_packages_are_ordered_by_rank(page):
    assert unordered((ROOT / page).read_text()) == []


def test_grpc_torch_and_telemetry_stay_in_their_packages():
    assert misplaced(SERVER) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("batching/queue.py", "from resnet50_server.api import guard"),
        ("batching/queue.py", "from ..telemetry.metrics import Metrics"),
        ("runtime/cpus.py", "import resnet50_server.settings"),
        ("images/raw.py", "def late():\n    from resnet50_server.engines import base"),
        ("extra/new.py", "from resnet50_server import errors"),
    ],
)
def test_an_import_that_goes_up_is_found(tmp_path, module, line):
    path = tmp_path / "resnet50_server" / module
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(upward(tmp_path / "resnet50_server")) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("inference/pipeline.py", "import grpc"),
        ("server.py", "from grpc.aio import Server"),
        ("batching/batch.py", "import torch"),
        ("images/raw.py", "import torchvision.io"),
        ("rollout/split.py", "from resnet50.v1 import image_pb2"),
        ("events.py", "from prometheus_client import Counter"),
    ],
)
def test_a_third_party_import_out_of_its_package_is_found(tmp_path, module, line):
    path = tmp_path / "resnet50_server" / module
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(misplaced(tmp_path / "resnet50_server")) == 1
