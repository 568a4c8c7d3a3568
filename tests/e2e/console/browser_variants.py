"""The view of variants in Chromium: token, changes, traffic splits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.support.administering import ADMIN, APP


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
    page.get_by_role("button", name="End the split of animals").focus()
    with page.expect_response("**/ListTrafficSplits"):  # the list is read again, the focus stays
        page.locator("#refresh").dispatch_event("click")
    expect(page.get_by_role("button", name="End the split of animals")).to_be_focused()
    page.get_by_role("button", name="End the split of animals").click()
    page.click("#confirm-yes")
    expect(page.locator("#variants-notice")).to_have_text("The split of animals has ended.")
    expect(page.locator(".split")).to_have_count(0)


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_shown_change_can_be_repeated_elsewhere(secured_visit, secured, tmp_path, language):
    page = secured_visit.open("variants")
    secured_visit.use_token(ADMIN)
    page.get_by_role("button", name="Make default: animals-next").click()
    expect(page.locator("#variants-notice")).to_contain_text("animals-next is the default")
    page.click(f"#variants-call [role=tab] >> text={language}")
    shown = page.locator("#variants-call pre").text_content()
    program = ["bash", "-c"] if language == "curl" else [sys.executable, "-c"]
    done = subprocess.run(
        [*program, shown.replace("127.0.0.1:50051", secured[0])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"RESNET50_TOKEN": ADMIN, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "animals-next" in done.stdout, done.stderr


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
