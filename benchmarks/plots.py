"""Plots of docs/benchmarks: python -m benchmarks.plots; `make pictures` runs it.

latency-load.svg   p50, p90 and failed calls against the offered load, fp32 and int8, with the
                   throughput that each sustains
scale-out.svg      simulated throughput and p99 against the number of replicas
new-replica.svg    simulated share of the newest replica after a scale-up and in a rolling update

The first is drawn from the tables that `make bench` has written into results.md, the others from
data/scale-out.json, which `python -m benchmarks.scale_out --write` writes with its page: a plot and
its figures are of one run. Colours follow the reader's light or dark mode.
"""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parents[1] / "docs"
IMAGES = DOCS / "images"
PANEL, INK, FAINT = "#ffffff", "#1f2328", "#d1d9e0"
BLUE, VIOLET, ORANGE = "#0969da", "#8250df", "#bc4c00"
COLORS = {"fp32": BLUE, "bf16": VIOLET, "int8": ORANGE}
BY_POLICY = {
    "round robin by each client": BLUE,
    "fewer calls of two": VIOLET,
    "fewest calls of all": ORANGE,
}
BY_AGE = {"never": ORANGE, "120 s": VIOLET, "30 s": BLUE}
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
        p90_ms: 90th percentile of the latency in milliseconds.
        failed: Share of the calls that failed, 0 to 1.
    """

    rate: float
    p50_ms: float
    p90_ms: float
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
            points.append(Point(float(rate), float(cells[3]), float(cells[4]), failed))
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
        axes.plot(rates, [point.p90_ms for point in points], "o--", color=COLORS[name], alpha=0.6)
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
    axes.set_ylabel("latency, ms (p50; p90 dashed)", color=INK)
    below.set_ylim(0, 60)
    below.set_ylabel("failed, %", color=INK)
    below.set_xlabel(
        "offered load, images/s (Poisson arrivals, deadline 1 s); dotted: sustained", color=INK
    )
    return _svg(figure, axes, below)


def by_replicas(data: dict[str, Any]) -> str:
    """Return the plot of throughput and p99 by number of replicas as SVG."""
    figure, (above, axes) = pyplot.subplots(
        2, figsize=(6.67, 4.6), sharex=True, layout="constrained", facecolor=PANEL
    )
    for policy, color in BY_POLICY.items():
        points = [one for one in data["sizes"] if one["policy"] == policy]
        counts = [one["replicas"] for one in points]
        per_replica = [one["answered"] / one["replicas"] for one in points]
        above.plot(counts, per_replica, "o-", color=color)
        axes.plot(counts, [one["p99_ms"] for one in points], "o-", color=color, label=policy)
    above.set_ylim(bottom=0)
    above.set_ylabel("answers/s of each replica", color=INK)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("p99, ms", color=INK)
    axes.set_xlabel("replicas (simulated, 80% load, 32 clients)", color=INK)
    axes.legend(facecolor=PANEL, edgecolor=FAINT, labelcolor=INK)
    return _svg(figure, above, axes)


def newest_share(data: dict[str, Any]) -> str:
    """Return the plot of the newest replica's share over time as SVG."""
    figure, panels = pyplot.subplots(
        2, figsize=(6.67, 4.6), sharex=True, layout="constrained", facecolor=PANEL
    )
    for axes, title in zip(panels, ("scale-up, 4 to 5", "rolling update of 10"), strict=True):
        for age, color in BY_AGE.items():
            course = data["courses"][f"{title}, {age}"]
            times = [one["at_s"] for one in course]
            axes.plot(times, [one["share"] for one in course], color=color, label=age)
        axes.axhline(1, color=FAINT, linewidth=1)
        axes.set_ylim(0, 1.5)
        axes.set_title(title, color=INK, fontsize=10, loc="left")
        axes.set_ylabel("of an equal share", color=INK)
    panels[0].legend(
        title="connections end after",
        facecolor=PANEL,
        edgecolor=FAINT,
        labelcolor=INK,
        loc="lower right",
    ).get_title().set_color(INK)
    panels[1].set_xlabel("seconds from the change (simulated)", color=INK)
    return _svg(figure, *panels)


def _svg(figure: Any, *panels: Any) -> str:
    """Return a figure in the project's style as SVG."""
    for one in panels:
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
    data = json.loads((DOCS / "benchmarks" / "data" / "scale-out.json").read_text())
    (IMAGES / "scale-out.svg").write_text(by_replicas(data))
    (IMAGES / "new-replica.svg").write_text(newest_share(data))


if __name__ == "__main__":
    main()
