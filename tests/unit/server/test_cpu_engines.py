"""Engines for the CPU: which one computes, from what, and whether it answers as PyTorch does."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torchvision.models.quantization import ResNet50_QuantizedWeights

from resnet50_server.engines import autoselect, onnx_export
from resnet50_server.engines.base import Engine, Images
from resnet50_server.engines.graph_cache import DIGEST_DIGITS
from resnet50_server.errors import WeightsError
from resnet50_server.variants.network import Network
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.cpu_engines import (
    CATEGORIES,
    CROP,
    GRAPHS,
    assert_equal,
    in_order,
    open_variant,
    pictures,
)
from tests.support.pictures import encode, photo_like

pytestmark = weights.ignore_torchs_plans_for_int8

UINT8 = onnx.TensorProto.UINT8


@pytest.fixture(scope="module")
def caffe_graphs(tmp_path_factory) -> Path:
    """A graph cache for weights that Caffe trained."""
    return tmp_path_factory.mktemp("caffe graphs")


@pytest.fixture
def cache(exported, tmp_path) -> Path:
    """A copy of that, to change."""
    for graph in exported.glob("*.onnx"):
        shutil.copy(graph, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """An int8 variant of torchvision's, and the folder of its weights."""
    member = ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V2
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as monkeypatch:
        weights.publish(monkeypatch, member, weights.int8_of(weights.calm()), folder)
        yield member.name, folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures to calibrate with."""
    directory = tmp_path_factory.mktemp("calibration")
    for seed in range(20):
        (directory / f"{seed}.png").write_bytes(encode(photo_like(80, 70, seed)))
    return directory


@pytest.mark.parametrize("kind", GRAPHS)
def test_float_weights_are_computed_as_by_pytorch(mine, exported, kind):
    expected = open_variant(mine, exported, engine="torch")
    found = open_variant(mine, exported, engine=kind)
    assert (found.kind, found.precision, found.digest) == (kind, "fp32", expected.digest)
    for batch in (pictures(1), pictures(4)):
        right = expected.engine.run(batch, CATEGORIES, True)
        assert_equal(found.engine.run(batch, CATEGORIES, True), right, tolerance=1e-4)
        assert right.probabilities.max() > 0.2  # it answers something


@pytest.mark.parametrize("kind", ["torch", *GRAPHS])
def test_bgr_of_0_to_255_and_not_square_is_computed_as_by_torchvision(tmp_path, caffe_graphs, kind):
    transform = {
        "resize": [48, 80],
        "mean": [103.53, 116.28, 123.675],
        "std": [57.375, 57.12, 58.395],
        "channel_order": "BGR",
        "input_range": [0, 255],
    }
    state = weights.calm(3, CATEGORIES)
    directory = weights.custom_variant(tmp_path / "caffe", state, CATEGORIES, transform=transform)
    opened = open_variant(f"caffe={directory}", caffe_graphs, engine=kind)
    images = [np.asarray(photo_like(80, 48, seed)) for seed in range(3)]
    bgr = torch.from_numpy(np.stack(images)[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(transform[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = weights.run(weights.torchvision_model(state), (bgr - mean) / std)
    found = opened.engine.run(images, CATEGORIES, True)
    assert np.abs(in_order(found) - expected[0].numpy()).max() <= 1e-4
    assert np.allclose(found.embeddings, expected[1].numpy(), rtol=1e-3, atol=1e-4)
    swapped = opened.engine.run([image[..., ::-1] for image in images], CATEGORIES, True)
    assert np.abs(in_order(swapped) - expected[0].numpy()).max() > 1e-2


def test_each_int8_layer_of_a_graph_is_torchvisions_to_one_level():
    """Each layer is given what the graph gave to it, so that rounding cannot add up."""
    model = weights.torchvision_model(weights.trained_like_int8())
    transform = parse_variant("IMAGENET1K_FBGEMM_V1").transform
    graph = onnx_export.onnx_graph(Network(model), transform)
    steps = [
        node.output[0] for node in graph.graph.node if node.op_type in ("QuantizeLinear", "MaxPool")
    ]
    for name in steps:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, UINT8, None))
    # With [1] in place of scalars, onnxruntime computes most of it in float.
    shapes = {tuple(one.dims) for one in graph.graph.initializer if one.data_type == UINT8}
    assert shapes == {()}
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    images = np.stack(pictures(3, 224))
    found = iter(session.run(steps, {"images": images}))
    compared = 0

    def same(expected: Tensor) -> Tensor:
        """Compare with the graph's next step; return that as torchvision would have it."""
        nonlocal compared
        levels = torch.from_numpy(next(found))
        assert (levels.int() - expected.int_repr().int()).abs().max() <= 1
        compared += 1
        return torch._make_per_tensor_quantized_tensor(
            levels, expected.q_scale(), expected.q_zero_point()
        )

    normalised = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        - torch.tensor(transform.mean).view(3, 1, 1)
    ) / torch.tensor(transform.std).view(3, 1, 1)
    with torch.inference_mode():
        x = same(model.quant(normalised))
        x = same(model.maxpool(same(model.conv1(x))))
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            for block in layer:
                y = same(block.conv3(same(block.conv2(same(block.conv1(x))))))
                shortcut = same(block.downsample(x)) if block.downsample is not None else x
                x = same(block.skip_add_relu.add_relu(y, shortcut))
        x = same(model.avgpool(x))
        same(model.fc(x.flatten(1)))
    assert compared == len(steps) == 1 + 53 + 1 + 16 + 1 + 1


