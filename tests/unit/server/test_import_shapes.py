"""Checkpoint shapes that `variants import` converts: the answers are the original network's."""

from __future__ import annotations

import argparse
import collections
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import ResNetConfig, ResNetForImageClassification

from resnet50_server.errors import WeightsError
from resnet50_server.variants.importing.candidates import Choice
from resnet50_server.variants.importing.importer import ImportOptions, import_checkpoint
from resnet50_server.variants.network import build_model, build_network, read_weights
from resnet50_server.variants.spec import VariantSpec, parse_variant
from tests.support.checkpoints import (
    COUNT,
    answers,
    averaged,
    images,
    linear,
    network,
    prefixed,
    save,
    trained,
    unfilled,
)

NAMES = [f"kind {index}" for index in range(COUNT)]
# The outputs of the original network for `images`; None: the trained one's logits.
Made = tuple[Path, Tensor | None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: small images, so that threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return answers(network())


@pytest.fixture
def categories(tmp_path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES))
    return path


def imported(source: Path, directory: Path, **options: Any) -> tuple[list[str], VariantSpec]:
    """Import; return the lines and the variant."""
    lines = list(import_checkpoint(str(source), directory, ImportOptions(**options)))
    return lines, parse_variant(f"mine={directory}")


def hugging_face(**config: Any) -> ResNetForImageClassification:
    """Return Hugging Face's network with the trained weights, which it names otherwise."""
    config = {"num_labels": COUNT} | config
    model = unfilled(lambda: ResNetForImageClassification(ResNetConfig(**config)))
    # By position: both libraries register convolutions, norms and the head in one order, but for
    # the shortcuts, which are first in a block here and last in torchvision's.
    ours = trained()
    order = sorted(ours, key=_shortcut_first(list(ours)))
    theirs = model.state_dict()
    assert [ours[key].shape for key in order] == [value.shape for value in theirs.values()]
    state = dict(zip(theirs, (ours[key] for key in order), strict=True))
    model.load_state_dict(state, assign=True)
    return model.eval()


def _shortcut_first(keys: list[str]) -> Callable[[str], tuple[int, bool, int]]:
    blocks = {}
    for position, key in enumerate(keys):
        block = ".".join(key.split(".")[:2]) if key.startswith("layer") else key
        blocks.setdefault(block, position)

    def place(key: str) -> tuple[int, bool, int]:
        block = ".".join(key.split(".")[:2]) if key.startswith("layer") else key
        return blocks[block], "downsample" not in key, keys.index(key)

    return place


class Lightning(nn.Module):
    """A module of Lightning's kind: the network inside, a loss and a metric beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(COUNT))


class Classifier(nn.Module):
    """A network whose backbone and head are apart."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = network(head=nn.Identity())
        self.classifier = linear()

    def forward(self, batch: Tensor) -> Tensor:
        return self.classifier(self.backbone(batch))


class Everything:
    """An object of training code whose class the importer does not have."""

    def __init__(self) -> None:
        self.history = collections.defaultdict(list, {"loss": [0.5]})
        self.best = np.float64(0.75)


def plain(folder: Path) -> Made:
    return save(trained(), folder / "resnet50.pth"), None


def compile_network() -> Any:
    return torch.compile(network())


def data_parallel(folder: Path) -> Made:
    return save(nn.DataParallel(network()).state_dict(), folder / "best.pth"), None


def compiled(folder: Path) -> Made:
    return save(compile_network().state_dict(), folder / "best.pt"), None


def compiled_and_parallel(folder: Path) -> Made:
    model = nn.DataParallel(compile_network())
    return save({"model": model.state_dict()}, folder / "best.pt"), None


def fsdp(folder: Path) -> Made:
    state = {
        key.replace("layer", "_fsdp_wrapped_module.layer"): value
        for key, value in prefixed("_fsdp_wrapped_module.", trained()).items()
    }
    return save(state, folder / "full.pt"), None


def lightning(folder: Path) -> Made:
    checkpoint = {
        "epoch": 9,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": Lightning().state_dict(),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "hyper_parameters": argparse.Namespace(lr=0.1),
    }
    return save(checkpoint, folder / "epoch=9.ckpt"), None


def lightning_nested(folder: Path) -> Made:
    state = prefixed("model.net.", Classifier().state_dict())
    return save({"state_dict": state, "loops": {}}, folder / "last.ckpt"), None


