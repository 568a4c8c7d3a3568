"""The site of the documentation builds strictly, loads nothing from other hosts, is searchable."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sphinx.search.en import SearchEnglish

ROOT = Path(__file__).resolve().parents[2]
# Terms of the field that readers search for, and a page that explains each.
TERMS = {
    "dynamic batching": "docs/index",
    "response cache": "docs/how-to/use-the-response-cache",
    "cache hit": "docs/how-to/use-the-response-cache",
    "request coalescing": "docs/explanation/response-cache",
    "single-flight": "docs/explanation/response-cache",
    "graceful shutdown": "docs/how-to/deploy",
    "drain": "docs/how-to/deploy",
    "in-flight request": "docs/how-to/serve",
    "admission control": "docs/reference/limits",
    "load shedding": "docs/explanation/batching-and-deadlines",
    "quota": "docs/reference/limits",
    "rate limit": "docs/reference/limits",
    "backpressure": "docs/explanation/streaming",
    "flow control": "docs/how-to/bulk",
    "deadline-aware scheduling": "docs/explanation/batching-and-deadlines",
    "deadline exceeded": "docs/reference/errors",
    "fair queueing": "docs/explanation/batching-and-deadlines",
    "priority": "docs/reference/limits",
    "hot reload": "docs/how-to/secure",
    "zero-downtime": "docs/how-to/upgrade-weights",
    "eviction": "docs/how-to/upgrade-weights",
    "rollback": "docs/how-to/canary-and-shadow",
    "canary": "docs/how-to/canary-and-shadow",
    "shadow traffic": "docs/how-to/canary-and-shadow",
    "traffic split": "docs/how-to/canary-and-shadow",
    "agreement rate": "docs/how-to/canary-and-shadow",
    "warm-up": "docs/how-to/troubleshoot",
    "cold start": "docs/how-to/run-on-a-gpu",
    "readiness": "docs/how-to/deploy",
    "liveness": "docs/how-to/deploy",
    "startup probe": "docs/how-to/deploy",
    "model verification": "docs/explanation/model-verification",
    "caller identity": "docs/how-to/secure",
    "retry": "docs/reference/sdk",
    "idempotent": "docs/reference/sdk-client",
    "failover": "docs/explanation/architecture",
    "idle timeout": "docs/explanation/streaming",
    "keepalive": "docs/reference/settings",
    "certificate rotation": "docs/how-to/secure",
    "watchdog": "docs/explanation/fault-model",
    "mTLS": "docs/how-to/secure",
    "exit code": "docs/reference/exit-codes",
    "throughput": "docs/benchmarks/results",
    "goodput": "docs/how-to/load-test",
    "p99": "docs/benchmarks/results",
    "saturation": "docs/how-to/load-test",
    "NaN": "docs/how-to/troubleshoot",
}
STEMMER = SearchEnglish({})


def build(source: Path, site: Path, builder: str) -> subprocess.CompletedProcess[str]:
    """Build in another process: Sphinx changes its own for good."""
    arguments = f"Path({str(source)!r}), Path({str(site)!r}), {builder!r}"
    return subprocess.run(
        [sys.executable, "-c", f"from docs.build import *; sys.exit(build({arguments}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Return a folder with the repository's files, whose `docs` may be added to."""
    folder = tmp_path_factory.mktemp("source")
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy(entry, folder)
        elif entry.name == "docs":
            shutil.copytree(entry, folder / entry.name)
        elif not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def site(source, tmp_path_factory) -> Path:
    """Return the folder of the built site."""
    out = tmp_path_factory.mktemp("built")
    done = build(source, out / "site", "html")
    assert done.returncode == 0, done.stderr
    return out / "site"


@pytest.fixture(scope="module")
def index(site) -> dict:
    """Return the index of the site's own search."""
    text = (site / "searchindex.js").read_text()
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def pages_with(term: str, index: dict) -> set[str]:
    """Return the pages that the search finds: those with all words of a term."""
    found = []
    for word in re.findall(r"\w+", term.lower()):
        if word in STEMMER.stopwords:
            continue
        stem = STEMMER.stem(word)
        numbers: set[int] = set()
        for part in ("terms", "titleterms"):
            numbers |= set(
                listed if isinstance(listed := index[part].get(stem, []), list) else [listed]
            )
        found.append(numbers)
    return {index["docnames"][number] for number in set.intersection(*found)}


@pytest.mark.parametrize(("term", "page"), TERMS.items())
def test_search_finds_the_term_on_its_page(term, page, index):
    assert page in pages_with(term, index)


def test_search_finds_no_made_up_term(index):
    assert pages_with("flurbification", index) == set()


class Loaded(HTMLParser):
    """Collects the addresses of other hosts that a page loads when it is viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            return
        for name in ("src", "href", "srcset", "data", "poster"):
            if re.match(r"\s*(?:https?:)?//", given.get(name) or ""):
                self.foreign.append(f"<{tag} {name}={given[name]}>")


def test_pages_load_nothing_from_other_hosts(site):
    foreign = {}
    for path in site.rglob("*.html"):
        page = Loaded()
        page.feed(path.read_text())
        if page.foreign:
            foreign[path.name] = page.foreign
    for path in site.rglob("*.css"):
        found = re.findall(
            r"(?:url\(\s*[\"']?|@import\s+[\"'])(?:https?:)?//[^)]*", path.read_text()
        )
        if found:
            foreign[path.name] = found
    assert foreign == {}


def test_every_page_of_docs_is_in_the_site(site):
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 60
    assert [str(page) for page in pages if not (site / page.with_suffix(".html")).is_file()] == []


def test_dead_links_and_orphans_fail_the_build(source, site):
    planted = source / "docs" / "planted.md"
    planted.write_text(
        "# Planted\n\n[a](no-such-page.md) [b](index.md#no-such-heading) ![c](no-such-image.svg)\n"
    )
    # Only the new page is read: this build has what the one before it has read.
    done = build(source, site, "dummy")
    planted.unlink()
    assert done.returncode != 0
    for fault in ("no-such-page.md", "no-such-heading", "no-such-image.svg", "toc.not_included"):
        assert re.search(rf"planted\.md.*{fault}", done.stderr), done.stderr
