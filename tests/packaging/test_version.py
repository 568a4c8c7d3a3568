"""One place has the version; the SDK needs no metadata of a distribution."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import resnet50_client

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, importlib.metadata
sys.path.insert(0, sys.argv[1])

def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.version = missing
import resnet50_client
assert resnet50_client.__file__.startswith(sys.argv[1]), resnet50_client.__file__
from resnet50_client.testing import FakeServer
with FakeServer() as server, resnet50_client.Client(server.address) as client:
    client.classify(b"image")
print(resnet50_client.__version__)
"""


def test_version_is_that_of_the_installed_distribution():
    assert resnet50_client.__version__ == version("resnet50-serving")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", resnet50_client.__version__)


def test_copied_sdk_calls_a_server_without_metadata(tmp_path):
    for source in ("client/resnet50_client", "protos/resnet50"):
        shutil.copytree(ROOT / source, tmp_path / Path(source).name)
    command = [sys.executable, "-I", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == resnet50_client.__version__
