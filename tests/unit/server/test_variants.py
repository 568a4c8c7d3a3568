from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.quantization import ResNet50_QuantizedWeights

from resnet50_server.errors import WeightsError
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.variants.network import build_network, parameter_count, read_weights
from resnet50_server.variants.spec import official_specs, parse_variant
from tests.support import weights
from tests.support.faults import unprivileged

pytestmark = weights.ignore_torchs_plans_for_int8

V1, V2 = ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2
INT8_V1 = ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V1
INT8_V2 = ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V2


def load(argument: str, directory: Path = Path("nowhere"), download: bool = False):
    spec = parse_variant(argument)
    weights = read_weights(spec, directory, download)
    network = build_network(spec, weights)
    return network, weights.digest, parameter_count(spec, weights)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("member", "resize", "acc_at_1"),
    [(V1, 256, 76.13), (V2, 232, 80.858), (INT8_V1, 256, 75.92), (INT8_V2, 232, 80.282)],
    ids=lambda value: getattr(value, "name", None),
)
def test_official_variants_are_those_of_torchvision(member, resize, acc_at_1):
    spec = parse_variant(member.name)
    assert spec.official.url == member.url
    assert (spec.transform.resize, spec.transform.crop) == (resize, 224)
    assert spec.transform.mean == tuple(member.transforms().mean)
    assert spec.transform.std == tuple(member.transforms().std)
    assert spec.transform.interpolation == "bilinear"
    assert list(spec.categories) == member.meta["categories"]
    assert len(spec.categories) == 1000
    assert spec.published.acc_at_1 == acc_at_1
    assert spec.published.dataset == "ImageNet-1K"
    assert spec.quantized == isinstance(member, ResNet50_QuantizedWeights)
    assert "`" not in spec.description


def test_all_official_variants_exist_with_one_default():
    assert list(official_specs()) == [one.name for one in (V1, V2, INT8_V1, INT8_V2)]
    assert parse_variant("DEFAULT") == parse_variant("IMAGENET1K_V2")
    aliases = {name: one.aliases for name, one in official_specs().items() if one.aliases}
    assert aliases == {"IMAGENET1K_V2": ("DEFAULT",)}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ResNet50_Weights.IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("ResNet50_Weights.DEFAULT", "IMAGENET1K_V2"),
        ("ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V2", "IMAGENET1K_FBGEMM_V2"),
    ],
)
def test_pythons_spelling_of_a_member_is_accepted(spelling, name):
    assert parse_variant(spelling).name == name


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("", "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("IMAGENET1K_V3", "NAME=DIRECTORY"),
        ("resnet50", "NAME=random:SEED"),
        ("=random:0", "1 to 64 letters"),
        ("a cat=random:0", "1 to 64 letters"),
        ("a" * 65 + "=random:0", "1 to 64 letters"),
        ("DEFAULT=random:0", "torchvision's name"),
        ("IMAGENET1K_V1=random:0", "torchvision's name"),
        ("ResNet50_Weights.IMAGENET1K_V1=random:0", "torchvision's"),
        ("ResNet50_Weights.mine=random:0", "torchvision's"),
        ("x=random:", "whole number"),
        ("x=random:-1", "whole number"),
        ("x=random:1.5", "whole number"),
        (f"x=random:{2**63}", "whole number"),
        ("x=/no/such/directory", "/no/such/directory/variant.json"),
    ],
)
def test_what_names_no_variant_is_refused_with_the_reason(argument, reason):
    with pytest.raises(WeightsError, match=r"^variants: ") as refused:
        parse_variant(argument)
    assert reason in str(refused.value)


def test_two_variants_of_one_name_are_refused():
    for arguments in (["x=random:0", "x=random:1"], ["DEFAULT", "IMAGENET1K_V2"]):
        with pytest.raises(WeightsError, match="given twice"):
            VariantRegistry([parse_variant(argument) for argument in arguments], None)


def test_default_variant_must_be_among_those_served():
    specs = [parse_variant("IMAGENET1K_V1"), parse_variant("x=random:0")]
    assert VariantRegistry(specs, "x").default.name == "x"
    with pytest.raises(WeightsError, match=r"default_variant.*IMAGENET1K_V2.*IMAGENET1K_V1, x"):
        VariantRegistry(specs, "IMAGENET1K_V2")


