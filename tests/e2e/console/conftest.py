"""Browser, servers and gateways. Every test fails on an error in the browser's console, a violation
of the page's policy, or a request to another site."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.administering import describe, tokens_file
from tests.support.consoles import CHROMIUM, LABELS, Visit, visiting
from tests.support.gateways import gateway
from tests.support.serving import server_processes


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream"]
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[*arguments, "--use-fake-device-for-media-stream"],
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str]]:
    """Yield the addresses of a server without tokens: of gRPC, and of its metrics."""
    with server_processes() as start:
        process = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"),
            *("--metrics-listen", "127.0.0.1:0", "--no-listen-while-loading"),
        )
        address = process.wait_until_listening()
        yield address, f"{process.process.stdout.readline().split()[-1]}/metrics"


@pytest.fixture(scope="module")
def url(server) -> Iterator[str]:
    address, metrics = server
    with gateway(address, options=("--metrics", metrics)) as found:
        yield found


@pytest.fixture
def secured(tmp_path) -> Iterator[tuple[str, str]]:
    """Yield the addresses of a server with tokens and variants to load: of gRPC, of its gateway."""
    for name in ("animals", "animals-next", "animals-later"):
        describe(tmp_path / "variants" / name, LABELS)
    with server_processes() as start:
        process = start(
            *("--variants", f"animals={tmp_path / 'variants' / 'animals'}"),
            *("--variants", f"animals-next={tmp_path / 'variants' / 'animals-next'}"),
            *("--default-variant", "animals", "--engine", "null", "--no-listen-while-loading"),
            *("--variants-dir", str(tmp_path / "variants")),
            *("--tokens-file", str(tokens_file(tmp_path))),
        )
        address = process.wait_until_listening()
        with gateway(address) as found:
            yield address, found


@pytest.fixture
def visit(browser, url) -> Iterator[Visit]:
    yield from visiting(browser, url)


@pytest.fixture
def secured_visit(browser, secured) -> Iterator[Visit]:
    yield from visiting(browser, secured[1])
