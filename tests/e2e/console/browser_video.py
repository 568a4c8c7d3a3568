"""The view of video in Chromium, with a simulated camera."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.support.administering import APP
from tests.support.consoles import clip, tile, visiting
from tests.support.gateways import GatewayProcess, gateway
from tests.support.serving import server_processes


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
    assert int(tile(page, "Delivered")) > 0
    assert tile(page, "Dropped") == "0"
    expect(page.locator("#video-call pre")).to_contain_text('frames_from_video("clip.webm"')
    assert not page.locator("#video-error").is_visible()


def test_variant_is_changed_while_the_webcam_streams(secured_visit):
    page = secured_visit.open("video")
    secured_visit.use_token(APP)
    page.click("#webcam")
    expect(page.locator("#caption-label")).to_have_text("tabby cat")
    page.select_option("#video-options [name=variant]", "animals-next")
    expect(page.locator("#video-call pre")).to_contain_text('variant="animals-next"')
    expect(page.locator("#video-figures")).to_contain_text(re.compile(r"Delivered[1-9]"))
    expect(page.locator("#video-state")).to_have_text("streaming")
    page.click("nav a[href='#classify']")  # another view stops it
    page.click("nav a[href='#video']")
    expect(page.locator("#video-state")).to_have_text("stopped")


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


def test_server_that_is_killed_is_reported(browser):
    with server_processes() as start:
        process = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"),
            *("--metrics-listen", "127.0.0.1:0", "--no-listen-while-loading"),
        )
        address = process.wait_until_listening()
        metrics = f"{process.process.stdout.readline().split()[-1]}/metrics"
        with gateway(address, options=("--metrics", metrics)) as url:
            for visit in visiting(browser, url):
                page = visit.open("video")
                page.click("#webcam")
                expect(page.locator("#caption-label")).to_have_text("tench")
                other = page.context.new_page()
                other.goto(f"{url}/console/#live")
                expect(other.locator("#live-legend")).to_contain_text("IMAGENET1K_V2")
                process.process.kill()
                text = "server: does not respond, see whether it is running"
                expect(page.locator("#video-error")).to_contain_text(text)
                for opened in (page, other):
                    expect(opened.locator("#server-state-text")).to_have_text("unreachable")
                    expect(opened.locator("#connection-error")).to_contain_text(text)
                expect(other.locator("#live-state")).to_have_text("0 of 1 servers")
                expect(other.locator("#live-legend")).to_contain_text("IMAGENET1K_V2")


def test_gateway_that_is_killed_is_reported(browser, server):
    address, metrics = server
    running = GatewayProcess("--server", address, "--metrics", metrics)
    try:
        for visit in visiting(browser, running.wait_until_listening()):
            page = visit.open("video")
            page.click("#webcam")
            expect(page.locator("#caption-label")).to_have_text("tench")
            other = page.context.new_page()
            other.goto(f"{visit.url}/console/#live")
            expect(other.locator("#live-legend")).to_contain_text("IMAGENET1K_V2")
            running.process.kill()
            expect(page.locator("#video-error")).to_contain_text("The stream was interrupted.")
            expect(page.locator("#stop")).to_be_disabled()
            expect(other.locator("#live-error")).to_contain_text("The gateway does not respond.")
    finally:
        running.process.kill()
        running.wait_until_ended()
