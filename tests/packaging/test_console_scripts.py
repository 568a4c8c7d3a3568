"""Modules of the console import names that exist, and use them; nothing is exported in vain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSOLE = ROOT / "server" / "resnet50_gateway" / "console"
# Exports that tests in the browser import.
TESTED = "".join(path.read_text() for path in (ROOT / "tests" / "e2e" / "console").glob("*.py"))
MODULES = {path.name: path.read_text() for path in CONSOLE.glob("*.js")}
_IMPORT = re.compile(r'^import \{([^}]+)\} from "\./([\w-]+\.js)";$', re.MULTILINE)
_ANY_IMPORT = re.compile(r"^import\b|\bimport\(", re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)
_COMMENT = re.compile(r"^\s*(?:/\*\*.*?\*/|//[^\n]*)", re.MULTILINE | re.DOTALL)


def imports(text: str) -> list[tuple[str, str]]:
    """Return the names that a module imports, each with the module that exports it."""
    return [
        (name.strip(), module)
        for names, module in _IMPORT.findall(text)
        for name in names.split(",")
        if name.strip()
    ]


def problems(modules: dict[str, str], entry: str, tested: str = "") -> list[str]:
    """Return the imports and exports that are wrong.

    Args:
        modules: Texts by the names of the files.
        entry: The module that the page loads.
        tested: Text that may name further exports.
    """
    exported = {name: set(_EXPORT.findall(text)) for name, text in modules.items()}
    wrong, used = [], set()
    for name, text in modules.items():
        code = _COMMENT.sub("", text)
        if len(_ANY_IMPORT.findall(code)) != len(_IMPORT.findall(code)):
            wrong.append(f"{name}: an import is not of names of a module beside it")
        for word, module in imports(text):
            used.add((module, word))
            if word not in exported.get(module, ()):
                wrong.append(f"{name}: {module} does not export {word}")
            if not re.search(rf"\b{word}\b", _IMPORT.sub("", code)):
                wrong.append(f"{name}: {word} is not used")
    for name, words in exported.items():
        if name != entry:
            wrong += [
                f"{name}: {word} is not imported"
                for word in words
                if (name, word) not in used and not re.search(rf"\b{word}\b", tested)
            ]
    return wrong


def test_modules_of_the_console_fit_together():
    assert len(MODULES) > 10
    assert problems(MODULES, "console.js", TESTED) == []


@pytest.mark.parametrize(
    ("entry", "other"),
    [
        ('import { b } from "./other.js";\nb();', "export function a() {}"),
        ('import { a } from "./other.js";', "export const a = 1;"),
        ("", "export class Unused {}"),
        ('import "https://elsewhere.example/lib.js";', ""),
        ('const made = await import("./other.js");', ""),
    ],
)
def test_import_or_export_in_vain_is_found(entry, other):
    assert problems({"entry.js": entry, "other.js": other}, "entry.js") != []