def torchvision_reference(folder: Path) -> Made:
    average = AveragedModel(network(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.module.load_state_dict(averaged())
    checkpoint = {
        "model": trained(),
        "model_ema": average.state_dict(),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{}]},
        "lr_scheduler": {"base_lrs": [0.1]},
        "epoch": 599,
        "args": argparse.Namespace(data_path=Path("/data"), lr=0.5),
    }
    return save(checkpoint, folder / "model_599.pth"), None


def torchvision_reference_ema(folder: Path) -> Made:
    return torchvision_reference(folder)[0], answers(network(averaged()))


def tutorial(folder: Path) -> Made:
    checkpoint = {
        "epoch": 5,
        "model_state_dict": network().state_dict(),
        "optimizer_state_dict": torch.optim.SGD(linear().parameters(), 0.1).state_dict(),
        "loss": torch.tensor(0.4),
    }
    return save(checkpoint, folder / "checkpoint.tar"), None


def timm_checkpoint(folder: Path) -> Made:
    model = unfilled(lambda: timm.create_model("resnet50", num_classes=COUNT))
    model.load_state_dict(trained(), assign=True)
    checkpoint = {
        "arch": "resnet50",
        "state_dict": model.state_dict(),
        "state_dict_ema": averaged(),
        "args": argparse.Namespace(model="resnet50"),
        "metric": np.float64(80.1),
    }
    return save(checkpoint, folder / "model_best.pth.tar"), answers(model.eval())


def timm_ema(folder: Path) -> Made:
    return timm_checkpoint(folder)[0], answers(network(averaged()))


def net_and_accuracy(folder: Path) -> Made:
    return save({"net": trained(), "acc": 93.1, "epoch": 3}, folder / "ckpt.pth"), None


def mmpretrain(folder: Path) -> Made:
    state = {
        ("head." if key.startswith("fc.") else "backbone.") + key: value
        for key, value in trained().items()
    }
    meta = {"dataset_meta": {"classes": tuple(NAMES)}, "cfg": "model = dict(type='ResNet')"}
    return save({"meta": meta, "state_dict": state}, folder / "epoch_100.pth"), None


def hugging_face_directory(folder: Path) -> Made:
    model = hugging_face(id2label=dict(enumerate(NAMES)))
    model.save_pretrained(folder)
    return folder, answers(lambda batch: model(batch).logits)


def hugging_face_bin(folder: Path) -> Made:
    return save(hugging_face().state_dict(), folder / "pytorch_model.bin"), None


def half(folder: Path) -> Made:
    state = network().half().state_dict()
    exact = {key: value.float() for key, value in state.items() if value.is_floating_point()}
    return save(state, folder / "half.pth"), answers(network(trained() | exact))


def bfloat16_safetensors(folder: Path) -> Made:
    state = network().bfloat16().state_dict()
    exact = {key: value.float() for key, value in state.items() if value.is_floating_point()}
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors", answers(network(trained() | exact))


def double(folder: Path) -> Made:
    return save(network().double().state_dict(), folder / "double.pth"), None


def channels_last(folder: Path) -> Made:
    model = network().to(memory_format=torch.channels_last)
    return save(model.state_dict(), folder / "channels_last.pth"), None


def parameters(folder: Path) -> Made:
    state = dict(network().named_parameters()) | dict(network().named_buffers())
    return save(state, folder / "parameters.pth"), None


def dropout_head(folder: Path) -> Made:
    model = network(head=nn.Sequential(nn.Dropout(0.5), linear()))
    return save(model.state_dict(), folder / "dropout.pth"), answers(model.eval())


def head_without_bias(folder: Path) -> Made:
    model = network(head=linear(bias=False))
    return save(model.state_dict(), folder / "no_bias.pth"), answers(model)


def separate_head(folder: Path) -> Made:
    model = Classifier()
    return save(model.state_dict(), folder / "classifier.pth"), answers(model)


def sequential_pair(folder: Path) -> Made:
    model = nn.Sequential(network(head=nn.Identity()), nn.Dropout(0.2), linear()).eval()
    return save(model.state_dict(), folder / "pair.pth"), answers(model)


def children(folder: Path) -> Made:
    *body, head = network().children()
    model = nn.Sequential(*body, nn.Flatten(), head)
    return save(model.state_dict(), folder / "children.pth"), answers(model)


def old_format(folder: Path) -> Made:
    state = {key: value for key, value in trained().items() if not key.endswith("tracked")}
    path = save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return path, None


