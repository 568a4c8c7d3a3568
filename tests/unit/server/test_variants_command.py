from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchvision.models import ResNet50_Weights

from resnet50_server.cli.main import main
from tests.support import weights

V1, V2 = ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2


@pytest.fixture
def here(tmp_path) -> Path:
    """Where official files lie: nothing yet."""
    return tmp_path / "here"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Return the exit code, and what `resnet50-server variants` wrote to stdout and stderr."""
    status = main(["variants", *map(str, arguments)])
    return status, *capsys.readouterr()


def line(output: str, start: str) -> str:
    (found,) = [line for line in output.splitlines() if line.strip().startswith(start)]
    return found


def test_list_shows_official_variants_and_their_files(capsys, here, monkeypatch):
    weights.publish(monkeypatch, V1, weights.hollow(1000) | {"fc.bias": 0}, here)
    weights.publish(monkeypatch, V2, weights.hollow(1000), here).write_bytes(b"half")
    status, output, errors = run(capsys, "list", "--weights-dir", here)
    assert (status, errors) == (0, "")
    for name, parts in {
        "IMAGENET1K_V1": ["76.130", "92.862", "256 → 224", "25.6 M", "98 MB", "verified"],
        "IMAGENET1K_V2": ["80.858", "95.434", "232 → 224", "25.6 M", "98 MB", "BAD HASH"],
        "IMAGENET1K_FBGEMM_V1": ["75.920", "256 → 224", "25 MB", "missing"],
        "IMAGENET1K_FBGEMM_V2": ["80.282", "232 → 224", "25 MB", "missing"],
    }.items():
        for part in parts:
            assert part in line(output, name + " ")
    assert "DEFAULT is IMAGENET1K_V2" in output
    assert str(here) in output


def test_output_that_takes_few_characters_gets_the_others_escaped(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "resnet50_server", "variants", "list"],
        env=os.environ | {"PYTHONIOENCODING": "latin-1", "TORCH_HOME": str(tmp_path)},
        capture_output=True,
        encoding="latin-1",
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"232 \u2192 224" in done.stdout


def test_files_lie_in_torch_hubs_folder_unless_told_otherwise(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _, output, _ = run(capsys, "verify")
    assert str(tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth") in output


@pytest.mark.parametrize("name", ["IMAGENET1K_V2", "DEFAULT", "ResNet50_Weights.IMAGENET1K_V2"])
def test_show_tells_all_of_an_official_variant(capsys, here, name):
    status, output, _ = run(capsys, "show", name, "--weights-dir", here)
    assert status == 0
    assert "IMAGENET1K_V2, DEFAULT" in line(output, "name")
    assert "1000: tench, goldfish" in line(output, "categories")
    assert "resize 232 (bilinear), crop 224, mean 0.485" in line(output, "transform")
    assert "80.858" in line(output, "published")
    assert line(output, "url").endswith("https://download.pytorch.org/models/resnet50-11ad3fa6.pth")
    assert line(output, "file").endswith(str(here / "resnet50-11ad3fa6.pth"))
    assert line(output, "condition").endswith("missing")
    assert line(output, "parameters").endswith("25,557,032")


def test_show_tells_all_of_a_custom_variant(capsys, tmp_path):
    directory = weights.custom_variant(tmp_path / "mine", {}, categories=["[b]cat", "dog"])
    status, output, _ = run(capsys, "show", f"pets={directory}")
    assert status == 0
    assert line(output, "name").endswith("pets")
    assert "2: [b]cat, dog" in line(output, "categories")
    assert "…" not in output
    assert line(output, "description").endswith("Made by a test.")
    assert line(output, "published").endswith("nothing")


@pytest.mark.parametrize("arguments", [("show", "cats"), ("download", "cats")])
def test_unknown_name_is_one_line_and_status_one(capsys, here, arguments):
    status, output, errors = run(capsys, *arguments, "--weights-dir", here)
    assert (status, output) == (1, "")
    assert "'cats' is not one of torchvision's" in errors
    assert errors.count("\n") == 1


def test_download_fetches_what_is_missing_and_keeps_what_is_here(capsys, here, monkeypatch):
    published = {
        member.name: weights.publish(
            monkeypatch, member, weights.hollow(1000) | {"fc.bias": number}, here.parent / "there"
        )
        for number, member in enumerate((V1, V2))
    }
    status, output, _ = run(capsys, "download", *published, "--weights-dir", here)
    assert status == 0
    for name, path in published.items():
        assert line(output, name).endswith(str(here / path.name))
        assert (here / path.name).read_bytes() == path.read_bytes()
        path.unlink()  # the next download could not fetch it
    assert run(capsys, "download", *published, "--weights-dir", here)[:2] == (0, output)


def test_download_of_a_wrong_file_fails_and_leaves_nothing(capsys, here, monkeypatch):
    published = weights.publish(monkeypatch, V2, weights.hollow(1000), here.parent / "there")
    published.write_bytes(b"not what was published")
    status, output, errors = run(capsys, "download", "IMAGENET1K_V2", "--weights-dir", here)
    assert (status, output) == (1, "")
    assert "wrong hash" in errors
    assert "Traceback" not in errors
    assert list(here.glob("resnet50*")) == []


def test_download_of_what_is_not_torchvisions_is_refused(capsys, here):
    status, _, errors = run(capsys, "download", "x=random:0", "--weights-dir", here)
    assert status == 1
    assert "x is not torchvision's: nothing to download" in errors


def test_verify_shows_the_hashes_of_whole_files(capsys, here, monkeypatch):
    published = weights.publish(monkeypatch, V2, weights.hollow(1000), here)
    status, output, _ = run(capsys, "verify", "--weights-dir", here)
    assert status == 0
    assert "verified" in line(output, "IMAGENET1K_V2:")
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert line(output, "IMAGENET1K_V2:").endswith(f"{published} sha256 {digest}")
    assert "missing" in line(output, "IMAGENET1K_V1:")


def test_verify_shows_a_wrong_hash_and_fails(capsys, here, monkeypatch):
    published = weights.publish(monkeypatch, V2, weights.hollow(1000), here)
    published.write_bytes(published.read_bytes()[:-1])
    status, output, _ = run(capsys, "verify", "--weights-dir", here)
    assert status == 1
    assert "BAD HASH" in line(output, "IMAGENET1K_V2:")
    assert hashlib.sha256(published.read_bytes()).hexdigest() in output


@pytest.mark.parametrize("arguments", [[], ["variants"], ["variants", "show"], ["fetch"]])
def test_incomplete_command_is_wrong_usage(capsys, arguments):
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("resnet50-server: ")
    assert "Try 'resnet50-server" in errors
