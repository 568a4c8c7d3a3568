"""The console in Chromium, against a real server and a real gateway: `make console`.

Chromium is Debian's, or that of CHROMIUM; its camera is a simulated one. Every test fails on an
error in the browser's console, a violation of the page's policy, or a request to another site.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.administering import ADMIN, APP, describe, tokens_file
from tests.support.gateways import gateway
from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes

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

    def _log(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(FAILED):
            self.errors.append(text)

    def open(self, view: str = "classify") -> Page:
        self.page.goto(f"{self.url}/console/#{view}")
        expect(self.page.locator("#server-state-text")).not_to_have_text("connecting")
        return self.page

    def choose(self, *names: str) -> None:
        """Choose images by the chooser of files."""
        files = [{"name": name, "mimeType": "image/jpeg", "buffer": IMAGE} for name in names]
        self.page.set_input_files("#file", files)

    def use_token(self, token: str) -> None:
        self.page.click("#token-button")
        self.page.fill("#token-form input", token)
        self.page.click("#token-form button[type=submit]")
        expect(self.page.locator("#server-state-text")).to_have_text("ready")


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
def secured(tmp_path) -> Iterator[str]:
    """Yield the URL of a gateway before a server with tokens and variants to load."""
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
        with gateway(process.wait_until_listening()) as found:
            yield found


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


@pytest.fixture
def visit(browser, url) -> Iterator[Visit]:
    yield from visiting(browser, url)


@pytest.fixture
def secured_visit(browser, secured) -> Iterator[Visit]:
    yield from visiting(browser, secured)


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


def test_chosen_image_shows_categories_time_and_weights(visit):
    page = visit.open()
    visit.choose("photo.jpg")
    expect(page.locator("#best")).to_have_text("tench")
    expect(page.locator("#result .bars li")).to_have_count(5)
    expect(page.locator("#result .bars .number").first).to_have_text("63.2 %")
    expect(page.locator("#result .key")).to_contain_text("Compute")
    assert re.search(r"[\d.]+ ms", page.locator("#result .timing .heading").text_content())
    facts = page.locator("#result .facts").text_content()
    assert "VariantIMAGENET1K_V2" in facts and re.search(r"Digest[0-9a-f]{12}", facts)
    expect(page.locator("#announcer")).to_have_text("tench, 63.2 %")


def test_number_of_categories_is_chosen(visit):
    page = visit.open()
    page.fill("#classify-options [name=top_k]", "3")
    visit.choose("photo.jpg")
    expect(page.locator("#result .bars li")).to_have_count(3)


def test_dropped_images_are_compared_with_earlier_ones(visit):
    page = visit.open()
    content = base64.b64encode(IMAGE).decode()
    for name in ("first.jpg", "second.jpg"):
        page.evaluate(
            """([content, name]) => {
              const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
              const data = new DataTransfer();
              data.items.add(new File([bytes], name, { type: "image/jpeg" }));
              const options = { dataTransfer: data, bubbles: true, cancelable: true };
              document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
            }""",
            [content, name],
        )
        expect(page.locator("#result .facts")).to_contain_text(name)
    seen = page.locator("#thumbnails button")
    expect(seen).to_have_count(1)
    expect(seen).to_contain_text("cosine 1.000")  # the null engine's embeddings are all the same
    assert seen.locator("img").evaluate("(image) => image.naturalWidth") == 160
    seen.click()
    expect(page.locator("#result .facts")).to_contain_text("first.jpg")


def test_cosine_is_of_the_vectors_and_within_one_space(visit):
    page = visit.open()
    found = page.evaluate(
        """async () => {
          const { cosineOf, unitOf } = await import("./memory.js");
          const image = (values, space) => ({ unit: unitOf(values), space });
          const one = image([3, 4, 0], "a@1");
          return [
            cosineOf(one, image([4, 3, 0], "a@1")),
            cosineOf(one, image([0, 0, 2], "a@1")),
            cosineOf(one, image([3, 4, 0], "b@2")),
            cosineOf(one, image([0, 0, 0], "a@1")),
          ];
        }"""
    )
    assert found[:2] == pytest.approx([0.96, 0.0], abs=1e-6)
    assert found[2:] == [None, None]


def test_refused_file_shows_the_servers_words(visit):
    page = visit.open()
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"}
    page.set_input_files("#file", [file])
    error = page.locator("#result .error")
    expect(error).to_contain_text("INVALID_ARGUMENT")
    expect(error).to_contain_text("image.encoded: 8 bytes beginning with")
    expect(error.locator("dd").first).to_have_text("image.encoded")
    expect(page.locator("#no-preview")).to_contain_text("notes.txt")


def test_copied_command_of_curl_gives_the_same_answer(visit, tmp_path):
    page = visit.open()
    visit.choose("it's a photo.jpg")
    command = page.locator("#classify-call pre").text_content()
    (tmp_path / "it's a photo.jpg").write_bytes(IMAGE)
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert '"label":"tench"' in done.stdout, done.stderr
    page.click("#classify-call [role=tab] >> text=Python")
    assert page.locator("#classify-call [aria-selected=true]").text_content() == "Python"


def test_shown_python_gives_the_same_answer(visit, server, tmp_path):
    page = visit.open()
    visit.choose("photo.jpg")
    page.click("#classify-call [role=tab] >> text=Python")
    code = page.locator("#classify-call pre").text_content()
    (tmp_path / "photo.jpg").write_bytes(IMAGE)
    done = subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:50051", server[0])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines()[0].startswith("tench 0.63"), done.stderr


def test_webcam_frames_are_answered_until_it_is_stopped(visit):
    page = visit.open("video")
    page.click("#webcam")
    expect(page.locator("#caption-label")).to_have_text("tench")
    expect(page.locator("#video-bars li")).to_have_count(5)
    expect(page.locator("#video-figures")).to_contain_text(re.compile(r"Delivered[1-9]"))
    assert tile(page, "Median").endswith(" ms")
    page.click("#stop")
    expect(page.locator("#video-state")).to_have_text("stopped")
    assert page.locator("#video").evaluate("(video) => video.srcObject") is None


def test_every_frame_of_a_video_file_is_answered_in_order(visit):
    page = visit.open("video")
    page.select_option("#video-options [name=delivery]", "ordered")
    file = {"name": "clip.webm", "mimeType": "video/webm", "buffer": clip()}
    page.set_input_files("#video-file", [file])
    expect(page.locator("#caption-label")).to_have_text("tench")
    expect(page.locator("#video-state")).to_have_text("the video has ended")
    expect(page.locator("#video-call pre")).to_contain_text('frames_from_video("clip.webm"')
    assert not page.locator("#video-error").is_visible()


def test_file_that_is_no_video_is_refused(visit):
    page = visit.open("video")
    file = {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video"}
    page.set_input_files("#video-file", [file])
    expect(page.locator("#video-error")).to_contain_text("notes.mp4: the browser cannot play it")


def test_stream_that_the_server_refuses_shows_its_words(secured_visit):
    page = secured_visit.open("video")
    page.click("#webcam")
    expect(page.locator("#video-error")).to_contain_text("UNAUTHENTICATED")
    expect(page.locator("#video-error")).to_contain_text("this server requires a token")


def test_live_charts_follow_the_server(visit, server):
    page = visit.open("live")
    expect(page.locator("#live-legend")).to_contain_text("IMAGENET1K_V2")
    expect(page.locator("#live-charts .chart")).to_have_count(6)
    other = page.context.new_page()
    other.goto(f"{visit.url}/console/")
    file = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": IMAGE}
    other.set_input_files("#file", [file])
    batches = page.locator("#live-charts svg").nth(2)
    expect(batches).to_have_attribute("aria-label", "Images in a batch: IMAGENET1K_V2 1.00")
    expect(page.locator("#live-figures")).to_contain_text("Images/s")


def test_chart_shows_the_values_that_the_pointer_is_at(visit):
    page = visit.open()
    found = page.evaluate(
        """async () => {
          const { Chart } = await import("./chart.js");
          const chart = new Chart("Latency", (value) => `${value} ms`, { seconds: 10 });
          document.getElementById("main").prepend(chart.element);
          [[100, 3], [105, null], [110, 7]].forEach(([time, value]) =>
            chart.add(time, { one: [value, value && value + 1] }));
          const plot = chart.element.querySelector(".plot");
          const text = () => chart.newest.textContent;
          const texts = [text(), chart.most.textContent];
          const { left, top, width } = plot.getBoundingClientRect();
          const at = (share) => ({ clientX: left + share * width, clientY: top + 5 });
          plot.dispatchEvent(new PointerEvent("pointermove", at(0.1)));
          texts.push(text());
          plot.dispatchEvent(new PointerEvent("pointerleave"));
          return [...texts, text()];
        }"""
    )
    assert found == ["7 ms / 8 ms", "10", "3 ms / 4 ms", "7 ms / 8 ms"]
    assert page.locator("#main > .chart path").count() == 2


def test_gateway_without_metrics_says_how_to_get_charts(secured_visit):
    page = secured_visit.open("live")
    expect(page.locator("#live-error")).to_contain_text("--metrics URL")


def test_token_is_asked_for_and_kept_in_memory_only(secured_visit):
    page = secured_visit.open()
    expect(page.locator("#server-state-text")).to_have_text("needs a token")
    page.click("#connection-error button")
    page.fill("#token-form input", APP)
    page.keyboard.press("Enter")
    expect(page.locator("#server-state-text")).to_have_text("ready")
    expect(page.locator("#connection-error")).to_be_hidden()
    secured_visit.choose("photo.jpg")
    expect(page.locator("#best")).to_have_text("tabby cat")
    expect(page.locator("#classify-call pre")).to_contain_text("$RESNET50_TOKEN")
    assert APP not in page.content()
    assert page.context.storage_state() == {"cookies": [], "origins": []}
    page.reload()
    expect(page.locator("#server-state-text")).to_have_text("needs a token")


def test_variant_is_loaded_made_default_and_unloaded(secured_visit):
    page = secured_visit.open("variants")
    secured_visit.use_token(ADMIN)
    expect(page.locator(".variant")).to_have_count(2)
    page.fill("#load-form [name=name]", "animals-later")
    page.click("#load-form button")
    notice = page.locator("#variants-notice")
    expect(notice).to_have_text("animals-later is loaded.")
    expect(page.locator(".variant")).to_have_count(3)
    expect(page.locator("#variants-call pre")).to_contain_text('{"name":"animals-later"}')
    page.get_by_role("button", name="Make default: animals-later").click()
    expect(notice).to_have_text("animals-later is the default, no longer animals.")
    page.get_by_role("button", name="Unload: animals-next").click()
    expect(page.locator("#confirm-title")).to_have_text("Unload animals-next?")
    page.click("#confirm-yes")
    expect(notice).to_have_text("animals-next is unloaded.")
    expect(page.locator(".variant")).to_have_count(2)


def test_cancelled_question_changes_nothing(secured_visit):
    page = secured_visit.open("variants")
    secured_visit.use_token(ADMIN)
    page.get_by_role("button", name="Unload: animals-next").click()
    page.keyboard.press("Escape")
    expect(page.locator("#confirm-dialog")).to_be_hidden()
    page.click("#refresh")
    expect(page.locator(".variant")).to_have_count(2)
    assert not page.locator("#variants-call").is_visible()


def test_split_shows_agreement_until_it_is_ended(secured_visit):
    page = secured_visit.open("variants")
    secured_visit.use_token(ADMIN)
    page.select_option("#split-form [name=variant]", "animals")
    page.select_option("#split-form [name=candidate]", "animals-next")
    page.fill("#split-form [name=shadow]", "100")
    page.click("#split-form button")
    expect(page.locator(".split h3")).to_have_text("animals → animals-next")
    page.click("nav a[href='#classify']")
    secured_visit.choose("photo.jpg")
    expect(page.locator("#best")).to_have_text("tabby cat")
    page.click("nav a[href='#variants']")
    expect(page.locator(".split")).to_contain_text("Agreement100 %")
    page.get_by_role("button", name="End the split of animals").click()
    page.click("#confirm-yes")
    expect(page.locator("#variants-notice")).to_have_text("The split of animals has ended.")
    expect(page.locator(".split")).to_have_count(0)


def test_change_without_the_scope_shows_the_servers_words(secured_visit):
    page = secured_visit.open("variants")
    secured_visit.use_token(APP)
    page.get_by_role("button", name="Make default: animals-next").click()
    error = page.locator("#variants-error")
    expect(error).to_contain_text("PERMISSION_DENIED")
    expect(error).to_contain_text("admin")
    error.get_by_role("button", name="Enter a token").click()
    expect(page.locator("#token-dialog")).to_be_visible()


def test_variant_that_cannot_be_loaded_shows_the_reason(secured_visit):
    page = secured_visit.open("variants")
    secured_visit.use_token(ADMIN)
    page.fill("#load-form [name=name]", "missing")
    page.press("#load-form [name=name]", "Enter")
    expect(page.locator("#variants-error")).to_contain_text("NOT_FOUND")
    expect(page.locator("#variants-error")).to_contain_text("missing")


def test_console_is_used_by_keyboard_alone(visit):
    page = visit.open()
    page.keyboard.press("Tab")
    expect(page.locator("#skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    for control in ("[name=variant]", "[name=top_k]"):
        page.keyboard.press("Tab")
        expect(page.locator(f"#classify-options {control}")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    file = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": IMAGE}
    chooser.value.set_files([file])
    expect(page.locator("#best")).to_have_text("tench")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#classify-call [aria-selected=true]")).to_have_text("Python")
    expect(page.locator("#classify-call [aria-selected=true]")).to_be_focused()
    page.locator("nav a[href='#variants']").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#view-variants")).to_be_visible()
    expect(page.locator("#main")).to_be_focused()


@pytest.mark.parametrize("view", VIEWS)
def test_controls_and_pictures_have_names(visit, view):
    page = visit.open(view)
    expect(page.locator(f"#view-{view}")).to_be_visible()
    session = page.context.new_cdp_session(page)
    session.send("Accessibility.enable")
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "textbox", "combobox", "checkbox", "spinbutton", "image", "tab"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in roles
    ]
    assert len(named) > 5
    assert [role for role, name in named if not name.strip()] == []


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_view_fits_a_phone_in_both_schemes(browser, url, view, scheme):
    size = {"width": 390, "height": 844}
    for visit in visiting(browser, url, viewport=size, color_scheme=scheme):
        page = visit.open(view)
        if view == "classify":
            visit.choose("a-photo-with-a-rather-long-name-that-does-not-fit-into-a-line.jpg")
            expect(page.locator("#best")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", background)[0])
        assert red < 64 if scheme == "dark" else red > 192


def test_text_has_enough_contrast_in_both_schemes(browser, url):
    """WCAG's 4.5 for text, of the colours that text and surfaces use."""
    for scheme in ("light", "dark"):
        for visit in visiting(browser, url, color_scheme=scheme):
            page = visit.open()
            ratios = page.evaluate(
                """() => {
                  const style = getComputedStyle(document.documentElement);
                  const level = (part) => {
                    const share = part / 255;
                    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
                  };
                  const canvas = document.createElement("canvas").getContext("2d");
                  const luminance = (name) => {
                    canvas.fillStyle = style.getPropertyValue(name);
                    const hex = canvas.fillStyle.slice(1);
                    const [red, green, blue] = [0, 2, 4].map(
                      (at) => level(parseInt(hex.slice(at, at + 2), 16)));
                    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
                  };
                  const found = {};
                  const check = (text, surface) => {
                    const [a, b] = [luminance(text), luminance(surface)].sort((x, y) => y - x);
                    found[`${text} on ${surface}`] = (a + 0.05) / (b + 0.05);
                  };
                  for (const surface of ["--page", "--panel"]) {
                    for (const text of ["--text", "--muted", "--accent", "--bad", "--warn"])
                      check(text, surface);
                    for (let index = 0; index < 6; index += 1) check(`--series-${index}`, surface);
                  }
                  check("--on-accent", "--accent");
                  check("--bad", "--bad-tint");
                  check("--accent", "--tint");
                  check("--muted", "--track");
                  check("--good", "--track");
                  return found;
                }"""
            )
            assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


