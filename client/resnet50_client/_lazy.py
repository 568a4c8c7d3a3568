"""Public names whose modules are imported when a name is first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping


def lazy_names(
    module: str, sources: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a module of this package.

    Type checkers do not run them, so the module imports the names for `TYPE_CHECKING`, too.

    Args:
        module: Full name of the module.
        sources: Names by the module that defines them, which is relative to this package.
    """
    places = {name: source for source, names in sources.items() for name in names}

    def getattribute(name: str) -> object:
        from importlib import import_module

        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(f".{places[name]}", __package__), name)
        setattr(sys.modules[module], name, value)
        return value

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[module]), *places})

    return getattribute, directory