def unknown_classes(folder: Path) -> Made:
    checkpoint = {"trainer": Everything(), "network": trained(), "names": {"classes": NAMES}}
    return save(checkpoint, folder / "trainer.pth"), None


def averaged_beside(folder: Path) -> Made:
    state = prefixed("model.", trained()) | prefixed("ema_model.", averaged())
    return save({"state_dict": state}, folder / "both.ckpt"), None


IMPORTED: dict[str, tuple[Callable[[Path], Made], dict[str, Any], list[str]]] = {
    "plain": (plain, {}, []),
    "DataParallel": (data_parallel, {}, ["stripped from its keys: 'module.' (DataParallel)"]),
    "torch.compile": (compiled, {}, ["'_orig_mod.' (torch.compile)"]),
    "compiled and parallel": (compiled_and_parallel, {}, ["took its entry 'model'", "(DataParal"]),
    "FSDP": (fsdp, {}, ["'_fsdp_wrapped_module.' (FSDP)"]),
    "Lightning": (
        lightning,
        {},
        ["took its entry 'state_dict'", "keys: 'model.'", "left out 1 tensors: criterion.weight"],
    ),
    "Lightning, nested": (
        lightning_nested,
        {},
        ["keys: 'model.net.backbone.'", "layer 'model.net.classifier' as the head"],
    ),
    "torchvision's references": (torchvision_reference, {}, ["took its entry 'model'", "--ema"]),
    "torchvision's EMA": (
        torchvision_reference_ema,
        {"choice": Choice(ema=True)},
        ["took averaged weights (EMA): model_ema"],
    ),
    "PyTorch's tutorial": (tutorial, {}, ["took its entry 'model_state_dict'"]),
    "timm": (timm_checkpoint, {}, ["state_dict_ema: --ema takes those"]),
    "timm's EMA": (timm_ema, {"choice": Choice(key="state_dict_ema")}, ["(EMA): state_dict_ema"]),
    "net": (net_and_accuracy, {}, ["took its entry 'net'"]),
    "mmpretrain": (mmpretrain, {}, ["keys: 'backbone.'", "layer 'head.fc' as the head"]),
    "Hugging Face": (
        hugging_face_directory,
        {},
        ["renamed from the names of Hugging Face's ResNet", "layer 'classifier.1' as the head"],
    ),
    "Hugging Face, .bin": (hugging_face_bin, {}, ["assumed downsample_in_bottleneck=false"]),
    "float16": (half, {}, ["tensors from float16 to float32"]),
    "bfloat16": (bfloat16_safetensors, {}, ["tensors from bfloat16 to float32"]),
    "float64": (double, {}, ["tensors from float64 to float32"]),
    "channels_last": (channels_last, {}, []),
    "parameters": (parameters, {}, []),
    "Dropout, Linear": (dropout_head, {}, ["took its linear layer 'fc.1' as the head"]),
    "no bias": (head_without_bias, {}, ["its head has no bias: zeros"]),
    "separate head": (separate_head, {}, ["layer 'classifier' as the head"]),
    "Sequential pair": (sequential_pair, {}, ["keys: '0.'", "layer '2' as the head"]),
    "Sequential of children": (children, {}, ["Sequential(*resnet50().children())"]),
    "old format": (old_format, {}, []),
    "unknown classes": (unknown_classes, {}, ["took its entry 'network'"]),
    "EMA by prefix": (averaged_beside, {}, ["ema_model: --ema takes those", "keys: 'model.'"]),
}


@pytest.mark.parametrize("shape", IMPORTED)
def test_imported_checkpoint_answers_as_its_network(shape, tmp_path, categories, logits):
    make, options, expected = IMPORTED[shape]
    source, original = make(tmp_path / "source")
    directory = tmp_path / "mine"
    lines, spec = imported(source, directory, categories=categories, **options)
    for text in expected:
        assert any(text in line for line in lines), lines
    assert list(spec.categories) == NAMES
    served = answers(build_model(spec, read_weights(spec, Path(), download=False))).softmax(dim=1)
    wanted = (logits if original is None else original).softmax(dim=1)
    assert wanted.max(dim=1).values.min() > 2 / COUNT  # so that equality means something
    assert (served - wanted).abs().max() < 1e-4


def moco(folder: Path) -> Path:
    state = network(head=nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128)))
    query = prefixed("module.encoder_q.", state.state_dict())
    other = prefixed("module.encoder_k.", averaged())
    queue = {"module.queue": torch.ones(128, 4), "module.queue_ptr": torch.zeros(1)}
    return save({"state_dict": query | other | queue}, folder / "moco.pth.tar")


