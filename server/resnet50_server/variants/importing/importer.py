"""Import a checkpoint: read, recognise, convert, and write it as a variant's directory."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.texts import escaped
from resnet50_server.variants.checkpoints import Weights
from resnet50_server.variants.network import build_model, is_plain
from resnet50_server.variants.official import official_facts
from resnet50_server.variants.spec import CHECKPOINT_NAMES, NAME, official_specs, parse_variant

from .candidates import Choice
from .categories import categories_in, problem_of_count, read_categories
from .model_card import ModelCard, model_card
from .recognition import Recognised, recognise
from .source import read_source

# The transform that a variant gets if nothing says which it was trained with.
DEFAULT_TRANSFORM = "IMAGENET1K_V1"


@dataclass(frozen=True)
class ImportOptions:
    """Facts that an importer cannot read from the file, and choices.

    Attributes:
        choice: Which network, where there are several.
        categories: File or folder that names the categories; None: from the checkpoint.
        transform: The `transform` of variant.json; None: from the checkpoint, or the default.
        activation: "softmax" or "sigmoid"; None: from the checkpoint, or softmax.
        threshold: For sigmoid, the least probability of a category in an answer; None for none.
        description: The `description` of variant.json.
        replace: Whether to replace a variant in the directory.
        sha256: SHA-256 that the file has to have, 64 hex digits; None for any.
    """

    choice: Choice = field(default_factory=Choice)
    categories: Path | None = None
    transform: dict[str, Any] | None = None
    activation: str | None = None
    threshold: float | None = None
    description: str = ""
    replace: bool = False
    sha256: str | None = None


def import_checkpoint(source: str, directory: Path, options: ImportOptions) -> Iterator[str]:
    """Write a variant's directory from a checkpoint; yield a line for each step.

    Args:
        source: Path or address of the file, or of a directory with one checkpoint.
        directory: The variant's; it appears once it is complete.
        options: Facts that the file does not state, and choices.

    Raises:
        WeightsError: The file is something else, or cannot be read or written; says which and what
            to do.
    """
    _require_free(directory, options.replace)
    checkpoint = yield from read_source(source, options.sha256)
    try:
        recognised = recognise(checkpoint.root, options.choice)
        card = model_card(checkpoint.config, recognised.scheme)
        yield from recognised.changes
        yield from card.lines
        state, converted = _converted(recognised)
        yield from converted
        description = yield from _description(checkpoint.root, recognised, card, options)
    except ValueError as error:
        raise WeightsError(f"{checkpoint.name} {error}") from error
    yield from _write(state, description, directory)


def _require_free(directory: Path, replace: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise WeightsError(f"{directory} is a file: name a directory, which may be a new one")
    for name in ("variant.json", *CHECKPOINT_NAMES):
        if not replace and (directory / name).exists():
            raise WeightsError(
                f"{directory} has a {name} already: name another directory, or add --replace"
            )


def _converted(recognised: Recognised) -> tuple[dict[str, Tensor], list[str]]:
    """Return dense float32 tensors without shared memory, and a line for each other dtype.

    Raises:
        ValueError: A tensor has no numbers to convert.
    """
    state, dtypes = {}, collections.Counter[str]()
    for key, value in recognised.state.items():
        if not is_plain(value):
            raise ValueError(f"has no plain numbers for {key}: save the state_dict() in float32")
        if key.endswith("num_batches_tracked"):
            state[key] = value.detach().to(torch.long).reshape(())
            continue
        if not value.is_floating_point():
            raise ValueError(f"has {key} in {_name(value.dtype)}: save the state_dict() in float32")
        if value.dtype != torch.float32:
            dtypes[_name(value.dtype)] += 1
        state[key] = value.detach().to(torch.float32, copy=True).contiguous()
    return state, [
        f"converted {many} tensors from {one} to float32" for one, many in dtypes.items()
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _description(
    root: object, recognised: Recognised, card: ModelCard, options: ImportOptions
) -> Generator[str, None, dict[str, Any]]:
    """Return the content of variant.json; yields a line for each part that was decided.

    Raises:
        ValueError: The categories are missing, or too many or few.
    """
    transform = options.transform or card.transform
    if transform is None:
        transform = dict(official_facts()["variants"][DEFAULT_TRANSFORM]["transform"])
        yield (
            f"transform: {DEFAULT_TRANSFORM}'s (resize {transform['resize']}, crop"
            f" {transform['crop']}), a guess: give the one of your training with --transform"
        )
    content: dict[str, Any] = {"transform": transform, "description": options.description}
    if not recognised.categories:
        yield "it has no classification head: it is served for embeddings, and Classify refuses"
        return content | {"categories": []}
    names = yield from _categories(root, recognised.categories, card, options)
    activation = options.activation or card.activation or "softmax"
    if activation != "softmax":
        yield f"activation: {activation}: a probability of its own for each category"
        content["activation"] = activation
    if options.threshold is not None:
        content["thresholds"] = [options.threshold] * len(names)
    return content | {"categories": names}


def _categories(
    root: object, count: int, card: ModelCard, options: ImportOptions
) -> Generator[str, None, list[str]]:
    """Return the names of categories; yields a line that says where they are from."""
    if options.categories is not None:
        names = read_categories(options.categories)
        if problem := problem_of_count(names, count):
            raise ValueError(f"does not fit {options.categories}: {problem}")
        yield f"categories: {count}, from {options.categories}"
        return names
    if len(card.categories) == count:
        yield f"categories: {count}, from config.json"
        return card.categories
    if (found := categories_in(root, count)) is not None:
        yield f"categories: {count}, from its entry {escaped(found[0])!r}"
        return found[1]
    imagenet = official_specs()[DEFAULT_TRANSFORM].categories
    if count == len(imagenet):
        yield f"categories: ImageNet-1K's {count}, a guess: give yours with --categories"
        return list(imagenet)
    raise ValueError(
        f"has {count} outputs without names: give them with --categories: a text file with a name"
        " in each line, a JSON file, or the folder of training images"
    )


def _write(state: dict[str, Tensor], description: dict[str, Any], directory: Path) -> Iterator[str]:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Hidden, so that a server that watches the directory above does not load it.
    partial = directory.absolute().parent / f".{directory.absolute().name}.{os.getpid()}.partial"
    try:
        # Of an import that was killed: in containers many processes have one number.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights, json_file = partial / CHECKPOINT_NAMES[0], partial / "variant.json"
        content = json.dumps(description, indent=1, ensure_ascii=False)
        json_file.write_text(content + "\n", encoding="utf-8")
        spec = parse_variant(f"imported={partial}")
        # Shapes, and that all numbers are finite.
        build_model(spec, Weights(dict(state), ""))
        save_file(state, weights, metadata={"format": "pt"})
        # safetensors makes it for its owner only; the server may run as another user.
        weights.chmod(stat.S_IMODE(json_file.stat().st_mode))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if not directory.exists():
            partial.rename(directory)
        else:
            for path in (weights, json_file):
                path.replace(directory / path.name)
    except WeightsError as error:
        # Its text names the directory that does not exist any more.
        raise WeightsError(str(error).replace(str(partial), str(directory))) from error
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        raise WeightsError(
            f"{directory} cannot be written: {getattr(error, 'strerror', None) or error}"
            + ("; free space there" if full else "")
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
    yield f"wrote {directory}: {CHECKPOINT_NAMES[0]} (SHA-256 {digest}) and variant.json"
    name = directory.absolute().name
    name = name if NAME.fullmatch(name) else "mine"
    yield f"serve it with: resnet50-server serve --variants {name}={directory}"
