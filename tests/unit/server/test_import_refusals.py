"""Files that `variants import` refuses: the sentence names what they are and what to do."""

from __future__ import annotations

import gzip
import io
import json
import math
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from resnet50_server.errors import WeightsError
from resnet50_server.variants.importing.candidates import Choice
from resnet50_server.variants.importing.importer import ImportOptions, import_checkpoint
from resnet50_server.variants.network import build_network, read_weights
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.checkpoints import COUNT, hollow, prefixed, save


def error_of(source: Path, directory: Path, **options: Any) -> str:
    """Return the error of an import, which leaves nothing behind."""
    with pytest.raises(WeightsError) as refused:
        list(import_checkpoint(str(source), directory, ImportOptions(**options)))
    assert not directory.exists()
    assert not list(directory.parent.glob(".*.partial"))
    return str(refused.value)


def hollow50(**changed: Any) -> dict[str, Any]:
    """Return a ResNet50's state dict of ones with other values; None drops a key."""
    state = weights.hollow(COUNT) | {key.replace("__", "."): one for key, one in changed.items()}
    return {key: value for key, value in state.items() if value is not None}


def with_head(head: Callable[[], nn.Module]) -> dict[str, Any]:
    def build() -> nn.Module:
        model = models.resnet50(weights=None)
        model.fc = head()
        return model

    return hollow(build)


def fastai_head() -> nn.Module:
    return nn.Sequential(nn.Linear(4096, 512), nn.BatchNorm1d(512), nn.Linear(512, COUNT))


def hugging_face() -> dict[str, Any]:
    from transformers import ResNetConfig, ResNetForImageClassification  # seconds

    return hollow(lambda: ResNetForImageClassification(ResNetConfig()))


def from_timm(name: str) -> dict[str, Any]:
    import timm  # seconds

    return hollow(lambda: timm.create_model(name))


def low_rank_adapter() -> dict[str, Any]:
    return {"base_model.model.layer1.0.conv1.lora_A.weight": torch.ones(4, 64, 1, 1)}


def clip() -> dict[str, Any]:
    backbone = prefixed("visual.", hollow50(fc__weight=None, fc__bias=None))
    return backbone | {
        "visual.conv2.weight": torch.ones(32, 32, 3, 3),
        "visual.conv3.weight": torch.ones(64, 32, 3, 3),
        "visual.attnpool.positional_embedding": torch.ones(50, 2048),
    }


def segmentation() -> dict[str, Any]:
    backbone = prefixed("backbone.", hollow50(fc__weight=None, fc__bias=None))
    return backbone | {"classifier.0.convs.0.0.weight": torch.ones(256, 2048, 1, 1)}


def with_first_convolution(*shape: int) -> dict[str, Any]:
    return hollow50(conv1__weight=torch.ones(*shape))


SERVED = "only torchvision's resnet50 is served; train that one"

