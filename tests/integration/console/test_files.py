"""The console's files: nothing inline, nothing from elsewhere, and the policy that enforces it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import resnet50_gateway
from tests.support.gateways import client, gateway

CONSOLE = Path(resnet50_gateway.__file__).parent / "console"
FILES = sorted(path for path in CONSOLE.iterdir() if path.is_file())
SCRIPTS = sorted(CONSOLE.glob("*.js"))
NAMESPACE = "http://www.w3.org/2000/svg"


class Page(HTMLParser):
    """Collects the tags of the page, and the text of scripts and styles in it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def page():
    parsed = Page()
    parsed.feed((CONSOLE / "index.html").read_text())
    return parsed


@pytest.fixture(scope="module")
def http():
    # No server is needed for files.
    with gateway("127.0.0.1:1") as url, client(url) as opened:
        yield opened


def test_page_has_no_inline_script_or_style(page):
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    assert "style" not in {tag for tag, _ in page.tags}
    assert page.inline == ""


def test_page_refers_to_files_beside_it(page):
    for _, attributes in page.tags:
        for name in ("src", "href"):
            target = attributes.get(name)
            if target is not None and not target.startswith("#"):
                assert (CONSOLE / target).is_file()


def test_page_names_all_modules_so_that_they_load_at_once(page):
    preloaded = {
        attributes["href"]
        for tag, attributes in page.tags
        if tag == "link" and attributes["rel"] == "modulepreload"
    }
    assert preloaded | {"console.js"} == {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_names_no_other_site(path):
    assert set(re.findall(r"(?:https?:)?//[\w.]+\.[\w./-]+", path.read_text())) <= {
        NAMESPACE,
        NAMESPACE.removeprefix("http:"),
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_imports_files_that_exist_and_sets_no_markup(path):
    text = path.read_text()
    for imported in re.findall(r'from "\./([^"]+)"', text):
        assert (CONSOLE / imported).is_file()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie|indexedDB", text)


def test_every_id_that_scripts_use_is_on_the_page(page):
    on_page = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    used = {
        name for path in SCRIPTS for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text())
    }
    assert used and used <= on_page


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_is_served_with_a_strict_policy(http, path):
    response = http.get(f"/console/{path.name}")
    assert response.status_code == 200
    assert response.content == path.read_bytes()
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_root_leads_to_the_console(http):
    response = http.get("/", follow_redirects=True)
    assert response.url.path == "/console/"
    assert response.content == (CONSOLE / "index.html").read_bytes()


def test_console_can_be_left_out():
    with gateway("127.0.0.1:1", options=("--no-console",)) as url, client(url) as http:
        assert http.get("/console/").status_code == 404
