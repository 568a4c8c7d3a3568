"""`variants_dir`: the directory of variants that are loaded while serving, by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeAlias

from resnet50_server.errors import InvalidRequest, NotNow, VariantNotFound

from .spec import CHECKPOINT_NAMES, NAME, VariantSpec, official_specs, strip_enum_prefix

# Changes whenever a variant's files do.
Fingerprint: TypeAlias = tuple[object, ...]
_FILES = ("variant.json", *CHECKPOINT_NAMES)


class VariantsDirectory:
    """A directory of custom variants, each in a subdirectory of its name.

    Its methods block; see `Disk`.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return f"variants_dir: {self._path}"

    def names(self) -> list[str]:
        """Return the names of its variants, sorted."""
        found = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(one.name for one in found if NAME.fullmatch(one.name) and one.is_dir())

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return the fingerprint of each variant's files: their times and sizes.

        Raises:
            OSError: The directory does not exist, for instance because it is not mounted.
        """
        if not self._path.is_dir():
            raise FileNotFoundError(f"{self._path} is not a directory, or does not exist")
        return {name: _fingerprint(self._path / name) for name in self.names()}

    def fingerprint(self, name: str) -> Fingerprint | None:
        """Return the fingerprint of one variant's files; None if it has no directory."""
        directory = self._path / name
        return _fingerprint(directory) if directory.is_dir() else None

    def contains(self, spec: VariantSpec) -> bool:
        """Return whether a variant's directory is in this one."""
        if spec.directory is None:
            return False
        return spec.directory.resolve().is_relative_to(self._path.resolve())

    @staticmethod
    def is_official(name: str) -> bool:
        """Return whether a name is an official variant's, whose weights are elsewhere."""
        return strip_enum_prefix(name) == "DEFAULT" or strip_enum_prefix(name) in official_specs()

    def find(self, name: str) -> Path:
        """Return a variant's directory, with links resolved; all of its files are in this one.

        Args:
            name: The name in a request.

        Raises:
            InvalidRequest: It is malformed, or a link leads out of this directory.
            VariantNotFound: There is no such variant.
            NotNow: The directory, or a file in it, is a link to itself.
        """
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                "name",
                "must be the name of a directory in the server's variants_dir: 1 to 64 letters,"
                " digits, '.', '_' and '-', and no path",
            )
        root = self._path.resolve()
        _refuse_loop(name, root / name)
        directory = (root / name).resolve()
        if not directory.is_dir():
            raise VariantNotFound("name", name, self.names())
        for path in (directory, *(directory / file for file in _FILES)):
            _refuse_loop(name, path)
            if not path.resolve().is_relative_to(root):
                raise InvalidRequest(
                    "name", f"{name}: {path.name} is a link that leads out of variants_dir"
                )
        return directory


def _refuse_loop(name: str, path: Path) -> None:
    """Raise NotNow for a link to itself, for which `resolve` raises various errors."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotNow(
                f"name: {name}: {path.name} is a link that leads to itself; replace it",
                transient=False,
            ) from None


def _fingerprint(directory: Path) -> Fingerprint:
    parts: list[object] = []
    for name in _FILES:
        try:
            found = os.stat(directory / name)
        except OSError as error:
            parts.append(error.errno)
            continue
        # ctime changes with every change and, unlike mtime, cannot be set.
        parts.append((found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev))
    return tuple(parts)
