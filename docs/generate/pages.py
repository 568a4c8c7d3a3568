"""Pages with generated sections between marks.

    <!-- begin: NAME ARGUMENTS (make reference) -->
    generated Markdown
    <!-- end: NAME -->

Text outside of the marks is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Section = Callable[..., str]
_SECTION = re.compile(
    r"(?P<begin><!-- begin: (?P<name>[\w-]+)(?P<arguments>[^()]*)\(make reference\) -->\n)"
    r".*?(?P<end><!-- end: (?P=name) -->)",
    re.DOTALL,
)


def sections(text: str) -> list[str]:
    """Return the names of the generated sections of a page."""
    return [found["name"] for found in _SECTION.finditer(text)]


def generated(text: str, generators: Mapping[str, Section]) -> str:
    """Return a page with its sections generated anew.

    Args:
        text: The page.
        generators: Functions that return a section's Markdown, by its name. They get the words of
            the mark as arguments.

    Raises:
        SystemExit: A mark has a name that is not in `generators`.
    """

    def section(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in generators:
            raise SystemExit(f"{found['begin'].strip()}: no section is called {name}")
        content = generators[name](*found["arguments"].split())
        return f"{found['begin']}\n{content}\n\n{found['end']}"

    return _SECTION.sub(section, text)


def update(texts: Mapping[Path, str], root: Path, check: bool, problem: str) -> int:
    """Write the files that are not current, or name them; return the exit code.

    Args:
        texts: The current text of each file.
        root: Files are named relative to it.
        check: Name them instead of writing.
        problem: Follows the name of a file that is not current.
    """
    stale = 0
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        name = path.relative_to(root)
        if check:
            print(f"{name} {problem}", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


def stale(folder: Path, generators: Mapping[str, Section]) -> dict[Path, str]:
    """Return the pages of a folder that differ from what the code generates, with that text.

    Raises:
        SystemExit: A section is on no page, or a page asks for one that there is not.
    """
    missing, found = set(generators), {}
    for path in sorted(folder.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        missing -= set(sections(text))
        if (new := generated(text, generators)) != text:
            found[path] = new
    if missing:
        raise SystemExit(f"no page of {folder} has the section {', '.join(sorted(missing))}")
    return found
