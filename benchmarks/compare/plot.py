"""Plot of a comparison, from its recorded results."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib import pyplot

from benchmarks.compare.report import OURS, number
from benchmarks.compare.results import CLIENTS, Result
from benchmarks.plots import FAINT, INK, _with_dark_mode

# Rows of panels: the network, and its figures with their titles.
PANELS = {
    "resnet50": {
        f"clients_{CLIENTS}.per_s": f"ResNet50: images/s, {CLIENTS} clients",
        "arrivals.p50_ms": "ResNet50: p50 under arrivals, ms",
    },
    "stub": {
        f"clients_{CLIENTS}.per_s": f"stub: images/s, {CLIENTS} clients",
        f"clients_{CLIENTS}.cpu_ms": "stub: CPU per image, ms",
    },
}


def plot(results: list[Result]) -> str:
    """Return bars, with the range of the turns, as SVG for light and dark mode."""
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "resnet50", "font.size": 10}
    shown = {
        network: [one for one in results if one.network == network and not one.failure][::-1]
        for network in PANELS
    }
    heights = [max(1, len(some)) for some in shown.values()]
    figure, rows = pyplot.subplots(
        2,
        2,
        sharey="row",
        figsize=(8, 1.4 + 0.32 * sum(heights)),
        height_ratios=heights,
        layout="constrained",
    )
    for (network, titles), panels in zip(PANELS.items(), rows, strict=True):
        for panel, (name, title) in zip(panels, titles.items(), strict=True):
            _bars(panel, [one for one in shown[network] if one.figures.get(name)], name, title)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    return _with_dark_mode(out.getvalue())


def _bars(panel: Any, results: list[Result], name: str, title: str) -> None:
    colors = ["#0969da" if one.name.startswith(OURS) else "#8c959f" for one in results]
    values = [one.median(name) for one in results]
    ends = [one.range(name) for one in results]
    spread = [
        [value - low for value, (low, _) in zip(values, ends, strict=True)],
        [high - value for value, (_, high) in zip(values, ends, strict=True)],
    ]
    bars = panel.barh(
        [one.name for one in results],
        values,
        xerr=spread,
        color=colors,
        error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 2},
    )
    panel.bar_label(bars, [number(value) for value in values], padding=4, color=INK)
    panel.margins(x=0.2)
    panel.set_title(title, color=INK, fontsize=10)
    panel.tick_params(colors=INK, which="both")
    panel.grid(axis="x", color=FAINT, linewidth=0.5)
    panel.set_axisbelow(True)
    for spine in panel.spines.values():
        spine.set_color(FAINT)
