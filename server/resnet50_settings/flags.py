"""The flags of a command, made from its settings, and the error messages for their values."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsError

from .groups import groups_of
from .problems import line_of

# Names of values in the help, by the type of the setting.
METAVARS = {int: "N", float: "NUMBER"}

Function = TypeVar("Function", bound=Callable[..., object])
Model = TypeVar("Model", bound=BaseSettings)


class WrongSettings(Exception):
    """Settings that cannot be used.

    Attributes:
        problems: One line for each problem.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Flags(Generic[Model]):
    """The flags of a command, one for each setting.

    Args:
        settings: The class of the settings, of groups.
        env_prefix: Prefix of their environment variables.
        unknown_environment: Returns the environment variables with that prefix that are no setting.
    """

    def __init__(
        self,
        settings: type[Model],
        env_prefix: str,
        unknown_environment: Callable[[], list[str]],
    ) -> None:
        self._settings = settings
        self._fields = settings.model_fields
        self._env_prefix = env_prefix
        self._unknown_environment = unknown_environment

    def declare(self, function: Function) -> Function:
        """Give a typer command a flag for each setting, in help panels by group.

        They become its keyword arguments, beside its own parameters. Flags that are not on the
        command line are None or empty. Values are strings, which the settings parse and check as
        they do those of the environment.
        """
        parameters = [
            one
            for one in inspect.signature(function, eval_str=True).parameters.values()
            if one.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_annotation(name, self._fields[name], title),
            )
            for title, names in groups_of(self._settings).items()
            for name in names
        ]
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {one.name: one.annotation for one in parameters}
        return function

    def read(self, flags: Mapping[str, Any]) -> Model:
        """Return the settings of the command line, the environment and the configuration file.

        Args:
            flags: The values of the flags, by the name of the setting.

        Raises:
            WrongSettings: A value or a name is wrong.
        """
        if unknown := self._unknown_environment():
            raise WrongSettings([f"environment: {self._unknown(name)}" for name in unknown])
        # Settings split lists at commas, as in the environment.
        given: dict[str, Any] = {
            name: ",".join(value) if isinstance(value, (list, tuple)) else value
            for name, value in flags.items()
            if value is not None and value != [] and value != ()
        }
        try:
            return self._settings(**given)
        except ValidationError as error:
            raise WrongSettings(self._problems(error, given)) from error
        except (SettingsError, ValueError) as error:
            raise WrongSettings([str(error)]) from error

    def _problems(self, error: ValidationError, given: Mapping[str, object]) -> list[str]:
        """Return a line for each invalid value: its setting, the reason and where it was set."""
        lines = []
        for problem in error.errors(include_url=False):
            name = str(problem["loc"][0]) if problem["loc"] else ""
            if problem["type"] == "extra_forbidden":  # flags and environment are checked elsewhere
                lines.append(f"config: {self._unknown(name)}")
                continue
            # Checks that compare several settings name them in their message.
            lines.append(f"{line_of(problem)}{self._source(name, given)}")
        return lines

    def _source(self, name: str, given: Mapping[str, object]) -> str:
        """Return where a setting was set, in parentheses; "" for several settings."""
        if name not in self._fields:
            return ""
        if name in given:
            return f" (--{name.replace('_', '-')})"
        variable = self._env_prefix + name.upper()
        for one in os.environ:
            if one.upper() == variable:
                return f" (in the environment, {one})"
        return " (in the file that --config names)"

    def _unknown(self, name: str) -> str:
        """Return the message for an unknown setting, with the nearest known name."""
        length = len(self._env_prefix)
        prefix = name[:length] if name.upper().startswith(self._env_prefix) else ""
        word = name[len(prefix) :].lower()
        near = difflib.get_close_matches(word, self._fields, 1, cutoff=0.8)
        hint = f"; did you mean {prefix}{near[0].upper() if prefix else near[0]}?" if near else ""
        return f"unknown setting {name}{hint}"


def _annotation(name: str, field: FieldInfo, title: str) -> Any:
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
