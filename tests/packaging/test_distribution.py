"""The wheel as users get it: what is in it, and the SDK alone on the oldest and newest pair."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes

ROOT = Path(__file__).resolve().parents[2]
# The oldest supported pair is the toolchain of the stubs; "newest" is whatever pip finds.
PAIRS = {
    "oldest": ("grpcio==1.72.1", "protobuf==6.30.0"),
    "newest": ("grpcio", "protobuf"),
}
SCRIPT = """
import sys, typing
from importlib.metadata import distributions, version
import grpc, google.protobuf
from resnet50_client import Client, InvalidImageError

typing.get_type_hints(Client.classify)  # without what its types come from

with Client(sys.argv[1]) as client, open(sys.argv[2], "rb") as file:
    client.wait_until_ready(timeout_s=30)
    result = client.classify(file, top_k=3)
    vector = client.embed(sys.argv[2]).vector
    try:
        client.classify(b"no image")
    except InvalidImageError as error:
        field = error.field
installed = sorted(one.metadata["Name"].lower() for one in distributions())
heavy = [name for name in ("torch", "torchvision", "pillow", "grpcio-health-checking")
         if name in installed]
print(version("grpcio"), version("protobuf"), len(result), vector.shape, field, heavy)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # By way of the source distribution, so that nothing left in build/ can slip in.
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_five_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "resnet50",
        "resnet50_bench",
        "resnet50_cli",
        "resnet50_client",
        "resnet50_server",
    }
    for wanted in (
        "resnet50/v1/inference_pb2.py",
        "resnet50/v1/inference_pb2.pyi",
        "resnet50/v1/inference.proto",
        "resnet50/py.typed",
        "resnet50_client/py.typed",
        "resnet50_server/py.typed",
        "resnet50_cli/app.py",
        "resnet50_bench/report.html",
        "resnet50_cli/evaluate/report.html",
        "resnet50_server/api/inference_service.py",
        "resnet50_server/variants/official.json",
    ):
        assert wanted in names


@pytest.fixture(scope="module")
def server():
    with server_processes() as start:
        yield start("--variants", "IMAGENET1K_V2", "--engine", "null").wait_until_listening()


@pytest.mark.parametrize("pair", PAIRS)
def test_sdk_alone_calls_a_live_server(pair, wheel, server, tmp_path):
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", str(wheel), *PAIRS[pair]]
    subprocess.run(install, check=True, capture_output=True)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encode(photo_like(64, 48), "JPEG"))
    # -I: nothing of this checkout is on the path.
    command = [python, "-I", "-W", "error", "-c", SCRIPT, server, photo]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grpcio, protobuf, rest = done.stdout.strip().split(" ", 2)
    assert rest == "3 (2048,) image.encoded []"
    if pair == "oldest":
        assert (grpcio, protobuf) == ("1.72.1", "6.30.0")
    command_line = subprocess.run([home / "bin" / "resnet50"], capture_output=True, text=True)
    assert command_line.returncode == 2
    assert "install resnet50-serving with the extra [cli]" in command_line.stderr
