"""A group of commands whose modules are imported when they are used or listed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from .output import EXIT_CODES_HELP


@dataclass(frozen=True)
class CommandSource:
    """Place of a command.

    Attributes:
        module: Full name of its module, whose `EPILOG` replaces the usual exit codes.
        name: Name of the command, and of the function, or the `typer.Typer`, in the module.
    """

    module: str
    name: str

    def load(self) -> Any:
        """Import the module and return the command for Click."""
        module = importlib.import_module(self.module)
        command = getattr(module, self.name)
        if not isinstance(command, typer.Typer):
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command(self.name, epilog=getattr(module, "EPILOG", EXIT_CODES_HELP))(command)
            command = single
        return typer.main.get_command(command)


class _Commands(Mapping[str, Any]):
    """Commands by name, each imported at its first use."""

    def __init__(self, sources: Sequence[CommandSource]) -> None:
        self._sources = {source.name: source for source in sources}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._sources[name].load()
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def lazy_group(sources: Sequence[CommandSource]) -> type[TyperGroup]:
    """Return a class of groups, for `typer.Typer(cls=...)`, with these commands in this order."""

    class LazyGroup(TyperGroup):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.commands = _Commands(sources)  # type: ignore[assignment]

        def list_commands(self, ctx: Any) -> list[str]:
            return list(self.commands)

    return LazyGroup
