"""Plots of the report, as inline SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .figures import FIGURES, LoadRuns
from .result import Bench

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN = 7.6
INK, FAINT = "#1f2933", "#d5dbe1"
# Distinguishable with colour blindness (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, PURPLE, YELLOW = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b3262e",
    "#cc79a7",
    "#e69f00",
)
GREY = "#8a949e"
QUANTILES = {"p50": BLUE, "p90": GREEN, "p99": ORANGE, "p99.9": PURPLE}
STAGE_COLOURS = {
    "decode": YELLOW,
    "queue": ORANGE,
    "compute": BLUE,
    "rest of server": GREY,
    "outside": "#56b4e9",
}
ERROR_COLOURS = (RED, ORANGE, PURPLE, "#7f4f24", "#5c677d", "#333333")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text remains text: smaller, sharp and searchable
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "legend.frameon": False,
    # Names are external input: a dollar sign does not start a formula.
    "text.parse_math": False,
}


def latency_by_load(bench: Bench) -> str:
    """Draw latency quantiles against the offered load."""

    def draw(axes: Axes) -> None:
        for name, colour in QUANTILES.items():
            _by_load(axes, bench, f"{name} ms", name, colour)
        _capacity(axes, bench)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        axes.set(xlabel="calls made per second", ylabel="latency, ms", xlim=(0, None))
        axes.grid(True, which="major")
        _legend_above(axes)

    return _svg("latency-by-load", draw)


def rates_by_load(bench: Bench) -> str:
    """Draw throughput and goodput against the offered load."""

    def draw(axes: Axes) -> None:
        offered = [one.median(FIGURES["calls/s"]) or 0.0 for one in bench.loads()]
        axes.plot(offered, offered, color=GREY, ls="--", label="calls")
        _by_load(axes, bench, "answers/s", "answers", BLUE)
        _by_load(axes, bench, "in time/s", "in time", GREEN)
        _capacity(axes, bench)
        axes.set(
            xlabel="calls made per second", ylabel="per second", xlim=(0, None), ylim=(0, None)
        )
        axes.grid(True)
        _legend_above(axes)

    return _svg("rates-by-load", draw)


def latency_curve(bench: Bench) -> str:
    """Draw the cumulative distribution of latency: a line per run, a colour per load."""

    def draw(axes: Axes) -> None:
        loads = [one for one in bench.loads() if one.answered]
        deepest = 2.0
        for one, colour in zip(loads, _shades(len(loads)), strict=True):
            label: str | None = one.load.describe(bench.plan.streams)
            for run in one.runs:
                if not run.latency_curve:
                    continue
                xs = [-math.log10(max(1.0 - share, 1e-9)) for share, _ in run.latency_curve]
                deepest = max(deepest, *xs)
                ys = [ms for _, ms in run.latency_curve]
                axes.plot(xs, ys, color=colour, lw=1.6 / math.sqrt(len(one.runs)), label=label)
                label = None  # the legend has a line per load
        shares = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999]
        ticks = [share for share in shares if -math.log10(1.0 - share) <= deepest]
        labels = [f"{share * 100:.7g}%" for share in ticks]
        axes.set_xticks([-math.log10(1.0 - share) for share in ticks], labels)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        axes.set(xlabel="share of the answers", ylabel="at or below, ms", xlim=(0, deepest))
        axes.grid(True)
        _legend_above(axes)

    return _svg("latency-curve", draw)


def batch_sizes(bench: Bench) -> str:
    """Draw the distribution of responses over batch sizes."""
    loads = [one for one in bench.loads() if one.batch_sizes]

    def bars(axes: Axes) -> None:
        counts = loads[0].batch_sizes
        shares = [100 * count / sum(counts.values()) for count in counts.values()]
        axes.bar(list(counts), shares, color=BLUE, width=0.85)
        _whole(axes.xaxis)
        axes.set(xlabel="images in the batch", ylabel="share of the answers, %")
        axes.grid(True, axis="y")

    def cells(axes: Axes) -> None:
        counts = [one.batch_sizes for one in loads]
        largest = max(map(max, counts))
        shares = [
            [100 * sizes[size] / sizes.total() for size in range(1, largest + 1)]
            for sizes in counts
        ]
        edges = [at + 0.5 for at in range(largest + 1)], [at - 0.5 for at in range(len(loads) + 1)]
        mesh = axes.pcolormesh(*edges, shares, cmap="Blues", vmin=0, edgecolors="white", lw=0.5)
        _rows(axes, bench, loads)
        _whole(axes.xaxis)
        axes.set(xlabel="images in the batch")
        axes.figure.colorbar(mesh, ax=axes, label="share of the answers, %", pad=0.02)

    if len(loads) == 1:
        return _svg("batch-sizes", bars)
    return _svg("batch-sizes", cells, _height_in(len(loads)))


def stages(bench: Bench) -> str:
    """Draw the mean latency by stage."""
    loads = [one for one in bench.loads() if one.answered]

    def draw(axes: Axes) -> None:
        means = [_stage_means(one) for one in loads]
        totals = [sum(one.values()) or 1.0 for one in means]
        left = [0.0] * len(loads)
        for name, colour in STAGE_COLOURS.items():
            widths = [100 * one[name] / total for one, total in zip(means, totals, strict=True)]
            axes.barh(range(len(loads)), widths, left=left, color=colour, label=name, height=0.7)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for row, total in enumerate(totals):
            axes.text(101, row, f"{total:.3g} ms", va="center")
        _rows(axes, bench, loads)
        axes.set(xlabel="share of the mean latency, %", xlim=(0, 100))
        _legend_above(axes)

    return _svg("stages", draw, _height_in(len(loads)))


def outcomes(bench: Bench) -> str:
    """Draw the outcomes of calls: in time, late, dropped, failed by code."""
    loads = [one for one in bench.loads() if one.calls]
    codes = list(dict.fromkeys(code for one in loads for code in one.errors))
    counts: dict[str, tuple[str, list[float]]] = {
        "in time": (GREEN, [one.in_time for one in loads]),
        "too late": (YELLOW, [one.answered - one.in_time for one in loads]),
        "dropped": (GREY, [float(one.dropped) for one in loads]),
    }
    for number, code in enumerate(codes):
        colour = ERROR_COLOURS[number % len(ERROR_COLOURS)]
        counts[code] = (colour, [float(one.errors[code]) for one in loads])

    def draw(axes: Axes) -> None:
        left = [0.0] * len(loads)
        for name, (colour, numbers) in counts.items():
            widths = [100 * n / one.calls for n, one in zip(numbers, loads, strict=True)]
            if not any(width > 1e-6 for width in widths):
                continue
            axes.barh(range(len(loads)), widths, left=left, color=colour, label=name, height=0.7)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        _rows(axes, bench, loads)
        axes.set(xlabel="share of the calls, %", xlim=(0, 100))
        _legend_above(axes)

    return _svg("outcomes", draw, _height_in(len(loads)))


def _by_load(axes: Axes, bench: Bench, figure: str, label: str, colour: str) -> None:
    """Draw a figure's medians against the calls per second, with the ranges of repeated runs."""
    points = [
        (one.median(FIGURES["calls/s"]) or 0.0, spread)
        for one in bench.loads()
        if (spread := one.spread(FIGURES[figure])) is not None
    ]
    if not points:
        return
    spreads = [spread for _, spread in points]
    ranges = [
        [one.median - one.lowest for one in spreads],
        [one.highest - one.median for one in spreads],
    ]
    repeated = any(len(one.runs) > 1 for one in bench.loads())
    axes.errorbar(
        [offered for offered, _ in points],
        [one.median for one in spreads],
        yerr=ranges if repeated else None,
        fmt="o-",
        color=colour,
        label=label,
        ms=4,
        capsize=3,
    )