def dino(folder: Path) -> Path:
    backbone = network(head=nn.Identity()).state_dict()
    head = {"head.mlp.0.weight": torch.ones(8, 2048), "head.last_layer.weight_g": torch.ones(8, 1)}
    teacher = prefixed("module.backbone.", backbone) | prefixed("module.", head)
    student = {key: value * 2 for key, value in teacher.items()}
    return save({"student": student, "teacher": teacher}, folder / "dino.pth")


def backbone(folder: Path) -> Path:
    return save(network(head=nn.Identity()).state_dict(), folder / "backbone.pth")


def children_without_head(folder: Path) -> Path:
    model = nn.Sequential(*list(network().children())[:-1])
    return save(prefixed("encoder.", model.state_dict()), folder / "encoder.pth")


def two_layers(folder: Path) -> Path:
    head = nn.Sequential(nn.Linear(2048, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, COUNT))
    return save(network(head=head).state_dict(), folder / "two.pth")


HEADLESS: dict[str, tuple[Callable[[Path], Path], Choice]] = {
    "backbone": (backbone, Choice()),
    "Sequential of children": (children_without_head, Choice()),
    "MoCo": (moco, Choice()),
    "DINO": (dino, Choice(key="teacher")),
    "two layers, left out": (two_layers, Choice(head=False)),
}


@pytest.mark.parametrize("shape", HEADLESS)
def test_backbone_is_imported_for_its_embeddings(shape, tmp_path):
    make, choice = HEADLESS[shape]
    lines, spec = imported(make(tmp_path / "source"), tmp_path / "mine", choice=choice)
    model = build_network(spec, read_weights(spec, Path(), download=False))
    assert any("no classification head" in line for line in lines)
    assert spec.categories == ()
    with torch.inference_mode():
        embeddings, logits = model(images())
    assert logits.shape == (len(images()), 0)
    wanted = answers(network(head=nn.Identity()))
    assert (embeddings - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.fixture
def source(tmp_path) -> Iterator[Path]:
    yield save(trained(), tmp_path / "best.pth")


@pytest.mark.parametrize("entry", ["classes", "class_to_idx", "meta.CLASSES"])
def test_categories_in_the_checkpoint_are_used(tmp_path, entry):
    names = {name: index for index, name in enumerate(NAMES)} if "idx" in entry else NAMES
    outer, _, inner = entry.rpartition(".")
    extra = {outer: {inner: names}} if outer else {entry: names}
    source = save({"state_dict": trained(), **extra}, tmp_path / "best.pth")
    lines, spec = imported(source, tmp_path / "mine")
    assert f"categories: {COUNT}, from its entry {entry!r}" in lines
    assert list(spec.categories) == NAMES


def test_timms_config_gives_transform_and_categories(tmp_path, source):
    config = {
        "architecture": "resnet50",
        "label_names": NAMES,
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "crop_pct": 0.95,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines, spec = imported(source, tmp_path / "mine")
    assert list(spec.categories) == NAMES
    transform = spec.transform
    assert (transform.resize, transform.crop, transform.interpolation) == (235, 224, "bicubic")
    assert (transform.mean, transform.std) == ((0.5,) * 3, (0.25,) * 3)
    assert any("transform: from config.json" in line for line in lines)


def test_variant_in_the_directory_is_kept_unless_replaced(tmp_path, source, categories):
    directory = tmp_path / "mine"
    imported(source, directory, categories=categories)
    before = (directory / "weights.safetensors").read_bytes()
    with pytest.raises(WeightsError, match=r"has a variant\.json already.*--replace"):
        imported(source, directory, categories=categories)
    other = save(averaged(), tmp_path / "other.pth")
    imported(other, directory, categories=categories, replace=True)
    assert (directory / "weights.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["mine"]


def test_directory_of_an_import_that_was_killed_is_in_nobodys_way(tmp_path, source, categories):
    left = tmp_path / f".mine.{os.getpid()}.partial"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    imported(source, tmp_path / "mine", categories=categories)
    assert not left.exists()


def test_other_users_may_read_what_is_imported(tmp_path, categories):
    source = save(trained(), tmp_path / "model.pt")
    before = os.umask(0o022)
    try:
        imported(source, tmp_path / "pets", categories=categories)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "pets").iterdir()}
    assert modes == {"weights.safetensors": 0o644, "variant.json": 0o644}
