"""The view of images in Chromium."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.support.administering import APP, describe
from tests.support.consoles import IMAGE, visiting
from tests.support.gateways import gateway
from tests.support.serving import server_processes


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


def test_images_are_ordered_by_cosine_and_the_oldest_forgotten(visit):
    page = visit.open()
    found = page.evaluate(
        """async () => {
          const { ImageMemory } = await import("./memory.js");
          const memory = new ImageMemory();
          const file = new File([new Uint8Array(1)], "x.bin");
          const add = (values, space) => memory.add(file, {}, { values, space }, {});
          const one = await add([1, 0], "a@1");
          await add([0, 1], "a@1");
          await add([3, 4], "a@1");
          await add([1, 0], "b@2");
          const order = memory.nearest(one).map(({ image, cosine }) => [image.number, cosine]);
          for (let count = 0; count < 60; count += 1) await add([1, 1], "a@1");
          return [order, memory.nearest(one).length];
        }"""
    )
    order, kept = found
    assert [number for number, _ in order] == [3, 2, 4]
    assert [cosine for _, cosine in order] == [pytest.approx(0.6), 0, None]
    assert kept == 48


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


def test_image_refused_for_its_token_is_sent_again_with_another_one(secured_visit):
    page = secured_visit.open()
    secured_visit.choose("photo.jpg")
    expect(page.locator("#result .error")).to_contain_text("UNAUTHENTICATED")
    secured_visit.use_token(APP)
    expect(page.locator("#best")).to_have_text("tabby cat")
    assert page.locator(".error:visible").count() == 0


def test_variant_without_categories_embeds(browser, tmp_path):
    describe(tmp_path / "vectors", ())
    with server_processes() as start:
        process = start(
            *("--variants", f"vectors={tmp_path / 'vectors'}", "--engine", "null"),
            "--no-listen-while-loading",
        )
        with gateway(process.wait_until_listening()) as url:
            for visit in visiting(browser, url):
                page = visit.open()
                options = page.locator("#classify-options option")
                expect(options.nth(0)).to_have_text("default (vectors, embeddings only)")
                expect(options.nth(1)).to_have_text("vectors, embeddings only")
                visit.choose("photo.jpg", "second.jpg")
                expect(page.locator("#best")).to_have_text("2,048 numbers")
                expect(page.locator("#thumbnails li")).to_contain_text("cosine 1.000")
                page.click("nav a[href='#video']")
                page.click("#webcam")
                expect(page.locator("#video-error")).to_contain_text("no classification head")


def test_names_of_categories_are_text_not_markup(browser, tmp_path):
    describe(tmp_path / "hostile", ("<img src=x onerror=alert(1)>", "<b>bold</b>"))
    with server_processes() as start:
        process = start(
            *("--variants", f"hostile={tmp_path / 'hostile'}", "--engine", "null"),
            "--no-listen-while-loading",
        )
        with gateway(process.wait_until_listening()) as url:
            for visit in visiting(browser, url):
                page = visit.open()
                visit.choose("<script>alert(2)</script>.jpg")
                expect(page.locator("#best")).to_have_text("<img src=x onerror=alert(1)>")
                assert (
                    page.locator("#result img, #result .name b, #best b, script:not([src])").count()
                    == 0
                )
                page.click("nav a[href='#video']")
                page.click("#webcam")
                expect(page.locator("#caption-label")).to_have_text("<img src=x onerror=alert(1)>")


def test_gateway_that_does_not_respond_is_reported(browser, server):
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
