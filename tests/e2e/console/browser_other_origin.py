"""A page of another origin calls the gateway: fetch, and the WebSocket of the how-to page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.consoles import IMAGE, TIMEOUT_MS
from tests.support.gateways import gateway
from tests.support.tutorials import ROOT, blocks

(SNIPPET,) = [
    block.text for block in blocks(ROOT / "docs" / "how-to" / "http.md") if block.language == "js"
]
PAGE = """<!doctype html><meta charset="utf-8"><title>An application</title>
<script>
const answers = [];
const token = "none";
const show = (answer) => answers.push(answer);
const photo = fetch("photo.jpg").then((response) => response.blob());
async function classify(address) {
  const response = await fetch(`${address}/v1/classify?top_k=1`, {
    method: "POST", body: await photo, headers: { "x-request-id": "mine" },
  });
  return { body: await response.json(), id: response.headers.get("x-request-id") };
}
async function stream(frames) {
  SNIPPET
  const closed = new Promise((resolve) => {
    socket.onclose = ({ code }) => resolve({ code, answers });
  });
  await new Promise((resolve) => socket.addEventListener("open", resolve));
  for (let number = 1; number <= frames; number += 1) await send(number, await photo);
  socket.send('{"end": true}');
  return closed;
}
</script>
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def origin(tmp_path) -> Iterator[tuple[str, Any]]:
    """The origin of the application, and a function that writes its page for a gateway."""
    (tmp_path / "photo.jpg").write_bytes(IMAGE)

    def write(url: str) -> None:
        snippet = SNIPPET.replace("wss://vision.example", url.replace("http", "ws", 1))
        (tmp_path / "index.html").write_text(PAGE.replace("SNIPPET", snippet))

    handler = partial(Quiet, directory=str(tmp_path))
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}", write
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    yield context.new_page()
    context.close()


def test_named_origin_may_fetch_and_stream(server, origin, page):
    application, write = origin
    with gateway(server[0], options=("--cors-origin", application)) as url:
        write(url)
        page.goto(application)
        found = page.evaluate(f"classify({json.dumps(url)})")
        assert len(found["body"]["classification"]["categories"]) == 1
        assert found["id"] == "mine"
        streamed = page.evaluate("stream(3)")
    assert streamed["code"] == 1000
    answered = [answer for answer in streamed["answers"] if "result" in answer]
    assert sorted(answer["frameId"] for answer in streamed["answers"]) == [1, 2, 3]
    assert answered[-1]["frameId"] == 3  # the newest is always answered


def test_other_origin_may_do_neither(server, origin, page):
    application, write = origin
    with gateway(server[0]) as url:
        write(url)
        page.goto(application)
        refused = page.evaluate(f"classify({json.dumps(url)}).catch((error) => String(error))")
        assert "TypeError" in refused
        streamed = page.evaluate("stream(1)")
    assert streamed["code"] == 1008
    assert streamed["answers"][0]["error"]["code"] == "PERMISSION_DENIED"
