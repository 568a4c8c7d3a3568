"""int8 that the server makes of float weights: calibration, comparison, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from resnet50_server.engines import autoselect, quantize
from resnet50_server.engines.base import Images
from resnet50_server.engines.quantize import Agreement
from resnet50_server.errors import WeightsError
from resnet50_server.lifecycle.engine_builder import BuiltEngine
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.variants.spec import parse_variant
from tests.support.cpu_engines import GRAPHS, open_variant
from tests.support.pictures import encode, photo_like


@pytest.fixture
def cache(exported, tmp_path) -> Path:
    """A copy of that, to change."""
    for graph in exported.glob("*.onnx"):
        shutil.copy(graph, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures to calibrate with."""
    directory = tmp_path_factory.mktemp("calibration")
    for seed in range(20):
        (directory / f"{seed}.png").write_bytes(encode(photo_like(80, 70, seed)))
    return directory


@pytest.mark.parametrize("kind", GRAPHS)
def test_int8_is_quantized_and_compared_on_other_images(mine, cache, folder, kind, monkeypatch):
    used: list[Images] = []
    write = quantize.quantize_graph

    def watched(graph: Path, images: Images, out: Path) -> None:
        used.append(images)
        write(graph, images, out)

    monkeypatch.setattr(autoselect, "quantize_graph", watched)
    # tests/integration/cli/test_digits.py says how little int8 changes answers that matter.
    asked = {"engine": kind, "precision": "int8", "min_int8_agreement": 0.0}
    opened = open_variant(mine, cache, calibration_dir=folder, **asked)
    assert (opened.kind, opened.precision) == (kind, "int8")
    found = opened.quantization
    assert (found.calibration_images, found.compared_images) == (15, 5)
    assert 0.0 <= found.top_1 <= 1.0 and 0.99 < found.cosine < 1.0
    # The convolutions really are int8.
    graph = next(onnx.load(path).graph for path in cache.glob("*-int8-*.onnx"))
    assert sum(one.data_type == onnx.TensorProto.INT8 for one in graph.initializer) >= 53
    # ... and so is what lies between them: a Relu of its own would be float.
    assert not [node for node in graph.node if node.op_type == "Relu"]
    images = quantize.read_images(folder, parse_variant(mine).transform, quantize.ImageLimits())
    assert len(used) == 1 and len(used[0]) == 15
    for held_out in images.held_out:
        assert not any((held_out == one).all() for one in used[0])
    again = open_variant(mine, cache, calibration_dir=folder, **asked)
    assert again.quantization == found
    assert len(used) == 1


def test_int8_that_strays_too_far_is_refused(mine, cache, folder, monkeypatch):
    monkeypatch.setattr(autoselect, "compare", lambda *_: Agreement(15, 5, 0.6, 0.99), raising=True)
    with pytest.raises(WeightsError, match=r"60\.0% of 5 images .*min_int8_agreement is 90\.0%"):
        open_variant(mine, cache, precision="int8", calibration_dir=folder)
    opened = open_variant(
        mine, cache, precision="int8", calibration_dir=folder, min_int8_agreement=0.5
    )
    assert opened.quantization.top_1 == 0.6


def test_int8_needs_images_and_names_one_that_is_broken(mine, exported, folder, tmp_path):
    with pytest.raises(WeightsError, match="--calibration-dir"):
        open_variant(mine, exported, precision="int8")
    few = tmp_path / "few"
    few.mkdir()
    (few / "one.png").write_bytes(encode(photo_like(80, 70, 0)))
    with pytest.raises(WeightsError, match="holds 1 files; int8 needs at least 16"):
        open_variant(mine, exported, precision="int8", calibration_dir=few)
    for path in folder.iterdir():
        (few / path.name).write_bytes(path.read_bytes())
    (few / "notes.txt").write_text("not an image")
    with pytest.raises(WeightsError, match=r"notes\.txt cannot be used"):
        open_variant(mine, exported, precision="int8", calibration_dir=few)


def test_calibration_images_may_be_below_a_hidden_folder(folder, tmp_path):
    hidden = tmp_path / ".data" / "images"
    shutil.copytree(folder, hidden)
    (hidden / ".thumbnails").mkdir()
    (hidden / ".thumbnails" / "x.png").write_bytes(b"no image")
    transform = parse_variant("IMAGENET1K_V2").transform
    found = quantize.read_images(hidden, transform, quantize.ImageLimits())
    assert len(found.calibrating) + len(found.held_out) == len(list(folder.iterdir()))


def test_vectors_of_int8_made_here_have_a_space_of_their_own():
    def space(quantization: object) -> str:
        opened = BuiltEngine(None, "openvino", "ab" * 32, 1, "cpu", "int8", True, quantization)
        return LoadedVariant(parse_variant("IMAGENET1K_V2"), opened, None, None, None).space

    assert space(None) == "IMAGENET1K_V2@abababababab"
    assert space(Agreement(1, 1, 1.0, 1.0)) == "IMAGENET1K_V2@abababababab-int8"