# Custom variants


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Iterator[Path]:
    """Holds a variant for each format of checkpoint, with the same weights."""
    folder = tmp_path_factory.mktemp("good")
    for checkpoint in ("weights.pth", "weights.safetensors"):
        weights.custom_variant(
            folder / checkpoint, weights.trained_like(), 1000, checkpoint=checkpoint
        )
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("checkpoint", ["weights.pth", "weights.safetensors"])
def test_folded_network_answers_as_torchvisions_own(good, checkpoint):
    network, digest, parameters = load(f"mine={good / checkpoint}")
    assert digest == sha256(good / checkpoint / checkpoint)
    assert parameters == 25_557_032
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode():
        embeddings, logits = network(weights.photos())
    reference = weights.run(weights.torchvision_model(weights.trained_like()), weights.photos())
    weights.assert_telling(*reference)
    assert (logits.softmax(dim=1) - reference[0]).abs().max() < 1e-4
    assert torch.cosine_similarity(embeddings, reference[1]).min() > 0.9999


def test_int8_network_answers_exactly_as_torchvisions_own(monkeypatch, tmp_path):
    state = weights.trained_like_int8()
    path = weights.publish(monkeypatch, INT8_V2, state, tmp_path)
    network, digest, parameters = load("IMAGENET1K_FBGEMM_V2", tmp_path)
    assert (digest, parameters) == (sha256(path), 25_557_032)
    with torch.inference_mode():
        embeddings, logits = network(weights.photos())
    reference = weights.run(weights.torchvision_model(state), weights.photos())
    weights.assert_telling(*reference)
    assert torch.equal(logits.softmax(dim=1), reference[0])
    assert torch.equal(embeddings, reference[1])


def test_int8_without_torchs_backend_says_what_to_serve(monkeypatch, tmp_path):
    """As on ARM, where torch is built without fbgemm."""
    weights.publish(monkeypatch, INT8_V2, {"conv1.weight": torch.ones(1)}, tmp_path)
    backends = type(torch.backends.quantized)
    monkeypatch.setattr(backends, "supported_engines", ["qnnpack", "none"])
    with pytest.raises(WeightsError, match="exists on x86 only") as refused:
        load("IMAGENET1K_FBGEMM_V2", tmp_path)
    text = str(refused.value)
    assert text.startswith("IMAGENET1K_FBGEMM_V2: torchvision's int8 weights need torch's backend")
    assert "(here: qnnpack, none); serve IMAGENET1K_V2 with --precision int8" in text


def test_every_module_of_a_loaded_network_is_in_eval_mode(monkeypatch, tmp_path):
    directory = weights.custom_variant(tmp_path / "mine", weights.hollow())
    weights.publish(monkeypatch, INT8_V2, weights.trained_like_int8(), tmp_path)
    for argument in (f"mine={directory}", "x=random:0", "IMAGENET1K_FBGEMM_V2"):
        network = load(argument, tmp_path)[0]
        assert [name for name, module in network.named_modules() if module.training] == [], argument


def test_safetensors_are_preferred_to_a_pickle(good):
    directory = good / "weights.safetensors"
    pickle = weights.save(weights.hollow(1000), directory / "weights.pth")
    try:
        digest = load(f"mine={directory}")[1]
    finally:
        pickle.unlink()
    assert digest == sha256(directory / "weights.safetensors")


