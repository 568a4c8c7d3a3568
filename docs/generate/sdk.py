"""The public names of the SDK: signatures and docstrings."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe

from .markdown import code, escaped, paragraphs

CLIENT = Path(__file__).resolve().parents[2] / "client"
# Longest signature on one line, and longest line that ruff leaves as it is.
_WIDTH, _LINE = 88, 100
_LISTS = {
    "parameters": "Arguments",
    "attributes": "Attributes",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
}
# Longest value of a constant that is shown instead of its name.
_SHORT = 30
# Applications never construct these.
_MADE_BY_CLIENTS = {"Stream", "BulkResults"}
# griffe warns of arguments without a type, which are in the signature.
logging.getLogger("griffe").setLevel(logging.ERROR)


@functools.cache
def _package() -> griffe.Module:
    loaded = griffe.load(
        "resnet50_client",
        search_paths=[CLIENT],
        docstring_parser="google",
        docstring_options={"returns_multiple_items": False, "returns_named_value": False},
        allow_inspection=False,
    )
    assert isinstance(loaded, griffe.Module)
    return loaded


def section(module: str, *names: str) -> str:
    """Return a heading for each name of a module; without names, for all of its `__all__`."""
    found: Any = _package()
    if inside := module.partition(".")[2]:
        found = found[inside]
    parts = []
    for name in names or tuple(map(str, found.exports)):
        member = found[name]
        target = member.final_target if member.is_alias else member
        parts.append(_MEMBERS[target.kind.value](target))
    return "\n\n".join(parts)


def _class(found: Any) -> str:
    """Return a class: its signature, its docstring, properties and methods."""
    bases = ", ".join(str(base) for base in found.bases)
    create = _constructor(found)
    parts = [f"### {found.name}"]
    if create is not None:
        parts.append(_signature(found.name, create, returns=False))
    else:
        parts.append(f"```python\nclass {found.name}{f'({bases})' if bases else ''}\n```")
    parts += _docstring(found, without=() if create is not None else ("parameters",))
    if create is not None and create.docstring is not None:
        # Its first paragraph only says that it makes an object.
        parts += _docstring(create)[1:]
    properties = [one for one in _members(found) if "property" in one.labels]
    if properties:
        parts.append("Properties:\n\n" + _bullets(map(_property, properties)))
    for method in _methods(found):
        parts.append(_function(method, f"{found.name}.{method.name}", "####"))
    return "\n\n".join(parts)


def _constructor(found: Any) -> Any:
    """Return `__init__`; None if applications do not call it."""
    if found.name.endswith("Error") or found.name in _MADE_BY_CLIENTS:
        return None
    return next((one for one in _members(found) if one.name == "__init__"), None)


def _members(found: Any) -> Iterator[Any]:
    """Yield the public members of a class, those of its bases in this package last."""
    for name, member in {**found.members, **found.inherited_members}.items():
        target = member.final_target if member.is_alias else member
        inherited = target.parent.name != found.name
        if inherited and target.parent.name in _package()["types"].exports:
            continue  # described there
        if not name.startswith("_") or name in ("__init__", "__call__"):
            yield target


def _methods(found: Any) -> Iterator[Any]:
    for member in _members(found):
        if member.is_function and member.name != "__init__" and member.docstring is not None:
            yield member


def _property(found: Any) -> tuple[str, str]:
    parsed = found.docstring.parsed if found.docstring else []
    text = " ".join(part.value for part in parsed if part.kind.value == "text")
    return f"{code(found.name)} ({code(_source(found.annotation))})", text


def _function(found: Any, name: str = "", level: str = "###") -> str:
    heading = name or found.name
    # Underscores would be emphasis.
    heading = code(heading) if "__" in heading else heading
    parts = [f"{level} {heading}", _signature(found.name, found)]
    return "\n\n".join([*parts, *_docstring(found)])


def _attribute(found: Any) -> str:
    """Return an alias of a type."""
    value = _source(found.value)
    if len(f"{found.name} = {value}") <= _LINE:
        pass
    elif " | " not in value:  # a Literal
        value = "{}[\n    {}\n]".format(*value[:-1].split("[", 1))
    else:
        value = "(\n    {}\n)".format("\n    | ".join(value.split(" | ")))
    parts = [f"### {found.name}", f"```python\n{found.name} = {value}\n```"]
    return "\n\n".join([*parts, *_docstring(found)])


def _signature(name: str, found: Any, *, returns: bool = True) -> str:
    """Return a signature as code: on one line, or with a line for each argument."""
    parameters = list(_parameters(found))
    result = f" -> {_source(found.returns)}" if returns and found.returns is not None else ""
    prefix = ""
    if found.is_function and returns:
        prefix = "async def " if "async" in found.labels else "def "
    line = f"{prefix}{name}({', '.join(parameters)}){result}"
    if len(line) > _WIDTH:
        inside = "".join(f"    {one},\n" for one in parameters)
        line = f"{prefix}{name}(\n{inside}){result}"
    return f"```python\n{line}\n```"


def _parameters(found: Any) -> Iterator[str]:
    """Yield the parameters of a function as in its source, without `self`."""
    starred = False
    for one in found.parameters:
        kind = one.kind.value
        if one.name in ("self", "cls"):
            continue
        if kind == "keyword-only" and not starred:
            starred = True
            yield "*"
        starred = starred or kind == "variadic positional"
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        annotation = f": {_source(one.annotation)}" if one.annotation is not None else ""
        default = ""
        if one.default is not None and not stars:
            value = _default(found, _source(one.default))
            default = f" = {value}" if annotation else f"={value}"
        yield f"{stars}{one.name}{annotation}{default}"


def _default(function: Any, text: str) -> str:
    """Return a default value; of a constant its value, if that is short."""
    if not (text.isidentifier() and text.isupper()):
        return text
    path = function.resolve(text).removeprefix("resnet50_client.")
    value = _source(_package()[path].value)
    return value if len(value) <= _SHORT else text


def _source(expression: Any) -> str:
    """Return an expression as in a program of an application."""
    return re.sub(r"\btypes\.", "", str(expression)).replace("'", '"')


def _docstring(found: Any, without: Collection[str] = ()) -> list[str]:
    """Return the sections of a docstring as Markdown, without some kinds."""
    if found.docstring is None:
        return []
    parts = []
    for part in found.docstring.parsed:
        kind = part.kind.value
        if kind == "text":
            parts.append(paragraphs(part.value))
        elif kind in without:
            continue
        elif kind in _LISTS:
            parts.append(f"{_LISTS[kind]}:\n\n{_bullets(map(_entry, part.value))}")
        else:
            raise ValueError(f"{found.path}: a section {kind!r} of a docstring is not known")
    return parts


def _entry(entry: Any) -> tuple[str, str]:
    """Return the name and the description of an argument, an attribute, an error or a result."""
    name = getattr(entry, "name", "")
    if not name and isinstance(entry, griffe.DocstringRaise):
        name = str(entry.annotation)
    return (code(name) if name else ""), entry.description


def _bullets(entries: Iterable[tuple[str, str]]) -> str:
    lines = []
    for name, text in entries:
        described = escaped(" ".join(text.split()))
        lines.append(f"* {name}: {described}" if name else f"* {described}")
    return "\n".join(lines)


_MEMBERS = {
    "class": _class,
    "function": _function,
    "attribute": _attribute,
    "type alias": _attribute,
}
