"""The folder from which variants are loaded while serving: names in, never paths."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeAlias

from resnet50_server.errors import InvalidRequest, NotNow, VariantNotFound

from .spec import CHECKPOINT_NAMES, NAME, VariantSpec, official_specs, strip_enum_prefix

# What changes with a variant's files.
Fingerprint: TypeAlias = tuple[object, ...]
_FILES = ("variant.json", *CHECKPOINT_NAMES)


class VariantsDirectory:
    """A folder of custom variants, each in a folder of its own name.

    Its methods read files and so may block; see `Disk`.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return f"variants_dir: {self._path}"

    def names(self) -> list[str]:
        """Return what could be loaded, sorted."""
        found = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(one.name for one in found if NAME.fullmatch(one.name) and one.is_dir())

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return for each of them what changes with its files: their times and sizes.

        Raises:
            OSError: The folder is not there, which says nothing of what it holds.
        """
        if not self._path.is_dir():
            raise FileNotFoundError(f"{self._path} is not there, or is no folder")
        return {name: _fingerprint(self._path / name) for name in self.names()}

    def fingerprint(self, name: str) -> Fingerprint | None:
        """Return the same for one of them; None if there is no such folder."""
        folder = self._path / name
        return _fingerprint(folder) if folder.is_dir() else None

    def contains(self, spec: VariantSpec) -> bool:
        """Return whether a variant's folder is one of them."""
        if spec.directory is None:
            return False
        return spec.directory.resolve().is_relative_to(self._path.resolve())

    @staticmethod
    def is_official(name: str) -> bool:
        """Return whether a name is one of torchvision's: such weights lie elsewhere."""
        return strip_enum_prefix(name) == "DEFAULT" or strip_enum_prefix(name) in official_specs()

    def find(self, name: str) -> Path:
        """Return a variant's folder, with links resolved; none of its files lies elsewhere.

        Whoever may write into the folder may of course put any weights there.

        Args:
            name: As a request says it.

        Raises:
            InvalidRequest: It is not a name, or leads out of the folder.
            VariantNotFound: There is no such folder.
            NotNow: It, or a file in it, is a link that leads to itself.
        """
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                "name",
                "must be the name of a folder in the server's variants_dir: 1 to 64 letters,"
                " digits, '.', '_' and '-', and no path",
            )
        root = self._path.resolve()
        _refuse_loop(name, root / name)
        folder = (root / name).resolve()
        if not folder.is_dir():
            raise VariantNotFound("name", name, self.names())
        for path in (folder, *(folder / file for file in _FILES)):
            _refuse_loop(name, path)
            if not path.resolve().is_relative_to(root):
                raise InvalidRequest(
                    "name", f"{name}: {path.name} is a link that leads out of variants_dir"
                )
        return folder


def _refuse_loop(name: str, path: Path) -> None:
    """Raise NotNow for a link that leads to itself; resolving one raises what it likes."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotNow(
                f"name: {name}: {path.name} is a link that leads to itself; make it one to what is"
                " meant",
                passing=False,
            ) from None


def _fingerprint(folder: Path) -> Fingerprint:
    stamp: list[object] = []
    for name in _FILES:
        try:
            found = os.stat(folder / name)
        except OSError as error:
            stamp.append(error.errno)
            continue
        # The time of the last change of any kind; unlike the content's, it cannot be set.
        stamp.append((found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev))
    return tuple(stamp)
