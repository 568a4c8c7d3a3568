"""The flags of `serve`, made from the settings, and the error messages for their values."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from resnet50_server.settings import ENV_PREFIX, Settings, groups, unknown_environment

# Names of values in `serve --help`, by the type of the setting.
METAVARS = {int: "N", float: "NUMBER"}

Function = TypeVar("Function", bound=Callable[..., object])


class WrongSettings(Exception):
    """Settings that cannot be used.

    Attributes:
        problems: One line for each problem.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def with_flags(function: Function) -> Function:
    """Give a typer command a flag for each setting, in help panels by group.

    Flags that are not on the command line are None or empty. Values are strings, which the settings
    parse and check as they do those of the environment.
    """
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, title),
        )
        for title, names in groups().items()
        for name in names
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in parameters}
    return function


def read_settings(flags: Mapping[str, Any]) -> Settings:
    """Return the settings of the command line, the environment and the configuration file.

    Args:
        flags: The values of `with_flags`, by the name of the setting.

    Raises:
        WrongSettings: A value or a name is wrong.
    """
    if unknown := unknown_environment():
        raise WrongSettings([f"environment: {_unknown(name)}" for name in unknown])
    # Settings split lists at commas, as in the environment.
    given: dict[str, Any] = {
        name: ",".join(value) if isinstance(value, (list, tuple)) else value
        for name, value in flags.items()
        if value is not None and value != [] and value != ()
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        raise WrongSettings(_problems(error, given)) from error
    except (SettingsError, ValueError) as error:
        raise WrongSettings([str(error)]) from error


def _annotation(name: str, title: str) -> Any:
    field = Settings.model_fields[name]
    flag = f"--{name.replace('_', '-')}"
    kind: Any = str | None
    metavar: str | None = None
    inner = get_args(field.annotation) or [field.annotation]  # of `int | None`
    if field.annotation is bool:
        kind, flag = bool | None, f"{flag}/--no-{flag[2:]}"
    elif get_origin(field.annotation) is list:
        kind, metavar = list[str] | None, "TEXT"
    elif get_origin(field.annotation) is Literal:
        metavar = "|".join(get_args(field.annotation))
    elif inner[0] in METAVARS:
        metavar = METAVARS[inner[0]]
    else:
        metavar = "TEXT" if inner[0] is str else "PATH"
    option = typer.Option(
        flag,
        metavar=metavar,
        help=f"{field.description}{_default(field.default)}",
        show_default=False,  # as flags that are not given are None
        rich_help_panel=title,
    )
    return Annotated[kind, option]


def _default(value: object) -> str:
    """Return the sentence that names a default value in the help, "" for none."""
    if isinstance(value, list):
        value = ", ".join(value)
    if isinstance(value, bool):
        value = "on" if value else "off"
    return "" if value in (None, "") else f" Default: {value}."


def _problems(error: ValidationError, given: Mapping[str, object]) -> list[str]:
    """Return a line for each invalid value: its setting, the reason and where it was set."""
    lines = []
    for problem in error.errors(include_url=False):
        # Checks that compare several settings name them in their message.
        reason = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
        where = "".join(f"{part}: " for part in problem["loc"])
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":  # flags and environment are checked elsewhere
            lines.append(f"config: {_unknown(name)}")
            continue
        lines.append(f"{where}{reason}{_source(name, given)}")
    return lines


def _source(name: str, given: Mapping[str, object]) -> str:
    """Return where a setting was set, in parentheses; "" for a message about several settings."""
    if name not in Settings.model_fields:
        return ""
    if name in given:
        return f" (--{name.replace('_', '-')})"
    variables = (one for one in os.environ if one.upper() == ENV_PREFIX + name.upper())
    if (variable := next(variables, None)) is not None:
        return f" (in the environment, {variable})"
    return " (in the file that --config names)"


def _unknown(name: str) -> str:
    """Return the message for an unknown setting, with the nearest known name."""
    prefix = name[: len(ENV_PREFIX)] if name.upper().startswith(ENV_PREFIX) else ""
    word = name[len(prefix) :].lower()
    near = difflib.get_close_matches(word, Settings.model_fields, 1, cutoff=0.8)
    hint = f"; did you mean {prefix}{near[0].upper() if prefix else near[0]}?" if near else ""
    return f"unknown setting {name}{hint}"
