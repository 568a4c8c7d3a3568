"""Variants without their weights: name, transform, categories, description."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from resnet50_server.errors import WeightsError
from resnet50_server.images.transform import Transform
from resnet50_server.runtime.texts import escaped, is_plain, listed
from resnet50_settings.problems import reason_of

from .disk import read_file
from .official import OfficialWeights, official_facts
from .strict_model import StrictModel
from .transform_file import TransformFile

EMBEDDING_DIMENSION = 2048
Activation = Literal["softmax", "sigmoid"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENUM_PREFIXES = ("ResNet50_Weights.", "ResNet50_QuantizedWeights.")
CHECKPOINT_NAMES = ("weights.safetensors", "weights.pth")
# Limits of a variant.json. The largest ImageNet has 21,841 categories, of 25 characters on average.
# All labels fit into one GetVariant response, of which clients accept 4 MiB.
MAX_FILE_BYTES = 8 * 2**20
MAX_CATEGORIES = 32_768
MAX_LABEL_CHARACTERS = 256
MAX_LABELS_BYTES = 2 * 2**20
MAX_DESCRIPTION_CHARACTERS = 2000
_TRANSFORM_HINT = (
    "; it says how images were prepared in training, see docs/reference/variant-format.md"
)


@dataclass(frozen=True)
class PublishedAccuracy:
    """Accuracy as published, in percent."""

    dataset: str
    acc_at_1: float
    acc_at_5: float | None = None


@dataclass(frozen=True)
class VariantSpec:
    """A variant without its weights.

    Attributes:
        name: Its name in requests.
        transform: Its preprocessing.
        categories: Names of its categories, by index; empty if it has no classification head.
        description: One or two sentences.
        activation: From logits to probabilities: "softmax" over all categories, or "sigmoid", a
            probability of its own for each.
        thresholds: With sigmoid, the least probability of each category in an answer; empty for
            none.
        official: torchvision's file of weights; None for custom and random variants.
        directory: Directory of a custom variant; None for others.
        seed: The seed of a random variant; None for others.
        aliases: Other names in requests.
        published: Published accuracy; None if unknown.
        digest: Beginning of the SHA-256 that its weights must have; empty for any.
    """

    name: str
    transform: Transform
    categories: tuple[str, ...] = field(repr=False)
    description: str
    official: OfficialWeights | None = None
    directory: Path | None = None
    seed: int | None = None
    aliases: tuple[str, ...] = ()
    published: PublishedAccuracy | None = None
    activation: Activation = "softmax"
    thresholds: tuple[float, ...] = field(default=(), repr=False)
    digest: str = ""

    @property
    def argument(self) -> str:
        """The `--variants` value that `parse_variant` reads it from."""
        if self.directory is not None:
            return f"{self.name}={self.directory}"
        return self.name if self.seed is None else f"{self.name}=random:{self.seed}"

    @cached_property
    def longest_label_bytes(self) -> int:
        """Length of the longest category's name in UTF-8; 0 without categories."""
        return max((len(label.encode()) for label in self.categories), default=0)

    @property
    def quantized(self) -> bool:
        """True for torchvision's int8 weights, which run on the CPU only."""
        return self.official is not None and self.official.quantized


def strip_enum_prefix(name: str) -> str:
    """Return a variant's name without the class of torchvision's enum."""
    for prefix in _ENUM_PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def official_specs() -> dict[str, VariantSpec]:
    """Return torchvision's variants by name, float ones first."""
    facts = official_facts()
    return {
        name: VariantSpec(
            name=name,
            aliases=("DEFAULT",) if name == facts["default"] else (),
            transform=_transform(fact["transform"]),
            categories=tuple(facts["categories"]),
            description=fact["description"],
            official=OfficialWeights(
                fact["url"], fact["size_mb"], fact["parameters"], fact["backend"]
            ),
            published=PublishedAccuracy(**fact["accuracy"]),
        )
        for name, fact in facts["variants"].items()
    }


def _transform(fact: dict[str, Any]) -> Transform:
    return Transform(**{**fact, "mean": tuple(fact["mean"]), "std": tuple(fact["std"])})


def parse_variant(argument: str) -> VariantSpec:
    """Read one `--variants` value: an official name, `NAME=DIR` or `NAME=random:SEED`.

    Raises:
        WeightsError: It is none of these, or the directory's description is wrong.
    """
    name, has_source, source = argument.partition("=")
    if not has_source:
        official, name = official_specs(), strip_enum_prefix(name)
        found = official.get(official_facts()["default"] if name == "DEFAULT" else name)
        if found is None:
            raise WeightsError(
                f"variants: {argument!r} is not one of torchvision's ({', '.join(official)},"
                " DEFAULT); a variant of your own is given as NAME=DIRECTORY, an untrained one as"
                " NAME=random:SEED"
            )
        return found
    if not NAME.fullmatch(name):
        raise WeightsError(
            f"variants: name {name!r}: 1 to 64 letters, digits, '.', '_' and '-' are allowed"
        )
    # The prefix is stripped from names in requests, so a variant with it would not be found.
    if strip_enum_prefix(name) != name or name == "DEFAULT" or name in official_specs():
        raise WeightsError(f"variants: {name} is torchvision's name; choose another for {source}")
    if source.startswith("random:"):
        return _random(name, source)
    return _custom(name, Path(source))