# State dicts of other networks, and their names in the refusal.
NETWORKS: dict[str, tuple[Callable[[], Any], str]] = {
    "wide_resnet50_2": (lambda: hollow(models.wide_resnet50_2), "holds wide_resnet50_2"),
    "resnext50": (lambda: hollow(models.resnext50_32x4d), "holds resnext50_32x4d"),
    "resnext101": (lambda: hollow(models.resnext101_32x8d), "holds resnext101_32x8d"),
    "resnet18": (lambda: hollow(models.resnet18), "holds resnet18"),
    "resnet34": (lambda: hollow(models.resnet34), "holds resnet34"),
    "resnet101": (lambda: hollow(models.resnet101), "holds resnet101"),
    "resnet152": (lambda: prefixed("model.", hollow(models.resnet152)), "holds resnet152"),
    "SE-ResNet": (lambda: from_timm("seresnet50"), "an SE-ResNet"),
    "ECA-ResNet": (lambda: from_timm("ecaresnet50t"), "an ECA-ResNet"),
    "resnet50d": (lambda: from_timm("resnet50d"), "holds a resnet50d"),
    "resnet50c": (lambda: from_timm("resnet50c"), "a resnet50c or"),
    "GroupNorm": (lambda: from_timm("resnet50_gn"), "with GroupNorm"),
    "BiT": (lambda: from_timm("resnetv2_50x1_bit"), "a ResNetV2 (BiT)"),
    "ResNeSt": (lambda: from_timm("resnest50d"), "a ResNeSt"),
    "Res2Net": (lambda: from_timm("res2net50_26w_4s"), "a Res2Net"),
    "ViT": (lambda: hollow(models.vit_b_16), "holds a vision transformer"),
    "Swin": (lambda: hollow(models.swin_t), "holds a Swin Transformer"),
    "ConvNeXt": (lambda: hollow(models.convnext_tiny), "holds a ConvNeXt"),
    "EfficientNet": (lambda: hollow(models.efficientnet_b0), "holds an EfficientNet"),
    "MobileNet": (lambda: hollow(models.mobilenet_v2), "holds a MobileNetV2"),
    "DenseNet": (lambda: hollow(models.densenet121), "holds a DenseNet"),
    "VGG": (lambda: hollow(models.vgg11), "holds a VGG or AlexNet"),
    "RegNet": (lambda: from_timm("regnety_002"), "holds a RegNet"),
    "CLIP": (clip, "holds CLIP's modified ResNet"),
    "segmentation": (segmentation, "holds a segmentation network"),
    "grey": (lambda: with_first_convolution(64, 1, 7, 7), "for images of 1 channels"),
    "CIFAR": (
        lambda: with_first_convolution(64, 3, 3, 3),
        "for small images, with a first convolution of 3x3",
    ),
    "LoRA": (low_rank_adapter, "holds a LoRA adapter"),
    "other": (lambda: {"encoder.weight": torch.ones(3)}, "holds no ResNet among its 1 tensors"),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_other_network_is_refused_by_its_name(network, tmp_path):
    build, name = NETWORKS[network]
    source = save({"state_dict": build()}, tmp_path / "source.pth")
    text = error_of(source, tmp_path / "mine")
    assert text.startswith(f"{source} ")
    assert name in text
    assert SERVED in text
    assert len(text) < 500


# Contents that have a ResNet50 or part of one, and cannot be imported as they are.
CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "two layers": (
        lambda: with_head(lambda: nn.Sequential(nn.Linear(2048, 64), nn.Linear(64, COUNT))),
        "its head has 2 linear layers (fc.0, fc.1), and ResNet50's is one: train the head as one",
    ),
    "fastai": (lambda: with_head(fastai_head), "its head has 2 linear layers"),
    "head on 4096": (
        lambda: with_head(lambda: nn.Linear(4096, COUNT)),
        "its head fc takes 4096 inputs, and ResNet50's pooled vector has 2048",
    ),
    "layer before the head": (
        lambda: hollow50() | {"neck.weight": torch.ones(2048)},
        "has 1 tensors beside ResNet50's (neck.weight), which may change the answers of its head",
    ),
    "layer in a block": (
        lambda: hollow50(layer3__0__scale=torch.ones(3)),
        "has 1 tensors within ResNet50's layers that it does not have (layer3.0.scale)",
    ),
    "half of it": (
        lambda: {key: one for key, one in hollow50().items() if not key.startswith("layer4.2")},
        "holds a ResNet with 15 bottleneck blocks",
    ),
    "one missing": (
        lambda: hollow50(layer4__2__conv3__weight=None),
        "lacks 1 of ResNet50's tensors (layer4.2.conv3.weight): save the whole state_dict()",
    ),
    "NaN": (
        lambda: hollow50(bn1__bias=torch.full((64,), math.nan)),
        "bn1.bias contains NaN or infinity",
    ),
    "wrong shape": (
        lambda: hollow50(layer2__0__bn2__bias=torch.ones(3)),
        "layer2.0.bn2.bias has shape (3,), expected (128,)",
    ),
    "integers": (
        lambda: hollow50(conv1__weight=torch.ones(64, 3, 7, 7, dtype=torch.int8)),
        "has conv1.weight in int8: save the state_dict() in float32",
    ),
    "sparse": (
        lambda: hollow50(conv1__weight=torch.ones(64, 3, 7, 7).to_sparse()),
        "has no plain numbers for conv1.weight",
    ),
    "several": (
        lambda: {"first": hollow50(), "second": hollow50()},
        "has 2 networks; it holds first, second: choose one with --key NAME",
    ),
    "blur": (
        lambda: {"arch": "resnetblur50", "state_dict": hollow50()},
        "is a resnetblur50, which smooths before it halves an image",
    ),
    "Caffe's style": (
        lambda: {"meta": {"cfg": "backbone=dict(depth=50, style='caffe')"}, "model": hollow50()},
        "is a ResNet-50 in Caffe's style (meta: style='caffe')",
    ),
    "endless keys": (lambda: {"x." * 50_000: torch.ones(1)}, "has a key of 100000 characters"),
    "many networks": (
        lambda: {f"m{number}.layer1.0.conv1.weight": torch.ones(1) for number in range(1000)},
        "has 64 networks; it holds m0, m1, ",
    ),
    "optimizer": (
        lambda: {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "is the state of an optimizer, without a network",
    ),
    "list": (lambda: [torch.ones(3)], "holds a list, not a state dict"),
    "tensor": (lambda: torch.ones(3), "holds a Tensor, not a state dict"),
    "nothing": (dict, "holds no tensors but nothing"),
    "no tensors": (lambda: {"epoch": 3}, "holds no tensors but epoch"),
    "module": (
        lambda: nn.Sequential(nn.Linear(2, 2)),
        "is a pickled torch.nn.modules.container.Sequential object, which only its own code can",
    ),
    "module inside": (
        lambda: {"epoch": 3, "model": nn.Linear(2, 2)},
        "has a pickled torch.nn.modules.linear.Linear object as its entry 'model'",
    ),
    "class count": (lambda: weights.hollow(7), "has 7 outputs without names: give them with --cat"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_unsuitable_content_is_refused_with_the_reason(content, tmp_path):
    build, reason = CONTENTS[content]
    source = save(build(), tmp_path / "source.pth")
    options = {} if content == "class count" else {"categories": _names(tmp_path)}
    assert reason in error_of(source, tmp_path / "mine", **options)


def _names(folder: Path) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join(f"kind {index}" for index in range(COUNT)))
    return path


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name in names:
            written.writestr(name, b"1")
    return file.getvalue()


def torchscript() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


def onnx_model() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, producer_name="pytorch").SerializeToString()


def numpy_archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.ones(3))
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as written:
        written.addfile(tarfile.TarInfo("model.pth"))
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 102530333\n"
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "TorchScript": (torchscript, "is a TorchScript archive"),
    "torch.export": (lambda: archive("m/models/model.json", "m/version"), "torch.export"),
    "ONNX": (onnx_model, "is an ONNX model"),
    "Keras, HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file, as Keras writes"),
    "Keras": (lambda: archive("config.json", "model.weights.h5"), "is a Keras model"),
    "TensorFlow Lite": (lambda: b"\x1c\0\0\0TFL3" + bytes(64), "is a TensorFlow Lite model"),
    "NumPy": (numpy_archive, "holds NumPy arrays"),
    "git-lfs": (lambda: POINTER, "is a git-lfs pointer, not the file itself: run `git lfs pull`"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>Sign in", "is a web page"),
    "JSON": (lambda: b'{"architectures": ["ResNetForImageClassification"]}', "is a JSON file"),
    "gzip": (lambda: gzip.compress(b"weights"), "is compressed with gzip: run `gunzip`"),
    "tar": (tar, "is a tar archive: unpack it first"),
    "ZIP": (lambda: archive("resnet50.pth"), "is a ZIP archive: unpack it first"),
    "JPEG": (lambda: b"\xff\xd8\xff\xe0" + bytes(64), "is a JPEG image"),
    "GGUF": (lambda: b"GGUF" + bytes(64), "is a GGUF file"),
    "empty": (lambda: b"", "is empty: copy it there again"),
    "garbage": (lambda: b"\xfe" * 64, "was refused: it is broken"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("reader", ["import", "server"])
def test_other_kind_of_file_is_named(kind, reader, tmp_path):
    content, name = FILES[kind]
    source = tmp_path / "source" / "weights.pth"
    source.parent.mkdir()
    source.write_bytes(content())
    if reader == "import":
        assert name in error_of(source, tmp_path / "mine")
        return
    weights.custom_variant(tmp_path / "variant", {})
    source.replace(tmp_path / "variant" / "weights.pth")
    spec = parse_variant(f"mine={tmp_path / 'variant'}")
    with pytest.raises(WeightsError) as refused:
        read_weights(spec, tmp_path, download=False)
    assert name in str(refused.value)


DIRECTORIES = {
    "TensorFlow": (["saved_model.pb"], "is a TensorFlow SavedModel"),
    "shards": (["model.safetensors.index.json"], "is a checkpoint in several files"),
    "torch.distributed": ([".metadata", "__0_0.distcp"], "is a checkpoint of torch.distributed"),
    "DeepSpeed": (["zero_to_fp32.py", "latest"], "is a checkpoint of DeepSpeed"),
    "several": (["a.pth", "b.ckpt"], "is a directory with 2 checkpoints (a.pth, b.ckpt)"),
    "none": (["README.md"], "is a directory without a checkpoint"),
}


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_directory_of_another_kind_is_named(kind, tmp_path):
    names, reason = DIRECTORIES[kind]
    source = tmp_path / "source"
    source.mkdir()
    for name in names:
        (source / name).write_bytes(b"1")
    assert f"{source} {reason}" in error_of(source, tmp_path / "mine")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"downsample_in_bottleneck": True}, "is a ResNet-50 v1, whose stride is in the 1x1"),
        ({"downsample_in_first_stage": True}, "halves the image in its first stage"),
        ({"hidden_act": "gelu"}, "has the activation 'gelu' (config.json: hidden_act)"),
    ],
)
def test_hugging_face_network_that_differs_is_refused(tmp_path, config, reason):
    source = save(hugging_face(), tmp_path / "source" / "pytorch_model.bin")
    (source.parent / "config.json").write_text(json.dumps(config))
    assert reason in error_of(source.parent, tmp_path / "mine")


