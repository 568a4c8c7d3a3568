"""`resnet50-server variants check`: a dry run of a custom variant."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from resnet50_server.cli.main import main
from tests.support import weights

CATEGORIES = 10
SMALL = weights.TRANSFORM | {"resize": 40, "crop": 32}
MATCHING = v2.Compose(
    [
        v2.Resize(40),
        v2.CenterCrop(32),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(SMALL["mean"], SMALL["std"]),
    ]
)


@pytest.fixture(scope="module")
def state() -> weights.StateDict:
    return weights.calm(3, CATEGORIES)


@pytest.fixture
def directory(tmp_path, state, monkeypatch) -> Path:
    monkeypatch.setenv("RESNET50_GRAPH_CACHE_DIR", str(tmp_path / "cache"))
    return weights.custom_variant(tmp_path / "pets", state, CATEGORIES, transform=SMALL)


def check(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main(
        ["variants", "check", "--seconds", "0.01", "--engine", "torch", *map(str, arguments)]
    )
    return status, *capsys.readouterr()


def test_variant_that_can_be_served_is_ok(capsys, directory):
    status, output, errors = check(capsys, directory)
    assert (status, errors) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in output.splitlines() if " " in line)
    assert shown["name"] == "pets"
    assert shown["categories"] == "10: kind 0, kind 1, kind 2, …"
    assert shown["transform"].startswith("resize 40 (bilinear), crop 32, mean 0.485")
    assert "are resized to 53 x 40 and cropped to 32 x 32" in shown["photo"]
    assert "23,528,522 parameters, all finite, sha256 " in shown["weights"]
    assert shown["engine"].startswith("torch on cpu in fp32, ")
    assert shown["reference"] == "the output for fixed images is PyTorch's"
    assert "images/s in batches of 1, " in shown["speed"]
    assert shown["memory"].startswith("estimated 116 MiB; the process grew from ")
    assert output.splitlines()[-1] == "OK"


def test_report_as_json_has_the_same_facts(capsys, directory):
    status, output, _ = check(capsys, f"cats={directory}", "--json")
    report = json.loads(output)
    assert (status, report["ok"], report["problems"]) == (0, True, [])
    assert (report["name"], report["category_count"]) == ("cats", CATEGORIES)
    assert report["transform"] == SMALL | {"interpolation": "bilinear"}
    assert report["input_size"] == [32, 32]
    assert (report["engine"], report["device"], report["precision"]) == ("torch", "cpu", "fp32")
    assert set(report["images_per_s"]) == {"1", "8"}
    assert min(report["images_per_s"].values()) > 0
    memory = report["memory_bytes"]
    assert 0 < memory["before"] < memory["peak"]
    assert memory["estimated"] > 4 * report["parameter_count"]


def test_engines_that_a_server_would_choose_are_measured(capsys, directory):
    status = main(["variants", "check", str(directory), "--json", "--seconds", "0.01"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["ok"]) == (0, True)
    assert report["engine"] in ("torch", "onnxruntime", "openvino")


def broken(state: weights.StateDict) -> weights.StateDict:
    weight = state["layer1.0.conv1.weight"].clone()
    weight[0, 0, 0, 0] = math.nan
    return state | {"layer1.0.conv1.weight": weight}


@pytest.mark.parametrize(
    ("change", "count", "reason"),
    [
        (broken, CATEGORIES, "layer1.0.conv1.weight contains NaN or infinity"),
        (dict, CATEGORIES + 1, "fc has 10 classes, variant.json names 11 categories"),
        (lambda state: {"model": state}, CATEGORIES, "took its entry 'model'"),
    ],
    ids=["NaN", "categories", "wrapper"],
)
def test_variant_that_cannot_be_served_is_refused(capsys, directory, state, change, count, reason):
    weights.custom_variant(directory, change(state), count, transform=SMALL)
    status, output, _ = check(capsys, directory)
    assert status == 1
    last = output.splitlines()[-1]
    assert last.startswith("refused: pets: ")
    assert reason in last
    assert f"categories   {count}: " in output


def test_wrong_variant_json_is_refused_as_json_too(capsys, directory):
    (directory / "variant.json").write_text("{}")
    status, output, _ = check(capsys, directory, "--json")
    report = json.loads(output)
    assert (status, report["ok"]) == (1, False)
    assert "transform: Field required" in report["problems"][0]


@pytest.mark.parametrize("name", ["absent/pets", "no-such-variant"])
def test_directory_that_is_not_there_is_refused(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status, output, _ = check(capsys, name)
    assert status == 1
    assert output.startswith("refused: variants: ")
    assert name in output


def test_memory_limit_of_the_server_applies(capsys, directory, monkeypatch):
    monkeypatch.setenv("RESNET50_MAX_VARIANTS_BYTES", str(50 * 2**20))
    status, output, _ = check(capsys, directory)
    assert status == 1
    assert "refused: max_variants_bytes: pets takes about 116 MiB" in output


def test_transform_of_the_training_code_may_be_compared(capsys, directory):
    text = directory.parent / "transform.txt"
    text.write_text(repr(MATCHING))
    assert check(capsys, directory, "--transform-text", text)[0] == 0
    text.write_text(repr(MATCHING).replace("32, 32", "40, 40"))
    status, output, _ = check(capsys, directory, "--transform-text", text)
    assert status == 1
    last = output.splitlines()[-1]
    assert last.startswith("refused: transform: variant.json says resize 40 (bilinear), crop 32,")
    written = json.loads(last.partition('"transform": ')[2].removesuffix(" into variant.json"))
    assert written == SMALL | {"crop": 40, "interpolation": "bilinear"}


def test_transform_of_training_itself_is_refused(capsys, directory):
    text = directory.parent / "transform.txt"
    text.write_text(repr(v2.Compose([v2.RandomResizedCrop(224), MATCHING])))
    status, output, _ = check(capsys, directory, "--transform-text", text)
    assert status == 1
    assert "refused: transform text: RandomResizedCrop is random: it belongs to training" in output


def test_setting_that_is_wrong_is_wrong_usage(capsys, directory):
    status, output, errors = check(capsys, directory, "--device", "gpu")
    assert (status, output) == (2, "")
    assert "device" in errors