@pytest.mark.parametrize("kind", GRAPHS)
def test_official_int8_matches_pytorch_within_rounding(official, kind):
    name, folder = official
    one, two = (
        open_variant(name, folder, engine=engine, weights_dir=folder) for engine in ("torch", kind)
    )
    assert (two.kind, two.precision, two.quantization) == (kind, "int8", None)
    batch = pictures(4, 224)
    right = one.engine.run(batch, 1000, True)
    assert_equal(two.engine.run(batch, 1000, True), right, tolerance=0.15)
    assert right.probabilities[:, 0].min() > 0.03


def test_official_int8_stays_with_pytorch_unless_asked(official, tmp_path):
    name, folder = official
    opened = open_variant(name, tmp_path / "cache", weights_dir=folder)
    assert opened.kind == "torch"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", GRAPHS)
def test_two_instances_compute_at_once_and_apart(mine, exported, kind):
    opened = open_variant(mine, exported, engine=kind, instances=2, engine_threads=1)
    batches = [[picture] for picture in pictures(4)] * 4
    expected = [opened.engine.run(batch, CATEGORIES, True) for batch in batches]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda batch: opened.engine.run(batch, CATEGORIES, True), batches))
    for one, two in zip(found, expected, strict=True):
        assert_equal(one, two, tolerance=1e-6)


@pytest.mark.parametrize("kind", [*GRAPHS, "torch"])
def test_an_answer_is_not_changed_by_the_next_batch(mine, exported, kind):
    engine = open_variant(mine, exported, engine=kind).engine
    one, two = pictures(2)
    first = engine.run([one], CATEGORIES, True)
    before = (first.probabilities.copy(), first.embeddings.copy())
    engine.run([two], CATEGORIES, True)
    assert (first.probabilities == before[0]).all()
    assert (first.embeddings == before[1]).all()


def test_a_graph_is_made_once_for_its_weights(mine, exported, monkeypatch):
    before = open_variant(mine, exported, engine="onnxruntime")
    expected = before.engine.run(pictures(), CATEGORIES, True)

    def refuse(*_: object) -> Network:
        raise AssertionError("built again")

    monkeypatch.setattr("resnet50_server.variants.network.build_network", refuse)
    again = open_variant(mine, exported, engine="onnxruntime")
    assert_equal(again.engine.run(pictures(), CATEGORIES, True), expected, tolerance=0.0)