def _stage_means(load: LoadRuns) -> dict[str, float]:
    def mean(name: str) -> float:
        return load.median(lambda run: run.stages_ms[name].mean) or 0.0

    known = mean("decode") + mean("queue") + mean("compute")
    return {
        "decode": mean("decode"),
        "queue": mean("queue"),
        "compute": mean("compute"),
        "rest of server": max(0.0, mean("server") - known),
        "outside": mean("outside"),
    }


def _capacity(axes: Axes, bench: Bench) -> None:
    if bench.capacity_per_s:
        axes.axvline(bench.capacity_per_s, color=INK, lw=1, ls=":", label="capacity")


def _rows(axes: Axes, bench: Bench, loads: Sequence[LoadRuns]) -> None:
    labels = [one.load.describe(bench.plan.streams) for one in loads]
    axes.set_yticks(range(len(loads)), labels)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def _legend_above(axes: Axes) -> None:
    """Place the legend above the plot."""
    columns = 5 if len(axes.get_legend_handles_labels()[1]) <= 5 else 4
    axes.figure.legend(loc="outside upper left", ncols=columns, handlelength=1.2)


def _height_in(rows: int) -> float:
    return 1.3 + 0.32 * rows


def _shades(count: int) -> list[Any]:
    """Return colours from light to dark, for increasing loads."""
    from matplotlib import colormaps

    if count == 1:
        return [BLUE]
    shade = colormaps["viridis_r"]
    # Neither end of the scale: one is lost on a light page, the other on a dark one.
    return [shade(0.12 + 0.58 * one / (count - 1)) for one in range(count)]


def _plain(axis: Any) -> None:
    """Label ticks as 10 and 1000, not as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _whole(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _svg(name: str, draw: Callable[[Axes], None], height_in: float = 3.6) -> str:
    """Return a drawing as a self-contained <svg> element."""
    import matplotlib
    from matplotlib.figure import Figure

    # Several drawings share a page, so their element IDs must differ.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=no_metadata, transparent=True)
    drawing = file.getvalue()
    # The page's colours, which are others on a dark screen.
    drawing = drawing.replace(INK, "currentColor").replace(FAINT, f"var(--faint, {FAINT})")
    return drawing[drawing.index("<svg") :]
