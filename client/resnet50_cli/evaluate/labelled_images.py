"""Labelled images: a folder for each category, or a CSV file of paths and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resnet50_bulk.file_names import text_to_name
from resnet50_bulk.image_files import LeftOut, find_images, is_companion, is_hidden, walk

from .category_names import CategoryNames

PATH, LABEL = "path", "label"


@dataclass(frozen=True)
class LabelledImage:
    """An image and its category.

    Attributes:
        path: Path of the image.
        label: Index of its category.
    """

    path: str
    label: int


class LabelledImages(Protocol):
    """A set of labelled images, which is iterated over once for each evaluation.

    Attributes:
        count: Number of images.
        left_out: Files that are not among them.
    """

    count: int
    left_out: LeftOut

    def __iter__(self) -> Iterator[LabelledImage]:
        """Yield the images."""


class CategoryFolders:
    """Images in a folder for each category, as torchvision's `ImageFolder` has them.

    Files are counted first and found again while they are sent, so that no list is kept.

    Args:
        folder: The folder of these folders.
        categories: Categories by their folders' names.

    Raises:
        ValueError: A folder means no category, or the same one as another, or it has no images.
        OSError: The folder cannot be read.
    """

    def __init__(self, folder: Path, categories: CategoryNames) -> None:
        self.left_out = LeftOut()
        self._folder = str(folder)
        self._labels = _folder_labels(folder, self.left_out, categories)
        self.count = 0
        for name in self._labels:
            images = sum(1 for _ in self._walk(name, self.left_out))
            if not images:
                raise ValueError(
                    f"{os.path.join(self._folder, name)}: has no images; add some, or remove the"
                    f" folder{_in_brackets(self.left_out)}"
                )
            self.count += images

    def __iter__(self) -> Iterator[LabelledImage]:
        uncounted = LeftOut()
        for name, label in self._labels.items():
            for path in self._walk(name, uncounted):
                yield LabelledImage(path, label)

    def _walk(self, name: str, left_out: LeftOut) -> Iterator[str]:
        return walk(os.path.join(self._folder, name), left_out, tree=self._folder)


class ListedImages:
    """Some of the images in a folder for each category.

    Args:
        folder: The folder of these folders.
        names: Names of files and folders in it.
        categories: Categories by their folders' names.

    Raises:
        ValueError: A file is not in a folder in `folder`, or that means no category.
        OSError: A listed folder cannot be read or has no images.
    """

    def __init__(self, folder: Path, names: Iterable[str], categories: CategoryNames) -> None:
        self.left_out = LeftOut()
        parents = {
            path: _category_folder(path, folder) for path in find_images(names, self.left_out)
        }
        labels = categories.find(list(dict.fromkeys(parents.values())), f"folders of {folder}")
        self._images = [LabelledImage(path, labels[name]) for path, name in parents.items()]
        self.count = len(self._images)

    def __iter__(self) -> Iterator[LabelledImage]:
        return iter(self._images)


class LabelFile:
    """Images with the labels of a CSV file.

    The file has a header with the columns `path` and `label`, or two columns without a header.

    Args:
        path: The CSV file. It is read twice, so that its rows are not kept.
        folder: Relative paths in it start here.
        categories: Categories by the labels in it.

    Raises:
        ValueError: A row has no path or label, or a label means no category.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, folder: Path, categories: CategoryNames) -> None:
        if not path.is_file():
            reason = (
                "is no regular file, which is read twice" if path.exists() else "does not exist"
            )
            raise FileNotFoundError(f"--labels {path}: {reason}")
        self.left_out = LeftOut()
        self._path, self._folder = path, str(folder)
        self.count = 0
        labels: dict[str, None] = {}
        for _, label in self._rows():
            self.count += 1
            labels[label] = None
        if not self.count:
            raise ValueError(f"--labels {path}: has no images")
        self._index_of = categories.find(list(labels), f"--labels {path}")

    def __iter__(self) -> Iterator[LabelledImage]:
        for name, label in self._rows():
            path = os.path.join(self._folder, text_to_name(name))
            yield LabelledImage(path, self._index_of[label])

    def _rows(self) -> Iterator[tuple[str, str]]:
        with self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            try:
                yield from self._parsed(rows)
            except csv.Error as error:
                raise ValueError(f"--labels {self._path}, line {rows.line_num}: {error}") from error

    def _parsed(self, rows: Any) -> Iterator[tuple[str, str]]:
        columns, width = (0, 1), 2
        for number, row in enumerate(rows):
            names = [cell.strip().lower() for cell in row]
            if number == 0 and PATH in names and LABEL in names:
                columns, width = (names.index(PATH), names.index(LABEL)), len(names)
            elif row:
                yield self._row(row, columns, width, rows.line_num)

    def _row(
        self, row: list[str], columns: tuple[int, int], width: int, line: int
    ) -> tuple[str, str]:
        path, label = (row[one].strip() if one < len(row) else "" for one in columns)
        if len(row) != width or not path or not label:
            raise ValueError(
                f"--labels {self._path}, line {line}: is not a path and a label; write the columns"
                f" {PATH} and {LABEL}, and name them in the first line if there are others"
            )
        return path, label


def _folder_labels(folder: Path, left_out: LeftOut, categories: CategoryNames) -> dict[str, int]:
    """Return the category of each folder in a folder, in the order of their names."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda one: one.name)
    names = []
    for entry in entries:
        if is_companion(entry.name):
            continue
        if not entry.is_dir():
            left_out.files["hidden" if is_hidden(entry.name) else "in no category's folder"] += 1
        elif is_hidden(entry.name):
            left_out.folders["hidden"] += 1
        else:
            names.append(entry.name)
    if not names:
        raise ValueError(
            f"{folder}: has no folders of categories; pass --labels with a .csv file of the columns"
            f" {PATH} and {LABEL}"
        )
    labels = categories.find(names, f"folders of {folder}")
    first: dict[int, str] = {}
    for name, label in labels.items():
        if label in first:
            raise ValueError(
                f"{folder}: the folders {first[label]!r} and {name!r} are both category {label};"
                " move their images into one of them"
            )
        first[label] = name
    return labels


def _category_folder(path: str, folder: Path) -> str:
    """Return the name of the folder below `folder` that an image is in."""
    parts = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(folder))).parts
    if len(parts) < 2 or parts[0] == os.pardir:
        raise ValueError(
            f"{path}: is in no category's folder of {folder}; list files in FOLDER/CATEGORY, or"
            " pass --labels with a .csv file"
        )
    return parts[0]


def _in_brackets(left_out: LeftOut) -> str:
    return f" ({left_out})" if str(left_out) else ""
