"""The folder from which variants are loaded while serving: names in, never paths."""

from __future__ import annotations

from pathlib import Path

from ..errors import InvalidRequest, VariantNotFound
from .definition import CHECKPOINT_NAMES, NAME


class VariantsDirectory:
    """A folder of custom variants, each in a folder of its own name.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """Return what could be loaded, sorted."""
        found = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(one.name for one in found if NAME.fullmatch(one.name) and one.is_dir())

    def find(self, name: str) -> Path:
        """Return a variant's folder, with links resolved; none of its files lies elsewhere.

        Whoever may write into the folder may of course put any weights there.

        Args:
            name: As a request says it.

        Raises:
            InvalidRequest: It is not a name, or leads out of the folder.
            VariantNotFound: There is no such folder.
        """
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                "name",
                "must be the name of a folder in the server's variants_dir: 1 to 64 letters,"
                " digits, '.', '_' and '-', and no path",
            )
        root = self._path.resolve()
        folder = (root / name).resolve()
        if not folder.is_dir():
            raise VariantNotFound("name", name, self.names())
        for path in (folder, *(folder / file for file in ("variant.json", *CHECKPOINT_NAMES))):
            if not path.resolve().is_relative_to(root):
                raise InvalidRequest(
                    "name", f"{name}: {path.name} is a link that leads out of variants_dir"
                )
        return folder