def test_wrong_category_count_is_refused_with_a_cached_graph(mine, exported, tmp_path):
    made = Path(mine.partition("=")[2])
    (tmp_path / "weights.pth").symlink_to(made / "weights.pth")
    description = json.loads((made / "variant.json").read_text())
    description["categories"].append("one more")
    (tmp_path / "variant.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match=r"^mine: .* fc has 10 classes, variant\.json names 11"):
        open_variant(f"mine={tmp_path}", exported, engine="onnxruntime")


def test_graphs_are_keyed_by_weights_and_transform(tmp_path):
    arguments = []
    state = weights.calm(3, CATEGORIES)
    other = state | {"fc.bias": state["fc.bias"] + 1.0}
    for name, numbers, crop in (("one", state, CROP), ("two", other, CROP), ("three", state, 32)):
        transform = weights.TRANSFORM | {"resize": crop, "crop": crop}
        directory = weights.custom_variant(
            tmp_path / name, numbers, CATEGORIES, transform=transform
        )
        arguments.append(f"{name}={directory}")
    for argument in arguments:
        open_variant(argument, tmp_path / "cache", engine="onnxruntime")
    assert len(list((tmp_path / "cache").glob("*.onnx"))) == 3


def test_unwritable_cache_dir_does_not_stop_the_server(mine, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        opened = open_variant(mine, tmp_path / "file" / "cache", engine="onnxruntime")
    assert opened.engine.run(pictures(1), 1, False).probabilities.shape == (1, 1)
    (record,) = [one for one in caplog.records if "graph_cache_dir" in one.message]
    assert "cannot be written" in record.message


def test_a_flipped_bit_of_a_graph_changes_no_answer(mine, cache, caplog):
    before = open_variant(mine, cache, engine="onnxruntime")
    expected = before.engine.run(pictures(), CATEGORIES, True)
    (path,) = cache.glob("*.onnx")
    with path.open("r+b") as file:  # in the middle of the weights: it stays a graph
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x40]))
    onnx.load(path)
    again = open_variant(mine, cache, engine="onnxruntime")
    assert_equal(again.engine.run(pictures(), CATEGORIES, True), expected, tolerance=0.0)
    assert "is damaged and will be exported again" in caplog.text


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_that_a_runtime_cannot_read_is_named_and_removed(mine, cache, kind):
    (path,) = cache.glob("*.onnx")
    other = b"whole, but no graph"
    stem = path.name.split(".")[0]
    path.unlink()
    path = path.with_name(f"{stem}.{hashlib.sha256(other).hexdigest()[:DIGEST_DIGITS]}.onnx")
    path.write_bytes(other)
    with pytest.raises(WeightsError, match=f"engine: {kind} cannot read .*{path.name}"):
        open_variant(mine, cache, engine=kind)
    assert open_variant(mine, cache, engine=kind).kind == kind


@pytest.mark.parametrize("broken", GRAPHS)
def test_a_runtime_that_cannot_be_imported_is_left_out(mine, tmp_path, monkeypatch, caplog, broken):
    monkeypatch.setitem(sys.modules, f"resnet50_server.engines.{broken}_engine", None)
    with pytest.raises(WeightsError, match=f"engine: {broken} is installed, but cannot be import"):
        open_variant(mine, tmp_path, engine=broken)
    assert list(tmp_path.glob("*.onnx"))
    with caplog.at_level(logging.WARNING):
        assert open_variant(mine, tmp_path).kind in {"torch", *GRAPHS} - {broken}
    assert f"{broken} is installed, but cannot be imported" in caplog.text


def test_a_graph_that_finds_no_memory_is_kept(mine, exported, monkeypatch):
    (path,) = exported.glob("*.onnx")

    def open_graph(*_):
        raise RuntimeError("bad allocation")

    monkeypatch.setattr(autoselect, "load_graph", open_graph)
    with pytest.raises(RuntimeError, match="bad allocation"):
        open_variant(mine, exported, engine="onnxruntime")
    assert path.exists()


