"""Plots of docs/benchmarks/results.md: python -m benchmarks.plots; `make pictures` runs it.

latency-load.svg   p50, p99 and failed calls against the offered load, fp32 and int8, with the
                   throughput that each sustains

They are drawn from the tables that `make bench` has written into the page, so a plot and its
figures are of one run. Colours follow the reader's light or dark mode.
"""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parents[1] / "docs"
IMAGES = DOCS / "images"
PANEL, INK, FAINT = "#ffffff", "#1f2328", "#d1d9e0"
COLORS = {"fp32": "#0969da", "bf16": "#8250df", "int8": "#bc4c00"}
DARK = {
    PANEL: "#0d1117",
    INK: "#f0f6fc",
    FAINT: "#3d444d",
    "#0969da": "#4493f8",
    "#8250df": "#ab7df8",
    "#bc4c00": "#f0883e",
}
_ROW = re.compile(r"^\| (\d+)%: ([\d.]+)/s \|(.*)\|$", re.MULTILINE)
# Answers/s of a closed loop.
_CLOSED = re.compile(r"^\| 16 [^|]+\| [\d.]+ \| ([\d.]+) \|", re.MULTILINE)


class Point(NamedTuple):
    """One offered load.

    Attributes:
        rate: Offered images a second.
        p50_ms: Median latency in milliseconds.
        p99_ms: 99th percentile of the latency in milliseconds.
        failed: Share of the calls that failed, 0 to 1.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    failed: float


def sweep(page: str, title: str) -> list[Point]:
    """Return the loads of the section whose heading begins with `title`.

    Raises:
        ValueError: The page has no such section, or no sweep in it.
    """
    section = page.partition(f"\n### {title}")[2].partition("\n### ")[0]
    points = []
    for _, rate, rest in _ROW.findall(section.partition("Poisson arrivals")[2]):
        cells = [cell.strip() for cell in rest.split("|")]
        if len(cells) == 9:  # the table of latencies, not that of stages
            failed = float(cells[8].rstrip("%")) / 100
            points.append(Point(float(rate), float(cells[3]), float(cells[5]), failed))
    if not points:
        raise ValueError(
            f"docs/benchmarks/results.md has no sweep below {title!r}: run `make bench`"
        )
    return points


def sustained(page: str, title: str) -> float:
    """Return the largest throughput of a closed loop in a section, in images/s.

    Raises:
        ValueError: The page has no such section, or no closed loop in it.
    """
    section = page.partition(f"\n### {title}")[2].partition("\n### ")[0]
    found = [float(rate) for rate in _CLOSED.findall(section.partition("Poisson arrivals")[0])]
    if not found:
        raise ValueError(
            f"docs/benchmarks/results.md has no closed loop below {title!r}: run `make bench`"
        )
    return max(found)


def latency_against_load(page: str) -> str:
    """Return the plot as SVG."""
    figure, (axes, below) = pyplot.subplots(
        2,
        figsize=(6.67, 4.2),
        sharex=True,
        height_ratios=(3, 1),
        layout="constrained",
        facecolor=PANEL,
    )
    for name, title in (("fp32", "fp32, the engine"), ("int8", "int8 made of")):
        points = sweep(page, title)
        rates = [point.rate for point in points]
        axes.plot(rates, [point.p50_ms for point in points], "o-", color=COLORS[name])
        axes.plot(rates, [point.p99_ms for point in points], "o--", color=COLORS[name], alpha=0.6)
        failed = [point.failed * 100 for point in points]
        below.plot(rates, failed, "o-", color=COLORS[name], clip_on=False)
        for one in (axes, below):
            one.axvline(sustained(page, title), color=COLORS[name], linestyle=":", linewidth=1)
        second = points[1]
        axes.annotate(
            name,
            (second.rate, second.p50_ms),
            xytext=(8, -12),
            textcoords="offset points",
            color=COLORS[name],
            weight="bold",
        )
    axes.axhline(1000, color=FAINT, linewidth=1)
    axes.set_yscale("log")
    axes.set_yticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
    axes.set_xlim(left=0)
    axes.set_ylabel("latency, ms (p50; p99 dashed)", color=INK)
    below.set_ylim(0, 60)
    below.set_ylabel("failed, %", color=INK)
    below.set_xlabel(
        "offered load, images/s (Poisson arrivals, deadline 1 s); dotted: sustained", color=INK
    )
    for one in (axes, below):
        one.tick_params(colors=INK, which="both")
        one.grid(color=FAINT, linewidth=0.5)
        one.set_facecolor(PANEL)
        for spine in one.spines.values():
            spine.set_color(FAINT)
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return _with_dark_mode(out.getvalue())


def _with_dark_mode(svg: str) -> str:
    """Add the style of dark mode, by the colours that the drawing has."""
    rules = "".join(
        f'*[style*="{part}: {light}"] {{ {part}: {dark} !important }} '
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{ {rules}}}</style>"
    return svg.replace("<defs>", f"{style}\n <defs>", 1)


def main() -> None:
    """Write the pictures."""
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "resnet50", "font.size": 10}
    IMAGES.mkdir(exist_ok=True)
    page = (DOCS / "benchmarks" / "results.md").read_text()
    (IMAGES / "latency-load.svg").write_text(latency_against_load(page))


if __name__ == "__main__":
    main()
