"""`resnet50-server variants import` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet50_server.cli.main import main
from tests.support import weights
from tests.support.checkpoints import COUNT, save


@pytest.fixture
def source(tmp_path) -> Path:
    content = {"state_dict": weights.hollow(COUNT), "epoch": 3}
    return save(content, tmp_path / "best.pth")


@pytest.fixture
def names(tmp_path) -> Path:
    for index in range(COUNT):
        (tmp_path / "train" / f"kind {index}").mkdir(parents=True)
    return tmp_path / "train"


def run(capsys, *arguments: object) -> tuple[int, list[str], str]:
    """Return the exit code, the lines of stdout, and stderr."""
    status = main(["variants", "import", *map(str, arguments)])
    output, errors = capsys.readouterr()
    return status, output.splitlines(), errors


def test_import_prints_its_steps_and_how_to_serve(capsys, tmp_path, source, names):
    directory = tmp_path / "pets"
    status, lines, errors = run(
        capsys, source, directory, "--categories", names, "--transform", "V2"
    )
    assert (status, errors) == (0, "")
    assert lines[0].startswith(f"read {source}: ")
    assert lines[1:3] == ["took its entry 'state_dict'", f"categories: {COUNT}, from {names}"]
    assert lines[3].startswith(f"wrote {directory}: weights.safetensors (SHA-256 ")
    assert lines[4] == f"serve it with: resnet50-server serve --variants pets={directory}"
    written = json.loads((directory / "variant.json").read_text())
    assert written["categories"] == [f"kind {index}" for index in range(COUNT)]
    assert (written["transform"]["resize"], written["transform"]["crop"]) == (232, 224)
    assert main(["variants", "show", f"pets={directory}"]) == 0


def test_guessed_transform_is_said(capsys, tmp_path, source, names):
    _, lines, _ = run(capsys, source, tmp_path / "pets", "--categories", names)
    assert any("transform: IMAGENET1K_V1's (resize 256, crop 224), a guess" in one for one in lines)


def test_transform_may_be_its_printed_text(capsys, tmp_path, source, names):
    normalize = "Normalize(mean=[0.5, 0.5, 0.5], std=[1.0, 1.0, 1.0])"
    text = f"Compose([Resize((224, 224)), ToTensor(), {normalize}])"
    options = ("--categories", names, "--transform", text)
    assert run(capsys, source, tmp_path / "pets", *options)[0] == 0
    written = json.loads((tmp_path / "pets" / "variant.json").read_text())
    assert written["transform"]["resize"] == [224, 224]


def test_sigmoid_and_threshold_are_written(capsys, tmp_path, source, names):
    options = ("--categories", names, "--activation", "sigmoid", "--threshold", "0.3")
    status, lines, _ = run(capsys, source, tmp_path / "tags", *options)
    assert status == 0
    assert any(line.startswith("activation: sigmoid") for line in lines)
    written = json.loads((tmp_path / "tags" / "variant.json").read_text())
    assert (written["activation"], written["thresholds"]) == ("sigmoid", [0.3] * COUNT)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--transform", "V3"], "transform: 'V3' is not one of V1, V2"),
        (["--sha256", "abc"], "sha256: 'abc' is not 64 hex digits"),
        (["--key", "teacher"], "no network for --key teacher"),
        (["--threshold", "0.5"], "thresholds: are of the activation sigmoid"),
        ([], "has 10 outputs without names"),
    ],
)
def test_refusal_is_one_line_and_status_one(capsys, tmp_path, source, names, options, reason):
    categories = ["--categories", names] if options else []
    status, _, errors = run(capsys, source, tmp_path / "pets", *options, *categories)
    assert status == 1
    assert reason in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "pets").exists()


def test_directory_that_cannot_be_written_is_named(capsys, tmp_path, source, names):
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "pets"
    status, _, errors = run(capsys, source, directory, "--categories", names)
    assert status == 1
    assert f"{directory} cannot be written: Not a directory" in errors
