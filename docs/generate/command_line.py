"""The commands `resnet50`, `resnet50-server` and `resnet50-gateway`: subcommands and options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer

from resnet50_cli.app import app as client_app
from resnet50_cli.connection_options import PANEL as CONNECTION
from resnet50_cli.output import EXIT_CODES_HELP as CLIENT_EXIT_CODES
from resnet50_gateway.command import EXIT_CODES_HELP as GATEWAY_EXIT_CODES
from resnet50_gateway.command import app as gateway_app
from resnet50_server.cli.main import EXIT_CODES_HELP as SERVER_EXIT_CODES
from resnet50_server.cli.main import app as server_app

from .markdown import code, codes, escaped, link, paragraphs, table

_OPTIONS = "Options"
_CONNECTION_HEADING = "Connection options"
# The same for most commands; they are on a page of their own.
_EXIT_CODES = re.compile(
    "|".join(map(re.escape, (CLIENT_EXIT_CODES, SERVER_EXIT_CODES, GATEWAY_EXIT_CODES)))
)
# Pages of the commands whose options are settings.
_SETTINGS = {
    "resnet50-server serve": "[Settings](settings.md)",
    "resnet50-gateway": "[HTTP](http.md#listening)",
}
_VALUES = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def section() -> str:
    """Return a table of contents, a heading for each command, and the connection options."""
    commands = [
        *_leaves(typer.main.get_command(client_app), "resnet50"),
        *_leaves(typer.main.get_command(server_app), "resnet50-server"),
        *_leaves(typer.main.get_command(gateway_app), "resnet50-gateway"),
    ]
    contents = table(
        ("command", ""),
        ((link(name), escaped(_summary(command))) for name, command in commands),
    )
    parameters = _Parameters(dict(commands)["resnet50 classify"])
    return "\n\n".join(
        [
            contents,
            *(_command(name, command) for name, command in commands),
            f"## {_CONNECTION_HEADING}",
            "All commands of `resnet50` take these. Most are also environment variables"
            " (`--ca`: `RESNET50_CA`) and keys of a profile (`ca`).",
            parameters.table(parameters.panels[CONNECTION], "option"),
        ]
    )


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the commands of a group that do something, with their full names."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in command.commands.items():
        if not below.hidden:
            yield from _leaves(below, f"{name} {word}")


def _summary(command: Any) -> str:
    return " ".join(command.help.partition("\n\n")[0].split())


def _command(name: str, command: Any) -> str:
    """Return the section of a command: usage, description, arguments, options, exit codes."""
    parameters = _Parameters(command)
    words = [name, "[OPTIONS]", *(parameters.value(one) for one in parameters.arguments)]
    parts = [f"## {name}", f"```text\n{' '.join(words)}\n```", paragraphs(command.help)]
    if parameters.arguments:
        parts.append(parameters.table(parameters.arguments, "argument"))
    if name in _SETTINGS:
        parts.append(f"{_SETTINGS[name]} describes the options.")
    else:
        panels = dict(parameters.panels)
        connection = panels.pop(CONNECTION, None)
        for title, options in panels.items():
            parts.append(parameters.table(options, "option" if title == _OPTIONS else title))
        if connection is not None:
            parts.append(f"And the {link(_CONNECTION_HEADING)}.")
    if epilog := _EXIT_CODES.sub("", command.epilog or "").strip():
        parts.append(paragraphs(epilog))
    return "\n\n".join(parts)


class _Parameters:
    """The arguments and options of a command.

    Args:
        command: The command as Click has it. The types of its parameters are those of the Python
            function, since releases of typer differ in how they keep them.

    Attributes:
        arguments: The arguments.
        panels: The options, by the heading under which the help shows them.
    """

    def __init__(self, command: Any) -> None:
        self._signature = inspect.signature(command.callback, eval_str=True).parameters
        self.arguments = [one for one in command.params if one.param_type_name == "argument"]
        self.panels: dict[str, list[Any]] = {}
        for one in command.params:
            if one.param_type_name == "option" and not one.hidden and one.name != "help":
                self.panels.setdefault(one.rich_help_panel or _OPTIONS, []).append(one)

    def table(self, parameters: list[Any], heading: str) -> str:
        """Return a table of names and descriptions."""
        rows = ((self._names(one), self._text(one)) for one in parameters)
        return table((heading, "description"), rows)

    def value(self, parameter: Any) -> str:
        """Return the name of a parameter's value."""
        kind = self._kind(parameter)
        if parameter.metavar:
            return str(parameter.metavar)
        if issubclass(kind, Enum):
            return "|".join(str(one.value) for one in kind)
        if parameter.param_type_name == "argument":
            return str(parameter.name).upper()
        return _VALUES[kind]

    def _kind(self, parameter: Any) -> type:
        """Return the type of a parameter: of `list[int] | None` int."""
        kind: Any = get_args(self._signature[parameter.name].annotation)[0]
        while kinds := [one for one in get_args(kind) if one is not type(None)]:
            kind = kinds[0]
        return kind if isinstance(kind, type) else str

    def _names(self, parameter: Any) -> str:
        if parameter.param_type_name == "argument":
            return code(self.value(parameter))
        value = "" if self._kind(parameter) is bool else f" {self.value(parameter)}"
        return codes(
            f"{name}{value if name.startswith('--') else ''}"
            for name in (*parameter.opts, *parameter.secondary_opts)
        )

    def _text(self, parameter: Any) -> str:
        """Return the description of a parameter, with its range and its default."""
        declared = get_args(self._signature[parameter.name].annotation)[1]
        parts = [escaped(parameter.help or "")]
        if declared.min is not None and declared.max is not None:
            parts.append(f"{declared.min:g} to {declared.max:g}.")
        default = self._signature[parameter.name].default
        default = getattr(default, "value", default)
        shown = parameter.show_default and default not in (None, False, "", inspect.Parameter.empty)
        if shown and "Default:" not in parts[0]:
            number = isinstance(default, float)
            parts.append(f"Default: {code(f'{default:g}' if number else str(default))}.")
        if parameter.required:
            parts.append("Required.")
        return " ".join(filter(None, parts))
