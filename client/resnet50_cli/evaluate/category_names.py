"""Categories of a variant by the names that folders and label files give them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet50_client.types import Variant

IMAGENET = "ImageNet-1K"
_WORDNET_ID = re.compile(r"n\d{8}")
_SEPARATORS = re.compile(r"[\s_-]+")


class CategoryNames:
    """Finds the categories of a variant.

    Args:
        variant: The variant, with its categories.
        other_names: Further names by category, such as WordNet IDs, from `read_names`.
    """

    def __init__(self, variant: Variant, other_names: Mapping[str, int]) -> None:
        self._variant = variant
        self._other_names = other_names
        self._exact = _by_name(variant.categories)
        self._similar = _by_name([_simplified(one) for one in variant.categories])

    def find(self, names: Sequence[str], place: str) -> dict[str, int]:
        """Return the index of the category that each name means.

        A name is looked up among the names of the label file, then among the categories, first as
        it is, then without regard to case, spaces, hyphens and underscores. If that does not find
        all of them, numbers are indices. As many WordNet IDs as there are categories of ImageNet-1K
        are in the order of the categories.

        Args:
            names: Different names.
            place: Where the names are from, for errors.

        Raises:
            ValueError: A name means no category, or more than one.
        """
        if self._are_all_of_imagenet(names):
            return {name: index for index, name in enumerate(sorted(names))}
        named = {name: self._by_name(name) for name in names}
        if all(len(found) == 1 for found in named.values()):
            return {name: found[0] for name, found in named.items()}
        return {name: self._one(name, named[name], place) for name in names}

    def _one(self, name: str, found: Sequence[int], place: str) -> int:
        if name.isascii() and name.isdecimal() and int(name) < len(self._variant.categories):
            found = sorted({*found, int(name)})
        if len(found) == 1:
            return found[0]
        count = len(self._variant.categories)
        if found:
            raise ValueError(
                f"{place}: {name!r} may be category {' or '.join(map(str, found))} of"
                f" {self._variant.name}; name it by its index"
            )
        if _WORDNET_ID.fullmatch(name):
            raise ValueError(
                f"{place}: {name!r} is a WordNet ID, and {self._variant.name} has names only; pass"
                " --labels with a .json or .txt file that says which category each ID is"
            )
        raise ValueError(
            f"{place}: {name!r} is no category of {self._variant.name}; name it like a category,"
            f" e.g. {self._variant.categories[0]!r}, or by its index, 0 to {count - 1}"
        )

    def _by_name(self, name: str) -> Sequence[int]:
        if name in self._other_names:
            return (self._other_names[name],)
        exact = self._exact.get(name)
        return self._similar.get(_simplified(name), []) if exact is None else exact

    def _are_all_of_imagenet(self, names: Sequence[str]) -> bool:
        """Return True for the folders of ImageNet-1K, which its categories follow when sorted."""
        published = self._variant.published_accuracy
        return (
            not self._other_names
            and published is not None
            and published.dataset == IMAGENET
            and len(names) == len(self._variant.categories)
            and all(map(_WORDNET_ID.fullmatch, names))
        )


def read_names(path: Path, variant: Variant) -> dict[str, int]:
    """Read other names of a variant's categories from a .json or .txt file.

    JSON: a list in the order of the categories; or an object of name: category, name: index, or,
    as Keras has it, index: [name, ...]. Text: a name per line, in the order of the categories; or
    a name and the category behind it.

    Args:
        path: The file.
        variant: The variant, with its categories.

    Raises:
        ValueError: The file has none of these forms, or its categories are not the variant's.
        OSError: The file cannot be read.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    categories = CategoryNames(variant, {})
    place = f"--labels {path}"
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) == len(variant.categories):
            return _in_order([line.split()[0] for line in lines], variant, place)
        pairs = [line.split(maxsplit=1) for line in lines]
        if not all(len(pair) == 2 for pair in pairs):
            raise ValueError(
                f"{place}: has {len(lines)} lines, {variant.name} has {len(variant.categories)}"
                " categories; write a name for each of them in their order, or a name and its"
                " category in each line"
            )
        return _named(dict(pairs), categories, place)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: is no JSON: {error}") from error
    if isinstance(content, list) and all(isinstance(one, str) for one in content):
        return _in_order(content, variant, place)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{place}: is neither a JSON object nor a list of names")
    return _named(_flattened(content, place), categories, place)


def _in_order(names: Sequence[str], variant: Variant, place: str) -> dict[str, int]:
    if len(names) != len(variant.categories):
        raise ValueError(
            f"{place}: has {len(names)} names, {variant.name} has"
            f" {len(variant.categories)} categories"
        )
    return {name: index for index, name in enumerate(names)}


def _flattened(content: Mapping[str, Any], place: str) -> dict[str, str]:
    """Return name: category, or index as a string, of all forms that objects may have."""
    found = {}
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], str) and key.isdecimal():
            found[value[0]] = key
        elif isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            found[key] = str(value)
        else:
            raise ValueError(
                f"{place}: the value of {key!r} is no category, index or list of names"
            )
    return found


def _named(names: Mapping[str, str], categories: CategoryNames, place: str) -> dict[str, int]:
    index_of = categories.find(list(dict.fromkeys(names.values())), place)
    return {name: index_of[category] for name, category in names.items()}


def _by_name(names: Sequence[str]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        indices.setdefault(name, []).append(index)
    return indices


def _simplified(name: str) -> str:
    """Return a name without what file systems and people change: Unicode form, case, separators."""
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFC", name)).strip().casefold()