def test_half_precision_and_missing_step_counters_load(tmp_path):
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in weights.hollow().items()
        if not key.endswith("num_batches_tracked")
    }
    network, _, _ = load(f"mine={weights.custom_variant(tmp_path / 'mine', state)}")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def changed(**replaced: object) -> dict[str, object]:
    """A hollow state dict with other values for some keys; "_" stands for "."; None drops one."""
    state = weights.hollow() | {key.replace("__", "."): value for key, value in replaced.items()}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "reasons"),
    [
        (changed(fc__weight=None, fc__bias=None), ["2 keys are missing (fc.weight, fc.bias)"]),
        (changed(neck__weight=torch.ones(3)), ["1 are unknown (neck.weight)"]),
        (
            {f"module.{key}": value for key, value in weights.hollow().items()},
            ["are unknown (module.conv1.weight", "stripped from its keys: 'module.' (DataPar"],
        ),
        (
            changed(conv1__weight=torch.ones(64, 3, 3, 3)),
            ["conv1.weight has shape (64, 3, 3, 3), expected (64, 3, 7, 7)"],
        ),
        (weights.hollow(7), ["fc has 7 classes, variant.json names 10 categories"]),
        (
            changed(bn1__bias=torch.full((64,), math.nan)),
            ["bn1.bias contains NaN or infinity"],
        ),
        (
            changed(bn1__bias=torch.full((64,), 1e39, dtype=torch.float64)),
            ["bn1.bias contains NaN or infinity, or values beyond float32"],
        ),
        (changed(bn1__bias=[0.0] * 64), ["bn1.bias is a list, not a tensor"]),
        (
            changed(bn1__bias=torch.ones(64, device="meta")),
            ["bn1.bias has no plain numbers: save the state_dict() in float32"],
        ),
        (
            {"state_dict": weights.hollow(), "epoch": 90},
            ["variants import", "took its entry 'state_dict'"],
        ),
        (
            {"model": weights.hollow(), "optimizer": {}},
            ["variants import", "took its entry 'model'"],
        ),
        ([torch.ones(3)], ["contains a list, not a state dict"]),
        ({3: torch.ones(3)}, ["not a state dict"]),
        (nn.Linear(2, 2), ["pickle that could run code", "state_dict() alone"]),
    ],
    ids=[
        *("missing keys", "unknown keys", "DataParallel", "wrong shape", "class count", "NaN"),
        "beyond float32",
        *(
            "no tensor",
            "on meta",
            "state_dict inside",
            "model inside",
            "a list",
            "numbered",
            "a module",
        ),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_with_the_reason(tmp_path, state, reasons):
    directory = weights.custom_variant(tmp_path / "mine", state)
    with pytest.raises(WeightsError, match=r"^mine: ") as refused:
        load(f"mine={directory}")
    for reason in reasons:
        assert reason in str(refused.value)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    directory = weights.custom_variant(tmp_path / "mine", {"fc.weight": Trap(sprung)})
    with pytest.raises(WeightsError, match="could run code"):
        load(f"mine={directory}")
    assert not sprung.exists()
    torch.load(directory / "weights.pth", weights_only=False)
    assert sprung.exists()  # it was a trap indeed


BROKEN = {
    "cut": lambda path, content: path.write_bytes(content[:100_000]),
    "empty": lambda path, content: path.write_bytes(b""),
    "garbage first": lambda path, content: path.write_bytes(b"\xff" * 64 + content[64:]),
    "a page of an error": lambda path, content: path.write_bytes(b"<html>404</html>" * 20),
    "a folder": lambda path, content: path.mkdir(),
}


@pytest.mark.parametrize("breakage", BROKEN)
@pytest.mark.parametrize("checkpoint", ["weights.pth", "weights.safetensors"])
def test_broken_checkpoint_is_refused_with_its_path(good, checkpoint, breakage, tmp_path):
    whole = good / checkpoint
    shutil.copy(whole / "variant.json", tmp_path)
    with (whole / checkpoint).open("rb") as file:
        BROKEN[breakage](tmp_path / checkpoint, file.read(2**20))
    advice = "copy it there again|has to be a file|download the file itself"
    with pytest.raises(WeightsError, match=f"^mine: .*{checkpoint} .*({advice})"):
        load(f"mine={tmp_path}")


@pytest.mark.parametrize("checkpoint", ["weights.pth", "weights.safetensors"])
def test_unreadable_checkpoint_is_refused_with_its_path(good, checkpoint):
    path = good / checkpoint / checkpoint
    spec = parse_variant(f"mine={path.parent}")
    path.chmod(0)
    try:
        with (
            pytest.raises(WeightsError, match=r"cannot be read \(Permission denied\)"),
            unprivileged(),
        ):
            read_weights(spec, Path(), download=False)
    finally:
        path.chmod(0o644)


def test_overwriting_a_served_file_does_not_change_weights(good, tmp_path):
    """Nothing is mapped to the file: copying over it changes no answer, and crashes no server."""
    directory = shutil.copytree(good / "weights.safetensors", tmp_path / "mine")
    network, digest = load(f"mine={directory}")[:2]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    path = directory / "weights.safetensors"
    with path.open("r+b") as file:  # in place, as cp does
        file.write(bytes(path.stat().st_size))
        file.truncate(1000)
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert digest != sha256(path)


def test_directory_without_a_checkpoint_is_refused(tmp_path):
    directory = weights.custom_variant(tmp_path / "mine", weights.hollow())
    (directory / "weights.pth").unlink()
    with pytest.raises(WeightsError, match=r"neither weights\.safetensors nor weights\.pth"):
        load(f"mine={directory}")


# Random variants


def test_random_variant_is_seeded_and_marked_untrained(caplog):
    state = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first, digest, parameters = load("x=random:7")
    assert "variant x is UNTRAINED" in caplog.text
    assert torch.equal(torch.random.get_rng_state(), state)
    second, again, _ = load("y=random:7")
    assert digest == again != load("z=random:8")[1]
    assert parameters == 25_557_032
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