def test_safetensors_of_another_network_are_named(tmp_path):
    save_file({"bert.embeddings.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    assert "holds a language model" in error_of(tmp_path / "model.safetensors", tmp_path / "mine")


class Trap:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


class Command:
    """Runs a command when it is unpickled by a reader that runs code."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_does_not_run(tmp_path, legacy):
    sprung = tmp_path / "sprung"
    for number, trap in enumerate((Trap(sprung), Command(f"touch {sprung}"))):
        content = {"model": hollow50(), "callback": trap}
        source = tmp_path / f"trap{number}.pth"
        save(content, source, _use_new_zipfile_serialization=not legacy)
        text = error_of(source, tmp_path / "mine", categories=_names(tmp_path))
        assert "a pickle that could run code (it needs " in text
        assert not sprung.exists()
    torch.load(source, weights_only=False)
    assert sprung.exists()  # it was a trap indeed


def test_choice_that_matches_nothing_lists_the_networks(tmp_path):
    source = save({"state_dict": hollow50()}, tmp_path / "source.pth")
    text = error_of(source, tmp_path / "mine", choice=Choice(key="teacher"))
    assert "has no network for --key teacher; it holds state_dict: choose" in text
    text = error_of(source, tmp_path / "mine", choice=Choice(ema=True))
    assert "has no network for --ema; it holds state_dict" in text


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        (
            lambda: prefixed("module.", weights.hollow()),
            "`resnet50-server variants import {} NEW_DIRECTORY`",
        ),
        (
            lambda: {"model_state_dict": weights.hollow()},
            "a variant of it (took its entry 'model_state_",
        ),
        (lambda: hollow(models.resnet101), "the file holds resnet101: only torchvision's resnet50"),
    ],
)
def test_servers_refusal_says_what_an_import_would_do(tmp_path, state, hint):
    directory = weights.custom_variant(tmp_path / "mine", state())
    spec = parse_variant(f"mine={directory}")
    with pytest.raises(WeightsError) as refused:
        build_network(spec, read_weights(spec, tmp_path, download=False))
    assert hint.format(directory) in str(refused.value)


def test_texts_from_a_file_are_bounded_and_plain(tmp_path):
    state = {f"\x1b[2J{'x' * 900}{number}": torch.ones(1) for number in range(100)}
    text = error_of(save(state, tmp_path / "source.pth"), tmp_path / "mine")
    assert len(text) < 700
    assert text.isprintable()
