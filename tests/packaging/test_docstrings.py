"""Every public name of the SDK is documented: each argument, each attribute, each error."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import resnet50_client

# Names of the other public modules are exported by the package too.
MODULES = (
    *("", ".admin", ".lancedb", ".opentelemetry"),
    *(".preprocess", ".testing", ".types", ".video"),
)


def public_names(module: str) -> dict[str, Any]:
    """Return the public classes and functions of a module, by name."""
    loaded = importlib.import_module(module)
    found = {name: getattr(loaded, name) for name in loaded.__all__}
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    }


def described(value: Any) -> set[str]:
    """Return the names that a docstring's sections describe."""
    text = inspect.getdoc(value) if value is not None else None
    return set(re.findall(r"^ +([\w*]+)(?:, \w+)*: ", text or "", re.MULTILINE))


def parameters(function: Any) -> list[str]:
    """Return the parameters of a function that a caller passes."""
    return [
        name
        for name in inspect.signature(function).parameters
        if name not in ("self", "cls") and not name.startswith("_")
    ]


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that this project has written for a class."""
    for owner in kind.__mro__:
        if not owner.__module__.startswith("resnet50_client"):
            continue
        for name, value in vars(owner).items():
            found = getattr(value, "__func__", value)
            if not name.startswith("_") and (
                inspect.isfunction(found) or isinstance(found, property)
            ):
                yield f"{kind.__name__}.{name}", found


def gaps(name: str, value: Any) -> list[str]:
    """Return the documentation that a class or function lacks."""
    if not inspect.getdoc(value):
        return [f"{name}: no docstring"]
    if not inspect.isclass(value):
        return [f"{name}: {one}" for one in parameters(value) if one not in described(value)]
    missing = []
    if dataclasses.is_dataclass(value):
        fields = {one.name for one in dataclasses.fields(value) if not one.name.startswith("_")}
        documented: set[str] = set()
        for owner in value.__mro__:
            documented |= described(owner)
        missing += [f"{name}: {one}" for one in sorted(fields - documented)]
    for member, found in members(value):
        if isinstance(found, property):
            missing += [] if found.__doc__ else [f"{member}: no docstring"]
            continue
        # An override may leave the arguments to the method that it overrides.
        name = member.rpartition(".")[2]
        documented = {one for owner in value.__mro__ for one in described(vars(owner).get(name))}
        missing += [one for one in gaps(member, found) if one.split(": ")[1] not in documented]
    return missing


@pytest.mark.parametrize("module", MODULES)
def test_public_names_and_their_arguments_are_documented(module):
    module = f"resnet50_client{module}"
    assert importlib.import_module(module).__doc__
    assert [gap for name, value in public_names(module).items() for gap in gaps(name, value)] == []


def test_each_call_of_the_clients_documents_its_errors():
    names = ("Client", "AsyncClient")
    clients = [getattr(resnet50_client, name) for name in names]
    clients += public_names("resnet50_client.admin").values()
    for client in clients:
        for name, found in members(client):
            if not name.endswith((".close", ".aclose")):
                assert "Raises:" in inspect.getdoc(found), name
