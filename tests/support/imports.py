"""Imports of a package's modules, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def modules(root: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield each module below the package, e.g. `batching.queue`, and the names it imports."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        package = [root.name, *parts[:-1]]
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                found |= {f"{module}.{alias.name}" for alias in node.names}
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), found