def test_gateway_that_ends_is_reported_and_found_again(browser, server):
    address, _ = server
    with gateway(address) as url:
        for visit in visiting(browser, url):
            page = visit.open()
            page.route("**/v1/**", lambda route: route.abort())
            visit.choose("photo.jpg")
            expect(page.locator("#result .error")).to_contain_text("The gateway does not respond")
            page.unroute("**/v1/**")
            visit.choose("photo.jpg")
            expect(page.locator("#best")).to_have_text("tench")


def test_policy_blocks_what_would_be_inserted(visit):
    """The policy is enforced: an inline script or style does not run."""
    page = visit.open()
    found = page.evaluate(
        """() => new Promise((resolve) => {
          const blocked = [];
          document.addEventListener("securitypolicyviolation", (event) => {
            blocked.push(event.effectiveDirective);
            if (blocked.length === 2) resolve(blocked.sort());
          });
          const script = document.createElement("script");
          script.textContent = "globalThis.inserted = true";
          const style = document.createElement("style");
          style.textContent = "body { display: none }";
          document.head.append(script, style);
        })"""
    )
    assert found == ["script-src-elem", "style-src-elem"]
    assert page.evaluate("globalThis.inserted") is None
    assert all("Content Security Policy" in error for error in visit.errors)
    visit.errors.clear()