def test_a_graph_that_differs_from_pytorch_is_not_used(mine, tmp_path, monkeypatch, caplog):
    right = onnx_export.onnx_graph

    def wrong(network, transform):
        graph = right(network, transform)
        bias = next(one for one in graph.graph.initializer if list(one.dims) == [CATEGORIES])
        values = onnx.numpy_helper.to_array(bias) + np.arange(CATEGORIES, dtype=np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return graph

    monkeypatch.setattr(onnx_export, "onnx_graph", wrong)
    with pytest.raises(WeightsError, match=r"mine: .* differ by .* use --engine torch"):
        open_variant(mine, tmp_path, engine="openvino")
    with caplog.at_level(logging.WARNING):
        assert open_variant(mine, tmp_path).kind == "torch"
    assert "differ by" in caplog.text
    assert not list(tmp_path.glob("*.onnx"))


def test_auto_takes_the_fastest_and_measures_a_machine_once(mine, cache, monkeypatch):
    rates = {"TorchEngine": 1.0, "OnnxRuntimeEngine": 3.0, "OpenVinoEngine": 2.0}
    measured: list[str] = []

    def rate(engine: Engine, images: Images, top_k: int) -> float:
        measured.append(type(engine).__name__)
        return rates[measured[-1]]

    monkeypatch.setattr(autoselect, "images_per_s", rate)
    assert open_variant(mine, cache, engine_threads=1).kind == "onnxruntime"
    assert sorted(measured) == sorted(rates)
    rates["OpenVinoEngine"] = 9.0
    assert open_variant(mine, cache, engine_threads=1).kind == "onnxruntime"
    assert len(measured) == 3
    # Threads change what is fastest, so it is measured again.
    assert open_variant(mine, cache, engine_threads=2).kind == "openvino"
    # An engine that is hardly slower and needs less memory is chosen.
    rates["OpenVinoEngine"] = 3.2
    assert open_variant(mine, cache, engine_threads=3).kind == "onnxruntime"


def test_without_the_extra_only_pytorch_is_available(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(autoselect.importlib.util, "find_spec", lambda name: None)
    assert open_variant(mine, tmp_path).kind == "torch"
    with pytest.raises(WeightsError, match=r"openvino is not installed: install .*\[cpu\]"):
        open_variant(mine, tmp_path, engine="openvino")
    with pytest.raises(WeightsError, match="int8 of float weights needs onnxruntime or OpenVINO"):
        open_variant(mine, tmp_path, precision="int8")


@pytest.mark.parametrize(
    ("engine", "precision"), [("onnxruntime", "bf16"), ("openvino", "fp16"), ("torch", "int8")]
)
def test_a_precision_that_an_engine_lacks_is_refused(mine, tmp_path, folder, engine, precision):
    with pytest.raises(WeightsError, match=f"engine: {engine} does not compute {precision}"):
        open_variant(mine, tmp_path, engine=engine, precision=precision, calibration_dir=folder)


def test_bf16_runs_in_openvino_and_stays_near(mine, exported):
    right = open_variant(mine, exported, engine="torch").engine.run(pictures(), 10, True)
    opened = open_variant(mine, exported, engine="openvino", precision="bf16")
    assert opened.precision == "bf16"
    assert_equal(opened.engine.run(pictures(), 10, True), right, tolerance=0.1)


def test_importing_openvino_neither_forks_nor_calls_anyone():
    program = """
import sys
def refuse(event, arguments):
    if event in ("os.fork", "os.posix_spawn", "subprocess.Popen", "socket.getaddrinfo",
                 "socket.connect"):
        print(event, arguments)
sys.addaudithook(refuse)
from resnet50_server.engines import openvino_engine
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(10)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_signals_work_after_openvino_engines_are_closed(exported):
    """OpenVINO gives a thread a stack for its signals, and must not take that one away again."""
    (graph,) = exported.glob("*.onnx")
    program = """
import os, signal, sys
from pathlib import Path
from resnet50_server.engines.openvino_engine import OpenVinoEngine
signal.signal(signal.SIGTERM, lambda *_: print("stopping"))
engines = [OpenVinoEngine(Path(sys.argv[1]), "fp32", 1, 1) for _ in range(2)]
while engines:
    engines.pop(0).close()
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, graph], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "stopping\n"), done.stderr


def test_random_networks_have_graphs_too(tmp_path):
    opened = open_variant("untrained=random:0", tmp_path, engine="onnxruntime")
    assert (opened.kind, opened.trained) == ("onnxruntime", False)
    assert torch.isfinite(
        torch.tensor(opened.engine.run(pictures(1, 224), 1, True).embeddings)
    ).all()