def _random(name: str, source: str) -> VariantSpec:
    seed = source.removeprefix("random:")
    if not seed.isdecimal() or int(seed) >= 2**63:
        raise WeightsError(f"variants: {name}={source}: the seed must be a whole number from 0")
    model = official_specs()[official_facts()["default"]]
    return VariantSpec(
        name=name,
        transform=model.transform,
        categories=model.categories,
        description=f"Untrained: weights drawn at random with seed {seed}. Answers mean nothing.",
        seed=int(seed),
    )


class _AccuracyFile(StrictModel):
    dataset: str
    acc_at_1: float = Field(ge=0, le=100)
    acc_at_5: float | None = Field(default=None, ge=0, le=100)

    @field_validator("dataset")
    @classmethod
    def _short(cls, dataset: str) -> str:
        return _checked(dataset, MAX_LABEL_CHARACTERS)


class _VariantFile(StrictModel):
    """`variant.json` of a custom variant."""

    categories: tuple[str, ...]
    transform: TransformFile
    description: str = ""
    published_accuracy: _AccuracyFile | None = None
    activation: Activation = "softmax"
    thresholds: tuple[float, ...] = ()

    @field_validator("thresholds", mode="before")
    @classmethod
    def _in_range(cls, thresholds: Any, info: ValidationInfo) -> Any:
        if not isinstance(thresholds, list) or not all(
            isinstance(one, int | float) and 0 <= one <= 1 for one in thresholds
        ):
            raise ValueError("must be a list of numbers from 0 to 1, one for each category")
        if thresholds and info.data.get("activation") != "sigmoid":
            raise ValueError("are of the activation sigmoid; remove them")
        count = len(info.data.get("categories", ()))
        if thresholds and count != len(thresholds):
            raise ValueError(
                f"has {len(thresholds)} numbers for {count} categories; one for each is needed"
            )
        return thresholds

    @field_validator("categories", mode="before")
    @classmethod
    def _named(cls, categories: Any) -> Any:
        # One error for all of them, where pydantic would report each.
        if not isinstance(categories, list):
            raise ValueError(
                "must be a list of names, one for each output of the network; an empty one for a"
                " network without a classification head"
            )
        if len(categories) > MAX_CATEGORIES:
            raise ValueError(f"has {len(categories)} names, at most {MAX_CATEGORIES} are allowed")
        problems = []
        for index, label in enumerate(categories):
            if not isinstance(label, str):
                problems.append(f"{index}: is not a string")
            elif not label.strip():
                problems.append(f"{index}: is empty")
            else:
                try:
                    _checked(label, MAX_LABEL_CHARACTERS)
                except ValueError as error:
                    problems.append(f"{index}: {error}")
        if problems:
            raise ValueError(listed(problems))
        size = sum(len(label.encode()) for label in categories)
        if size > MAX_LABELS_BYTES:
            raise ValueError(f"take {size} bytes together, at most {MAX_LABELS_BYTES} are allowed")
        return categories

    @field_validator("description")
    @classmethod
    def _short(cls, description: str) -> str:
        return _checked(description, MAX_DESCRIPTION_CHARACTERS)


def _checked(text: str, max_length: int) -> str:
    """Return a text that is safe to display.

    Raises:
        ValueError: It is too long, or has characters that control a terminal.
    """
    if len(text) > max_length:
        raise ValueError(f"has {len(text)} characters, at most {max_length} are allowed")
    if not is_plain(text):
        shown = escaped(text[:64]) + ("..." if len(text) > 64 else "")
        raise ValueError(f"'{shown}' has characters that do not print, which are not allowed")
    return text


def _custom(name: str, directory: Path) -> VariantSpec:
    path = directory / "variant.json"
    try:
        file = _VariantFile.model_validate_json(read_file(path, MAX_FILE_BYTES))
    except OSError as error:
        raise WeightsError(
            f"variants: {name}={directory}: cannot read {path}: {error.strerror}; a custom variant"
            f" is a directory with variant.json and {' or '.join(CHECKPOINT_NAMES)}"
        ) from error
    except ValidationError as error:
        reasons = [
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: "
            + reason_of(problem)
            + (_TRANSFORM_HINT if problem["loc"] == ("transform",) else "")
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise WeightsError(f"variants: {name}: {path}: {listed(reasons)}") from error
    transform = file.transform.to_transform()
    if problems := transform.problems():
        raise WeightsError(f"variants: {name}: {path}: transform: {'; '.join(problems)}")
    accuracy = file.published_accuracy
    return VariantSpec(
        name=name,
        transform=transform,
        categories=file.categories,
        description=file.description,
        directory=directory,
        published=PublishedAccuracy(**accuracy.model_dump()) if accuracy else None,
        activation=file.activation,
        thresholds=file.thresholds,
    )
