"""Page and plot of a comparison, from its recorded results."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.compare.measure import CLIENTS, Result

NETWORKS = {
    "resnet50": "The network",
    "stub": "A stub network: the cost of the server, decoding and transform",
}
# Figure, its heading, and whether less is better.
COLUMNS = (
    ("one_p50_ms", "1 client: p50, ms", True),
    ("one_p99_ms", "p99, ms", True),
    ("per_s", f"{CLIENTS} clients: images/s", False),
    ("p50_ms", "p50, ms", True),
    ("p99_ms", "p99, ms", True),
    ("cpu_ms", "CPU per image, ms", True),
    ("memory_mib", "memory, MiB", True),
    ("open_p50_ms", "arrivals: p50, ms", True),
    ("open_p99_ms", "p99, ms", True),
)
NAMES = {
    "one_p50_ms": "p50 with one client",
    "one_p99_ms": "p99 with one client",
    "per_s": "throughput",
    "p50_ms": f"p50 with {CLIENTS} clients",
    "p99_ms": f"p99 with {CLIENTS} clients",
    "cpu_ms": "CPU per image",
    "memory_mib": "memory",
    "open_p50_ms": "p50 under arrivals",
    "open_p99_ms": "p99 under arrivals",
}
OURS = "this"


@dataclass(frozen=True)
class Run:
    """Circumstances of the results.

    Attributes:
        command: Command that made them.
        machine: Processor, cores, memory and system, as a sentence.
        versions: Packages that all servers share.
        date: ISO date.
        threads: PyTorch's threads, in each server.
        turns: Turns.
        seconds: Duration of each load.
        rates: Poisson arrivals per second, by network.
        load_average: Processes that wanted a core, 1-minute mean, before the first turn.
        environment: Environment variable that all servers run with.
    """

    command: str
    machine: str
    versions: str
    date: str
    threads: int
    turns: int
    seconds: float
    rates: dict[str, float]
    load_average: float
    environment: str = ""


def median(values: list[float]) -> float:
    """Return the median of the turns that have a value; nan of none."""
    some = [value for value in values if not math.isnan(value)]
    return statistics.median(some) if some else math.nan


def losses(results: list[Result]) -> list[str]:
    """Return a line per figure and network in which a peer is better than this server is."""
    lines = []
    for network in NETWORKS:
        measured = [one for one in results if one.network == network and not one.failure]
        ours = [one for one in measured if one.name.startswith(OURS)]
        for figure, _, less in COLUMNS:
            for own in ours:
                mine = median(getattr(own.figures, figure))
                better = []
                for peer in measured:
                    value = median(getattr(peer.figures, figure))
                    if not peer.name.startswith(OURS) and (value < mine if less else value > mine):
                        better.append(f"{peer.name} {_number(value)}")
                if better:
                    where = "stub network" if network == "stub" else own.name
                    lines.append(
                        f"* {NAMES[figure]}, {where}: {_number(mine)} against {', '.join(better)}."
                    )
    return lines


def page(results: list[Result], run: Run) -> str:
    """Return the page as Markdown."""
    lost = losses(results) or ["* Nothing in this run."]
    rates = ", ".join(f"{rate:.1f}/s ({network})" for network, rate in run.rates.items())
    parts = [
        "# Comparison with other servers",
        "",
        "`make compare` installs other Python model servers, each in its own virtual environment"
        " below `.cache/compare`, serves the same ResNet50 with them, checks that all answer"
        f" alike, and rewrites this page. This run: `{run.command}`, {run.date}.",
        "",
        f"{run.machine}; {run.versions}. The 1-minute load average before the run was"
        f" {run.load_average:.1f}{_busy(run)}.",
        "",
        "![Throughput and CPU per image of each server](../images/comparison.svg)",
        "",
        "## Method",
        "",
        "* The same state dict (random weights, which changes nothing of the time), float32, and"
        " torchvision's `IMAGENET1K_V2` transform; eight JPEGs of 512 x 384, one per request. The"
        " peers decode with Pillow.",
        f"* {run.threads} threads of PyTorch in every server, and batches of at most 16, where a"
        f" server batches{_environment(run)}. One load generator for"
        " gRPC and HTTP, a process of its own, shares the cores.",
        "* Before its load, each server answers all images: five categories and their"
        " probabilities within 0.001 of plain PyTorch. A server that answers otherwise is not"
        " measured.",
        f"* One server at a time, {run.turns} turns over all of them; the figures are medians of"
        f" the turns, {run.seconds:g} s per load: one client, {CLIENTS} clients (closed loop),"
        f" Poisson arrivals at 60% of the slowest server's throughput: {rates or 'not measured'}.",
        "* CPU and memory are of all processes of a server; shared memory counts once. CPU per"
        " image is the figure that other processes on the machine affect least.",
        "* The raw figures, per turn, are in [comparison.json](comparison.json).",
        "",
    ]
    for network, title in NETWORKS.items():
        parts += [f"## {title}", "", *_table(results, network), ""]
    parts += ["## Where this server loses", "", *lost, "", "## Settings", ""]
    parts += ["| server | versions | settings |", "|---|---|---|"]
    for result in _each(results):
        parts.append(f"| {result.name} | {result.versions} | {result.settings} |")
    failed = [one for one in results if one.failure]
    if failed:
        parts += ["", "## Not measured", ""]
        for one in failed:
            reason = " ".join(one.failure.split())[:300]
            parts.append(f"* {one.name}, {one.network}: {reason}")
    return "\n".join(parts) + "\n"


def _environment(run: Run) -> str:
    return f"; `{run.environment}`" if run.environment else ""


def _busy(run: Run) -> str:
    if run.load_average <= 0.5:
        return ""
    return ": **other processes ran at the same time**, so only large differences mean anything"


def _each(results: list[Result]) -> list[Result]:
    return list({result.name: result for result in reversed(results)}.values())[::-1]


def _number(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _table(results: list[Result], network: str) -> list[str]:
    headings = ["server", *(heading for _, heading, _ in COLUMNS), "errors"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for one in results:
        if one.network != network or one.failure:
            continue
        cells = [_number(median(getattr(one.figures, figure))) for figure, _, _ in COLUMNS]
        lines.append(f"| {one.name} | " + " | ".join(cells) + f" | {one.figures.errors} |")
    return lines


def plot(results: list[Result]) -> str:
    """Return bars of throughput and CPU per image as SVG, for light and dark mode."""
    import io

    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    from benchmarks.plots import FAINT, INK, _with_dark_mode

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "resnet50", "font.size": 10}
    shown = [one for one in results if one.network == "resnet50" and not one.failure][::-1]
    figure, panels = pyplot.subplots(
        1, 2, sharey=True, figsize=(8, 0.8 + 0.35 * len(shown)), layout="constrained"
    )
    titles = {"per_s": f"images/s, {CLIENTS} clients", "cpu_ms": "CPU per image, ms"}
    colors = ["#0969da" if one.name.startswith(OURS) else "#8c959f" for one in shown]
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        values = [median(getattr(one.figures, name)) for one in shown]
        bars: Any = panel.barh([one.name for one in shown], values, color=colors)
        panel.bar_label(bars, [_number(value) for value in values], padding=3, color=INK)
        panel.margins(x=0.18)
        panel.set_title(title, color=INK, fontsize=10)
        panel.tick_params(colors=INK, which="both")
        panel.grid(axis="x", color=FAINT, linewidth=0.5)
        panel.set_axisbelow(True)
        for spine in panel.spines.values():
            spine.set_color(FAINT)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    return _with_dark_mode(out.getvalue())
