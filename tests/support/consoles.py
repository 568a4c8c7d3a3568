"""The console in Chromium: visits, and what they send.

Chromium is Debian's, or that of CHROMIUM; its camera is a simulated one.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import av
import numpy as np
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.support.pictures import encode, photo_like

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
TIMEOUT_MS = 60_000
LABELS = ("tabby cat", "red fox", "barn owl", "hedgehog", "badger", "otter")
VIEWS = ("classify", "video", "live", "variants")
IMAGE = encode(photo_like(320, 240), "JPEG")
# The browser itself logs responses that are errors.
FAILED = "Failed to load resource"

expect.set_options(timeout=TIMEOUT_MS)


class Visit:
    """A page, and what the browser reports of it.

    Args:
        page: The page.
        url: Of the gateway.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self._log(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        # A dialog that opens before Playwright listens is not seen: so from the beginning.
        page.on("filechooser", lambda _: None)

    def _log(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(FAILED):
            self.errors.append(text)

    def open(self, view: str = "classify") -> Page:
        self.page.goto(f"{self.url}/console/#{view}")
        expect(self.page.locator("#server-state-text")).not_to_have_text("connecting")
        return self.page

    def choose(self, *names: str) -> None:
        """Choose images by the chooser of files."""
        files: list[FilePayload] = [
            {"name": name, "mimeType": "image/jpeg", "buffer": IMAGE} for name in names
        ]
        self.page.set_input_files("#file", files)

    def use_token(self, token: str) -> None:
        self.page.click("#token-button")
        self.page.fill("#token-form input", token)
        self.page.click("#token-form button[type=submit]")
        expect(self.page.locator("#server-state-text")).to_have_text("ready")


def visiting(browser: Browser, url: str, **options) -> Iterator[Visit]:
    """Yield a visit; fail if the browser reported an error or another site was asked."""
    context = browser.new_context(permissions=["camera"], **options)
    context.set_default_timeout(TIMEOUT_MS)
    made = Visit(context.new_page(), url)
    yield made
    context.close()
    assert made.errors == []
    hosts = {urlsplit(request).netloc for request in made.requests if request.startswith("http")}
    assert hosts <= {urlsplit(url).netloc}


def clip() -> bytes:
    """Make a video of a second that Chromium plays."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for shade in range(60):
            pixels = np.full((120, 160, 3), 4 * shade, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def tile(page: Page, term: str) -> str:
    """Return the figure of the video with a name."""
    text = page.locator("#video-figures div", has_text=term).locator("dd").text_content()
    return text or ""
