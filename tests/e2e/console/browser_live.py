"""The view of figures in Chromium."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.consoles import IMAGE


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
