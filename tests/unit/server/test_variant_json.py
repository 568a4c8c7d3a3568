"""A variant.json: its keys, limits and errors."""

from __future__ import annotations

import math
import os

import pytest

from resnet50_server.errors import WeightsError
from resnet50_server.images.transform import LongerSide
from resnet50_server.variants.spec import parse_variant
from tests.support import weights


def test_directory_without_variant_json_is_refused(tmp_path):
    directory = weights.custom_variant(tmp_path / "mine", weights.hollow())
    (directory / "variant.json").unlink()
    with pytest.raises(WeightsError, match=r"mine=.*cannot read .*variant\.json: No such file"):
        parse_variant(f"mine={directory}")


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({"color": "red"}, "file: has 'color'; known are categories, transform, "),
        ({"categories": None}, "categories: Field required"),
        ({"categories": {}}, "categories: must be a list of names"),
        ({"activation": "tanh"}, "activation: "),
        ({"thresholds": [0.5, 0.5]}, "thresholds: are of the activation sigmoid; remove them"),
        (
            {"activation": "sigmoid", "thresholds": [0.5]},
            "thresholds: has 1 numbers for 10 categories; one for each is needed",
        ),
        (
            {"activation": "sigmoid", "thresholds": [2.0] * 10},
            "thresholds: must be a list of numbers from 0 to 1",
        ),
        ({"categories": ["cat", " "]}, "categories: 1: is empty"),
        ({"categories": "cat"}, "categories: must be a list of names"),
        (
            {"categories": ["cat", "\x1b[2J"]},
            r"categories: 1: '\x1b[2J' has characters that do not",
        ),
        ({"categories": ["a\nb", "\u202eb", "\x9b"]}, r"0: 'a\nb' has"),
        ({"categories": ["a" * 257]}, "0: has 257 characters, at most 256 are allowed"),
        ({"categories": ["a"] * 32_769}, "has 32769 names, at most 32768 are allowed"),
        ({"categories": ["é" * 200] * 6000}, "take 2400000 bytes together, at most 2097152"),
        ({"categories": list(range(1000))}, "2: is not a string; and 997 more"),
        ({str(key): 0 for key in range(300_000)}, "'2'; and 299997 more; known are"),
        ({"\x1b[2J": 0}, r"'\x1b[2J'"),
        ({"description": "a\x07"}, r"description: 'a\x07' has characters that do not print"),
        ({"description": "a" * 2001}, "description: has 2001 characters, at most 2000"),
        ({"transform": None}, "transform: Field required; it says how images were prepared in"),
        ({"transform": weights.TRANSFORM | {"resize": "224"}}, "transform.resize: must be the"),
        ({"transform": weights.TRANSFORM | {"resize": [224]}}, "or null for none"),
        ({"transform": weights.TRANSFORM | {"resize": {"longer": 9}}}, '{"longer_side": 224}'),
        ({"transform": weights.TRANSFORM | {"resize": True}}, "transform.resize: must be the"),
        ({"transform": weights.TRANSFORM | {"crop": None}}, "transform: crop is missing: images"),
        ({"transform": weights.TRANSFORM | {"crop": [1, 2, 3]}}, "transform.crop: must be the"),
        ({"transform": weights.TRANSFORM | {"fill": [0, 0]}}, "transform.fill: must be one level"),
        ({"transform": weights.TRANSFORM | {"channel_order": "GBR"}}, "transform.channel_order"),
        ({"transform": weights.TRANSFORM | {"input_range": [0, 2]}}, "must be [0, 1] or [0, 255]"),
        ({"transform": weights.TRANSFORM | {"padding": 3}}, "transform: has 'padding'; known are"),
        ({"transform": weights.TRANSFORM | {"crop": 0}}, "crop is 0, must be 1 to 4096"),
        ({"transform": weights.TRANSFORM | {"resize": 9000}}, "resize is 9000"),
        ({"transform": weights.TRANSFORM | {"std": [0.2, 0.0, 0.2]}}, "std holds"),
        ({"transform": weights.TRANSFORM | {"mean": [0.5, math.nan, 0.5]}}, "mean holds"),
        ({"transform": weights.TRANSFORM | {"mean": [0.5, 0.5]}}, "transform.mean"),
        ({"transform": weights.TRANSFORM | {"interpolation": "area"}}, "transform.interpolation"),
        ({"transform": weights.TRANSFORM | {"background": "red"}}, "background: is 'red', must be"),
        ({"published_accuracy": {"dataset": "pets", "acc_at_1": 101}}, "acc_at_1"),
        ({"published_accuracy": {"dataset": "\u2066", "acc_at_1": 1}}, r"'\u2066' has characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variant_json_that_is_wrong_is_refused_with_the_key(tmp_path, description, reason):
    directory = weights.custom_variant(tmp_path / "mine", {}, **description)
    with pytest.raises(WeightsError, match=r"^variants: mine: .*variant\.json: ") as refused:
        parse_variant(f"mine={directory}")
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 1500
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_variant_json_that_is_no_regular_file_is_refused(tmp_path, make):
    directory = weights.custom_variant(tmp_path / "mine", {})
    (directory / "variant.json").unlink()
    make(directory / "variant.json")
    with pytest.raises(WeightsError, match=r"cannot read .*variant\.json: is not a regular file"):
        parse_variant(f"mine={directory}")


def test_variant_json_that_is_too_long_is_refused(tmp_path):
    directory = weights.custom_variant(tmp_path / "mine", {})
    with (directory / "variant.json").open("ab") as file:
        file.truncate(9 * 2**20)
    with pytest.raises(WeightsError, match=r"variant\.json: is longer than 8 MiB"):
        parse_variant(f"mine={directory}")


def test_labels_of_all_languages_are_taken(tmp_path):
    labels = [
        "\u0634\u06cc\u0631\u200c\u0647\u0627",
        "हि\u200dन्दी",
        "猫\u3000二",
        "chien\u00a0!",
        "🦊",
    ]
    directory = weights.custom_variant(tmp_path / "mine", {}, categories=labels)
    assert parse_variant(f"mine={directory}").categories == tuple(labels)


def test_variant_json_that_is_no_json_is_refused(tmp_path):
    directory = weights.custom_variant(tmp_path / "mine", {})
    (directory / "variant.json").write_text("{categories:")
    with pytest.raises(WeightsError, match=r"variant\.json: .*JSON"):
        parse_variant(f"mine={directory}")


@pytest.mark.parametrize(
    ("written", "fields", "input_size"),
    [
        ({"resize": [192, 256]}, {"resize": (192, 256), "crop": None}, (192, 256)),
        ({"resize": {"longer_side": 99}, "crop": 99}, {"resize": LongerSide(99)}, (99, 99)),
        ({"resize": 64, "pad_to_square": True, "fill": 114}, {"fill": (114,) * 3}, (64, 64)),
        ({"resize": None, "crop": [32, 48]}, {"resize": None}, (32, 48)),
        ({"resize": 64, "crop": 64, "antialias": False}, {"antialias": False}, (64, 64)),
        (
            {"resize": 64, "crop": 64, "channel_order": "BGR", "input_range": [0, 255]},
            {"channel_order": "BGR", "input_range": (0, 255)},
            (64, 64),
        ),
    ],
    ids=str,
)
def test_transform_of_variant_json_is_read(tmp_path, written, fields, input_size):
    numbers = {key: weights.TRANSFORM[key] for key in ("mean", "std")}
    directory = weights.custom_variant(tmp_path / "mine", {}, transform=numbers | written)
    transform = parse_variant(f"mine={directory}").transform
    assert {name: getattr(transform, name) for name in fields} == fields
    assert transform.input_size == input_size


def test_custom_variant_is_described_by_its_file(tmp_path):
    accuracy = {"dataset": "pets", "acc_at_1": 92.5}
    transform = weights.TRANSFORM | {"resize": 288, "crop": 256, "interpolation": "bicubic"}
    directory = weights.custom_variant(
        tmp_path / "mine", {}, count=3, transform=transform, published_accuracy=accuracy
    )
    spec = parse_variant(f"pets={directory}")
    assert spec.name == "pets"
    assert spec.categories == ("kind 0", "kind 1", "kind 2")
    assert (spec.transform.resize, spec.transform.crop) == (288, 256)
    assert spec.transform.interpolation == "bicubic"
    assert (spec.published.acc_at_1, spec.published.acc_at_5) == (92.5, None)
    assert spec.transform.background is None


def test_variant_says_which_background_it_composites_on(tmp_path):
    transform = weights.TRANSFORM | {"background": "white"}
    directory = weights.custom_variant(tmp_path / "mine", {}, transform=transform)
    assert parse_variant(f"mine={directory}").transform.background == (255, 255, 255)
