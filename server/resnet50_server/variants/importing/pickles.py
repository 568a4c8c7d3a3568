"""Read training checkpoints without running code from them.

Checkpoints of training code hold more than tensors: arguments, configurations, NumPy numbers.
torch's own restricted reader (`weights_only`) refuses a file for the first class that it does not
know. Here an inert placeholder is registered for each such class, so that the reader passes over
its objects and returns the tensors. No class or function that a file names is imported or called.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import OrderedDict
from typing import Any

from resnet50_server.runtime.texts import escaped

# A file that names more unknown classes than this is not a checkpoint. Each costs a partial read.
MAX_UNKNOWN_CLASSES = 64
# Classes of Python that objects of others refer to; functions such as getattr are not among them.
_BUILTINS = {"bool", "dict", "float", "frozenset", "int", "list", "object", "slice", "str", "tuple"}
# torch's words for a class that it does not know: two spellings, of its versions.
_UNKNOWN = re.compile(r"Unsupported (?:global|class):? *(?:GLOBAL )?([\w.<>]+)", re.IGNORECASE)


class Placeholder(list[Any]):
    """An object of a class that is not imported. It keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""

    def __hash__(self) -> int:  # type: ignore[override]  # it may be the key of a dict
        return id(self)

    @classmethod
    def of(cls, name: str) -> type[Placeholder]:
        """Return a placeholder class under the full name of another class."""
        module, _, last = name.rpartition(".")
        return type(last, (cls,), {"__module__": module, "__qualname__": last})


class MappingPlaceholder(Placeholder):
    """A placeholder of a class of dicts, whose entries are read as a dict's."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an empty dict of a kind that torch's reader fills."""
        return OrderedDict()


class UnsafePickle(ValueError):
    """A pickle that torch's restricted reader refuses; the text says why."""


def read_pickle(content: bytes) -> object:
    """Return the object in a file of torch.save.

    Objects of unknown classes are placeholders; `unknown_class` names theirs.

    Args:
        content: The whole file.

    Raises:
        UnsafePickle: The file is broken, or needs code to be read.
    """
    import torch

    placeholders: dict[str, type[Placeholder]] = {}
    while True:
        try:
            with (
                torch.serialization.safe_globals(list(placeholders.values())),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # about files of old torch versions
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a bad or unsafe file
            if not _add_placeholder(placeholders, str(error)):
                raise UnsafePickle(unreadable(error)) from error


def unknown_class(value: object) -> str | None:
    """Return the full name of the class that a placeholder is used for; None for other values."""
    if not isinstance(value, Placeholder):
        return None
    return escaped(f"{type(value).__module__}.{type(value).__qualname__}"[:200])


def unreadable(error: Exception) -> str:
    """Return why torch cannot read a file, in few words.

    torch's own message advises to switch the protection off.
    """
    if found := _UNKNOWN.search(str(error)):
        return f"it needs {escaped(found[1][:200])}"
    if "Unsupported operand" in str(error):
        return "it was pickled without torch.save, or with another protocol than 2"
    return type(error).__name__


def _add_placeholder(placeholders: dict[str, type[Placeholder]], message: str) -> bool:
    """Add a placeholder for the class that an error names; return whether that may help."""
    found = _UNKNOWN.search(message)
    if found is not None:
        name = found[1]
        if name in _BUILTINS:  # torch's message leaves the module out
            name = f"builtins.{name}"
        if name in placeholders or len(placeholders) >= MAX_UNKNOWN_CLASSES:
            return False
        kind = MappingPlaceholder if name == "collections.defaultdict" else Placeholder
        placeholders[name] = kind.of(name)
        return True
    if "SETITEM" in message:  # a class of dicts; its name ends the message
        for name, placeholder in placeholders.items():
            if repr(placeholder) in message and not issubclass(placeholder, MappingPlaceholder):
                placeholders[name] = MappingPlaceholder.of(name)
                return True
    return False
