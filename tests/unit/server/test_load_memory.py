"""Loading a variant: nothing of its checkpoint stays in memory, and its network is built once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resnet50_server.variants import network
from tests.support.cpu_engines import open_variant

# As `serve` loads its first variant: torch is not imported yet, and no garbage is collected.
PROGRAM = """
import gc, sys
gc.disable()
from pathlib import Path
from resnet50_server.lifecycle.engine_builder import build_engine, prepare_variant
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import parse_variant
argument, cache, engine = sys.argv[1:]
settings = Settings(
    variants=[argument], device="cpu", engine=engine, graph_cache_dir=Path(cache)
)
assert "torch" not in sys.modules
built = build_engine(prepare_variant(parse_variant(argument), settings), settings)
from torch import Tensor
# Freed with the engine, unless something else has them: a reference cycle, for example.
built.engine.close()
print(sum(one.nbytes for one in gc.get_objects() if issubclass(type(one), Tensor)))
"""


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_no_weights_stay_alive_beside_the_engine(mine, exported, engine):
    command = [sys.executable, "-c", PROGRAM, mine, str(exported), engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**20, "bytes of tensors"


def test_network_of_a_cached_graph_is_built_once(mine, exported, monkeypatch):
    """By the reference check; the engine needs none."""
    built, build = [], network.resnet50
    monkeypatch.setattr(network, "resnet50", lambda **options: built.append(1) or build(**options))
    open_variant(mine, Path(exported), engine="onnxruntime").engine.close()
    assert len(built) == 1
