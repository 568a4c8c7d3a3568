"""The settings of the server and of the gateway, by group."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

import resnet50_gateway.settings as gateway
import resnet50_server.settings as server
from resnet50_settings.groups import groups_of

from .markdown import code, codes, escaped, link, table

_KINDS = {int: "integer", float: "number", str: "text", Path: "path", bool: "on or off"}
_FLAG = re.compile(r"(?<![`\w-])--([a-z][a-z0-9-]*)")
_UNITS = {"GiB": 2**30, "MiB": 2**20}


def section(program: str = "server") -> str:
    """Return a table of contents, and a heading for each group and each setting.

    Args:
        program: "server" or "gateway".
    """
    source: Any = {"server": server, "gateway": gateway}[program]
    groups, fields = groups_of(source.Settings), source.Settings.model_fields
    contents = table(
        ("group", "settings"),
        (
            (f"[{title}](#{title.lower().replace(' ', '-')})", ", ".join(map(link, names)))
            for title, names in groups.items()
        ),
    )
    parts = [contents]
    for title, names in groups.items():
        parts.append(f"## {title}")
        parts += [_setting(name, fields, source.ENV_PREFIX) for name in names]
    return "\n\n".join(parts)


def _setting(name: str, fields: dict[str, FieldInfo], prefix: str) -> str:
    field = fields[name]
    flag = f"--{name.replace('_', '-')}"
    flags = [flag, f"--no-{flag[2:]}"] if field.annotation is bool else [flag]
    facts = [codes(flags), code(prefix + name.upper()), _values(field), *_default(field)]
    text = _FLAG.sub(partial(_linked, fields), escaped(field.description or ""))
    return f"### {name}\n\n{' · '.join(facts)}\n\n{text}"


def _linked(fields: dict[str, FieldInfo], flag: re.Match[str]) -> str:
    """Return a link from a flag in a description to its setting."""
    name = flag[1].replace("-", "_")
    return f"[`{flag[0]}`](#{name})" if name in fields else code(flag[0])


def _values(field: FieldInfo) -> str:
    """Return the type and the range of a setting."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind: Any = kinds[0] if kinds else field.annotation
    if get_origin(field.annotation) is Literal:
        return codes(get_args(field.annotation))
    if get_origin(field.annotation) is list:
        return "list"
    return f"{_KINDS[kind]}{_range(field)}"


def _range(field: FieldInfo) -> str:
    low, high = "", ""
    for limit in field.metadata:
        if isinstance(limit, Ge):
            low = f"{limit.ge}"
        elif isinstance(limit, Gt):
            low = f"above {limit.gt}"
        elif isinstance(limit, Le):
            high = f"{limit.le}"
        elif isinstance(limit, Lt):
            assert isinstance(limit.lt, int)
            high = f"{limit.lt - 1}"
    if low and high:
        return f", {low} to {high}"
    return f", {low}{'' if low.startswith('above') else ' or more'}" if low else ""


def _default(field: FieldInfo) -> list[str]:
    """Return the default; nothing if the description explains it."""
    value = field.default
    if isinstance(value, list):
        value = ",".join(value)
    if value is None or value == "":
        return []
    if isinstance(value, bool):
        return [f"default {'on' if value else 'off'}"]
    for unit, size in _UNITS.items():
        if isinstance(value, int) and value >= size and value % size == 0:
            return [f"default {code(str(value))} ({value // size} {unit})"]
    return [f"default {code(str(value))}"]
