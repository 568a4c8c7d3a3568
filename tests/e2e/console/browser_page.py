"""The page in Chromium: keyboard, names, width, colours, policy."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.support.consoles import IMAGE, VIEWS, visiting


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
