"""Tests read and replace public names only: what a test needs to see has a public name.

The SDK's modules are private themselves, so their public names are what its tests import.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
# Of other projects, which offer nothing else.
ALLOWED = {"os._exit", "torch._make_per_tensor_quantized_tensor"}
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}
# The target of `monkeypatch.setattr`, as a text.
TARGET = re.compile(r"resnet50_\w+\..+\._[a-z]\w*")


def is_private(name: object) -> bool:
    """Return whether a name is private; protocols such as `_repr_html_` are not."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"_[A-Za-z]\w*", name) is not None
        and not name.endswith("_")
        and name not in NAMED_TUPLE
    )


def private_names(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and source of each use of another object's private name, in no order."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if is_private(node.attr) and not own and ast.unparse(node) not in ALLOWED:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module != "resnet50_client":
            yield from ((node.lineno, one.name) for one in node.names if is_private(one.name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            for argument in node.args[:2]:
                value = argument.value if isinstance(argument, ast.Constant) else None
                if is_private(value) or (isinstance(value, str) and TARGET.fullmatch(value)):
                    yield node.lineno, ast.unparse(node)


def test_tests_use_public_names_only():
    found = [
        f"{path.relative_to(TESTS)}:{line}: {source}"
        for path in sorted(TESTS.rglob("*.py"))
        for line, source in private_names(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "assert queue._backlog == {}",
        "pipeline._cache = None",
        "from resnet50_server.api.listen import _compression_options",
        "monkeypatch.setattr(tracing, '_parent', fail)",
        "monkeypatch.setattr('resnet50_client._tls._read', fail)",
        "getattr(client, '_calls')",
    ],
)
def test_a_planted_private_name_is_found(text):
    assert list(private_names(text))


@pytest.mark.parametrize(
    "text",
    [
        "self._mine = 1",
        "import resnet50_client._tls",
        "from resnet50_client import _codec",
        "details._replace(metadata=[])",
        "result._repr_html_()",
        "monkeypatch.setattr('resnet50_client._tls.READ_S', 1)",
        "super().__init__()",
    ],
)
def test_public_names_are_not_found(text):
    assert list(private_names(text)) == []
