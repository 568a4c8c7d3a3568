"""Links of Markdown pages lead to files and headings that exist; pages that code names exist."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
TARGETS = re.compile(
    r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:src|href|srcset)=\"([^\"]+)\"", re.M
)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def pages() -> list[str]:
    """Return the Markdown pages of the repository, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in sorted(set(listed.stdout.splitlines())) if (ROOT / name).is_file()]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub and the site give to the headings of a page."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", FENCED.sub("", text), re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeated = found.get(slug, 0)
        found[slug] = repeated + 1
        if repeated:
            found[f"{slug}-{repeated}"] = 1
    return found.keys() | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def links(text: str) -> Iterator[str]:
    """Yield the targets of links and images, except addresses of other sites."""
    for found in TARGETS.finditer(CODE.sub("", FENCED.sub("", text))):
        target = next(group for group in found.groups() if group)
        if not SCHEME.match(target) and not target.startswith("//"):
            yield target


def dead_links(page: Path, text: str) -> Iterator[str]:
    """Yield the links of a page whose file or heading does not exist, each with the reason."""
    for target in links(text):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if name and not (path.is_relative_to(ROOT) and path.exists()):
            yield f"{target}: there is no such file"
        elif anchor and path.suffix == ".md":
            known = anchors(text if path == page else path.read_text())
            if anchor not in known:
                yield f"{target}: the page has no such heading"


@pytest.mark.parametrize("page", pages())
def test_relative_links_resolve(page):
    path = ROOT / page
    assert list(dead_links(path, path.read_text())) == []


def test_pages_that_code_and_deployment_name_exist():
    command = ["git", "grep", "-hoE", r"\bdocs/[a-z0-9_/-]+\.(md|svg|dot)\b", "--", ":!*.md"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    named = set(found.stdout.split()) - {"docs/x.md"}  # an example of test_words.py
    assert len(named) > 20
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


@pytest.mark.parametrize(
    "text",
    [
        "[x](missing.md)",
        "![x](images/missing.svg)",
        "[x](../README.md#no-such-heading)",
        "# One\n[x](#two)",
        "[x]\n\n[x]: missing.md",
        '<img src="missing.svg">',
        "[x](../../outside.md)",
    ],
)
def test_dead_link_is_found(text):
    assert len(list(dead_links(ROOT / "docs" / "page.md", text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[x](../README.md#quickstart)",
        "[x](https://example.com/missing.md)",
        "`[x](missing.md)`",
        "```md\n[x](missing.md)\n```",
        "# A `--flag`, of 2\n# A `--flag`, of 2\n[x](#a---flag-of-2-1)",
        "[x](../deploy)",
    ],
)
def test_live_link_is_not_reported(text):
    assert list(dead_links(ROOT / "docs" / "page.md", text)) == []
