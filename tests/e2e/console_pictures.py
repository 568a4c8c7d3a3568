"""Draw the pictures of docs/how-to/console.md in Chromium: `make console-pictures`.

A server of two variants that know handwritten digits, one fitted on images of 48 and one of 64
pixels, is called as a visitor of the console calls it, and by two other clients meanwhile.
"""

from __future__ import annotations

import io
import itertools
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from resnet50_client import Client
from tests.support.administering import ADMIN, tokens_file
from tests.support.consoles import CHROMIUM, TIMEOUT_MS
from tests.support.gateways import gateway
from tests.support.serving import server_processes

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "images"
CACHE = ROOT / ".cache" / "console"
SIZES = {"digits": 48, "digits-64": 64}
SIDE = 256
DIGIT_S = 4
COLOURS = 256
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def main() -> int:
    """Draw all pictures; return the exit code."""
    sys.path.insert(0, str(ROOT / "examples"))
    from digits import build, digits

    for name, size in SIZES.items():
        if not (CACHE / name / "variant.json").exists():
            build(CACHE / name, size, "random")
    images = [encoded(picture) for picture in digits().held_out[:40]]
    with serving() as (url, address), sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        draw(launched, url, address, images)
        launched.close()
    return 0


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """Run the server and a gateway; yield the gateway's URL and the server's address."""
    with tempfile.TemporaryDirectory() as folder, server_processes() as start:
        variants = [f"--variants={name}={CACHE / name}" for name in SIZES]
        process = start(
            *(*variants, "--variants-dir", str(CACHE), "--default-variant", "digits"),
            *("--tokens-file", str(tokens_file(Path(folder))), "--engine", "torch"),
            *("--metrics-listen", "127.0.0.1:0", "--no-listen-while-loading"),
        )
        address = process.wait_until_listening()
        assert process.process.stdout is not None
        metrics = process.process.stdout.readline().split()[-1]
        with gateway(address, options=("--metrics", f"{metrics}/metrics")) as url:
            yield url, address


def draw(browser: Browser, url: str, address: str, images: list[bytes]) -> None:
    """Draw each view, some of them in the dark and on a phone."""
    files = [
        {"name": f"digit-{number}.png", "mimeType": "image/png", "buffer": content}
        for number, content in enumerate(images[:10], 1)
    ]

    def show_images(page: Page) -> None:
        page.set_input_files("#file", files)
        expect(page.locator("#result .facts")).to_contain_text("digit-10.png")
        expect(page.locator("#thumbnails li")).to_have_count(9)
        page.mouse.click(5, 400)  # no control has the focus

    def show_video(page: Page) -> None:
        clip = {"name": "digits.webm", "mimeType": "video/webm", "buffer": clip_of(images)}
        page.select_option("#video-options [name=rate]", "5")
        page.set_input_files("#video-file", [clip])
        page.wait_for_timeout(8_000)
        position = "document.getElementById('video').currentTime"
        while page.evaluate(position) % DIGIT_S < DIGIT_S - 1:
            page.wait_for_timeout(100)

    def show_live(page: Page) -> None:
        with calling(address, images):
            page.wait_for_timeout(45_000)
            save(page, "console-live")

    def show_variants(page: Page) -> None:
        page.select_option("#split-form [name=candidate]", "digits-64")
        page.fill("#split-form [name=canary]", "10")
        page.fill("#split-form [name=shadow]", "100")
        page.click("#split-form button")
        expect(page.locator(".split")).to_have_count(1)
        with calling(address, images):
            page.wait_for_timeout(15_000)
        page.evaluate("scrollTo(0, 0)")

    def visit(view: str, act: Callable[[Page], None], name: str | None, **options: object) -> None:
        settings = {"viewport": DESKTOP, "color_scheme": "light", **options}
        context = browser.new_context(**settings)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.goto(f"{url}/console/#{view}")
        page.click("#token-button")
        page.fill("#token-form input", ADMIN)
        page.click("#token-form button[type=submit]")
        expect(page.locator("#server-state-text")).to_have_text("ready")
        act(page)
        if name is not None:
            save(page, name)
        context.close()

    tall = {"width": 1280, "height": 940}
    visit("classify", show_images, "console-images", viewport=tall)
    visit("classify", show_images, "console-images-dark", viewport=tall, color_scheme="dark")
    visit("classify", show_images, "console-phone", viewport=PHONE)
    visit("video", show_video, "console-video", color_scheme="dark")
    visit("variants", show_variants, "console-variants", viewport={"width": 1280, "height": 1100})
    visit("live", show_live, None)


def save(page: Page, name: str) -> None:
    """Write what the page shows, with few colours: a tenth of the bytes."""
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    # Maximum coverage keeps the colours of small parts, such as the green dot of the state.
    few = shown.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(PICTURES / f"{name}.png", optimize=True)


@contextmanager
def calling(address: str, images: list[bytes]) -> Iterator[None]:
    """Classify images with both variants, without a pause."""
    stopping = threading.Event()

    def call(variant: str, pause_s: float) -> None:
        with Client(address, token=ADMIN, variant=variant) as client:
            for number, image in enumerate(itertools.cycle(images)):
                client.classify(image, caller_key=str(number))
                if stopping.wait(pause_s):
                    return

    pauses = {"digits": 0.05, "digits-64": 0.15}
    threads = [threading.Thread(target=call, args=arguments) for arguments in pauses.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def encoded(picture: Image.Image) -> bytes:
    """Return a digit as a PNG file that can be seen."""
    buffer = io.BytesIO()
    picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def clip_of(images: list[bytes]) -> bytes:
    """Return a video of digits, each shown for DIGIT_S seconds, five frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=5)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for content in images:
            frame = av.VideoFrame.from_image(Image.open(io.BytesIO(content)))
            for _ in range(5 * DIGIT_S):
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
