"""Names of categories from a text file, a JSON file, a folder of images, or a checkpoint."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

from resnet50_server.runtime.texts import escaped, listed
from resnet50_server.variants.disk import read_file
from resnet50_server.variants.spec import MAX_CATEGORIES, MAX_FILE_BYTES

# Folders of a data set's parts, each of which has a folder for each category.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Entries of checkpoints that name categories, at their top or in a dict there.
_ENTRIES = (
    *("categories", "classes", "CLASSES", "class_names", "label_names", "labels"),
    *("class_to_idx", "idx_to_class", "id2label"),
)
_DICTS = ("meta", "hyper_parameters", "dataset_meta", "args", "config", "hparams")
_NUMBERED = re.compile(r"(\d+)\s*[:,;\t ]\s*(\S.*)")
_SYNSET = re.compile(r"n\d{8}[\t ,]+(\S.*)")


def read_categories(path: Path) -> list[str]:
    """Return the names of categories, by index.

    Args:
        path: A text file with a name in each line; a JSON file with a list of names, or an object
            of names by index or of indices by name (also within `id2label`, as Hugging Face's
            config.json); or a directory with a subdirectory for each category, as torchvision's
            ImageFolder.

    Raises:
        ValueError: It is none of these; says which part is wrong.
    """
    try:
        if path.is_dir():
            return _folders(path)
        text = read_file(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text.lstrip().startswith(("{", "[")):
        return _lines(text, path)
    try:
        content = _parsed(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is neither JSON nor a name in each line: {error}") from error
    names = names_by_index(content)
    if names is None:
        raise ValueError(
            f"{path} has to hold a list of names, names by index from 0 without gaps, or indices"
            " by name"
        )
    return names


def categories_in(checkpoint: object, count: int) -> tuple[str, list[str]] | None:
    """Return an entry of a checkpoint that names `count` categories, and the names.

    Args:
        checkpoint: The object in the file.
        count: Number of outputs of the head.
    """
    if not isinstance(checkpoint, Mapping):
        return None
    inner = {key: checkpoint[key] for key in _DICTS if isinstance(checkpoint.get(key), Mapping)}
    for prefix, dictionary in (("", checkpoint), *((f"{key}.", one) for key, one in inner.items())):
        for key in _ENTRIES:
            names = names_by_index(dictionary.get(key))
            if names is not None and len(names) == count:
                return f"{prefix}{key}", names
    return None


def _folders(directory: Path) -> list[str]:
    names = sorted(path.name for path in directory.iterdir() if path.is_dir())
    if not names:
        raise ValueError(f"{directory} has no folders: a folder for each category is expected")
    if {name.lower() for name in names} <= _SPLITS:
        raise ValueError(
            f"{directory} has the folders {', '.join(names)}: name one of them, which has a folder"
            " for each category"
        )
    return names


def _lines(text: str, path: Path) -> list[str]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines or lines == [""]:
        raise ValueError(f"{path} is empty: a name in each line is expected")
    if empty := [str(number) for number, line in enumerate(lines, 1) if not line]:
        raise ValueError(f"{path}: line {listed(empty, separator=', ')} is empty")
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if [match and int(match[1]) for match in numbered] == list(range(len(lines))):
        lines = [match[2] for match in numbered if match]
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    if all(synsets):
        lines = [match[1] for match in synsets if match]
    return lines


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        # Python's own dicts, as lists of ImageNet's labels are often published.
        return ast.literal_eval(text)


def names_by_index(content: object) -> list[str] | None:
    """Return names by index; None if the content is of another form."""
    if isinstance(content, Mapping):
        if isinstance(content.get("id2label"), Mapping):
            return names_by_index(content["id2label"])
        content = _by_index(content)
    if not isinstance(content, list | tuple) or not 0 < len(content) <= MAX_CATEGORIES:
        return None
    # ImageNet's index has pairs: ["n01440764", "tench"].
    names = [one[-1] if isinstance(one, list | tuple) and one else one for one in content]
    return list(names) if all(isinstance(name, str) for name in names) else None


def _by_index(content: Mapping[object, object]) -> list[object] | None:
    """Return a dict's names in the order of their indices, which are its keys or its values."""
    by_index: dict[int, object] = {}
    for key, value in content.items():
        if isinstance(value, int) and not isinstance(value, bool):
            by_index[value] = key
        elif isinstance(key, int) or (isinstance(key, str) and key.isdecimal() and len(key) < 9):
            by_index[int(key)] = value
        else:
            return None
    if len(by_index) != len(content) or by_index.keys() != set(range(len(content))):
        return None
    return [by_index[index] for index in range(len(by_index))]


def problem_of_count(names: list[str], count: int) -> str | None:
    """Return why names do not fit a head of `count` outputs; None if they do."""
    if len(names) == count:
        return None
    hidden = [name for name in names if name.startswith(".")]
    hint = f"; {escaped(hidden[0][:64])} counts as one" if hidden else ""
    return f"{len(names)} categories for a head of {count} outputs{hint}: name each output once"
