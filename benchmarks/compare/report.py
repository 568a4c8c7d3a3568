"""Page of a comparison, from its recorded results."""

from __future__ import annotations

import math
import statistics

from benchmarks.compare.results import CLIENTS, CONCURRENCIES, Result, Run

NETWORKS = {
    "resnet50": "The network",
    "stub": "A stub network: the cost of the server, decoding and transform",
}
OURS = "this"
# Other processes that use more make a run unfit to be quoted.
QUIET_PERCENT = 5.0
# A figure: its name in results, its heading and its name in a sentence, whether less is better.
Figure = tuple[str, str, str, bool]
THROUGHPUT: tuple[Figure, ...] = (
    *(
        (
            f"clients_{clients}.per_s",
            f"images/s, {_clients}",
            f"throughput with {_clients}",
            False,
        )
        for clients in CONCURRENCIES
        for _clients in [f"{clients} client" + "s" * (clients > 1)]
    ),
    (f"clients_{CLIENTS}.cpu_ms", "CPU per image, ms", "CPU per image", True),
    ("memory_mib", "memory, MiB", "memory", True),
)
LATENCY: tuple[Figure, ...] = (
    ("clients_1.p50_ms", "1 client: p50, ms", "p50 with one client", True),
    ("clients_1.p99_ms", "p99, ms", "p99 with one client", True),
    (f"clients_{CLIENTS}.p50_ms", f"{CLIENTS} clients: p50, ms", f"p50 with {CLIENTS}", True),
    (f"clients_{CLIENTS}.p99_ms", "p99, ms", f"p99 with {CLIENTS} clients", True),
    ("arrivals.p50_ms", "arrivals: p50, ms", "p50 under arrivals", True),
    ("arrivals.p99_ms", "p99, ms", "p99 under arrivals", True),
)


def better(one: Result, other: Result, figure: Figure) -> bool:
    """Return whether the median of one result is better than that of the other."""
    name, _, _, less = figure
    mine, theirs = one.median(name), other.median(name)
    return mine < theirs if less else mine > theirs


def clear(one: Result, other: Result, figure: Figure) -> bool:
    """Return whether no turn of one result is as good or bad as a turn of the other."""
    (low, high), (least, greatest) = one.range(figure[0]), other.range(figure[0])
    return high < least or greatest < low


def losses(results: list[Result], *, clearly: bool) -> list[str]:
    """Return a line per figure and network in which a peer is better than this server is.

    Args:
        results: The results.
        clearly: Whether in every turn; False for those whose turns overlap.
    """
    lines = []
    for network in NETWORKS:
        measured = [one for one in results if one.network == network and not one.failure]
        for own in measured:
            if not own.name.startswith(OURS):
                continue
            for figure in THROUGHPUT + LATENCY:
                peers = [
                    f"{peer.name} {number(peer.median(figure[0]))}"
                    for peer in measured
                    if not peer.name.startswith(OURS)
                    and better(peer, own, figure)
                    and clear(peer, own, figure) == clearly
                ]
                if peers:
                    where = "stub network" if network == "stub" else own.name
                    mine = number(own.median(figure[0]))
                    lines.append(f"* {figure[2]}, {where}: {mine} against {', '.join(peers)}.")
    return lines


def page(results: list[Result], run: Run) -> str:
    """Return the page as Markdown."""
    rates = ", ".join(f"{rate:.1f}/s ({network})" for network, rate in run.rates.items())
    counts = ", ".join(str(clients) for clients in CONCURRENCIES)
    parts = [
        "# Comparison with other servers",
        "",
        "`make compare` installs other Python model servers, each in its own virtual environment"
        " below `.cache/compare`, serves the same ResNet50 with them, checks that all answer"
        f" alike, and rewrites this page. This run: `{run.command}`.",
        "",
        f"{run.machine}; {run.versions}. {_busy(results)}",
        "",
        "![Throughput, latency and CPU of each server](../images/comparison.svg)",
        "",
        "## In short",
        "",
        *_short(results),
        "",
        "## Method",
        "",
        "* The same state dict (random weights, which changes nothing of the time), float32,"
        " channels-last memory, and torchvision's `IMAGENET1K_V2` transform; eight JPEGs of"
        " 512 x 384, one per request. All decode with Pillow, the peers one image after the other"
        " as part of the batch, this server in its decode thread.",
        f"* {run.threads} threads of PyTorch in every server, one worker, and batches of at most"
        f" 16, where a server batches; `OMP_NUM_THREADS={run.threads}` and"
        " `OMP_WAIT_POLICY=PASSIVE` in all. Without the latter, OpenMP's threads spin while they"
        " wait, which slows every server on cores that others need. One load generator for gRPC"
        " and HTTP, a process of its own, shares the cores.",
        "* Each peer has the options that its documentation recommends for throughput; they are"
        " listed under [settings](#settings), and the programs are in"
        " `benchmarks/compare/servers`.",
        "* Before its load, each server answers all images: five categories and their"
        " probabilities within 0.001 of plain PyTorch. A server that answers otherwise is not"
        " measured.",
        f"* One server at a time, {_turns(results)} turns over all of them. A load takes"
        f" {run.seconds:g} s, half of it with the stub: {counts} clients, each of which waits for"
        " its answer, and then, for twice that time, Poisson arrivals at 70% of the slowest"
        f" server's throughput with {CLIENTS} clients: {rates or 'not measured'}. The first turn"
        " finds that rate.",
        "* A cell is the median of the turns, and their least and greatest value. The p99 of such"
        " short loads is nearly the slowest call.",
        f"* CPU is of the load with {CLIENTS} clients. CPU and memory are of all processes of a"
        " server; shared memory counts once.",
        "* The figures of each turn are in [comparison.json](data/comparison.json).",
        "",
    ]
    for network, title in NETWORKS.items():
        parts += [f"## {title}", "", *_table(results, network, THROUGHPUT), ""]
        parts += [*_table(results, network, LATENCY), ""]
    parts += [
        "## Where this server loses",
        "",
        "Peers that are better in every turn:",
        "",
        *(losses(results, clearly=True) or ["* None in this run."]),
        "",
        "Peers that are better in the median, though some turns are not:",
        "",
        *(losses(results, clearly=False) or ["* None in this run."]),
        "",
        "## Settings",
        "",
        "| server | versions | settings | measured (UTC) |",
        "|---|---|---|---|",
    ]
    each = {result.name: result for result in reversed(results)}
    for one in reversed(each.values()):
        parts.append(f"| {one.name} | {one.versions} | {one.settings} | {one.measured} |")
    return "\n".join(parts) + "\n"


def _short(results: list[Result]) -> list[str]:
    """Return a line per network: the servers in the order of their throughput."""
    lines = []
    for network, title in NETWORKS.items():
        name = f"clients_{CLIENTS}.per_s"
        measured = [
            one
            for one in results
            if one.network == network and not one.failure and one.figures.get(name)
        ]
        ordered = sorted(measured, key=lambda one: one.median(name), reverse=True)
        each = ", ".join(f"{one.name} {number(one.median(name))}" for one in ordered)
        lines.append(f"* {title.partition(':')[0]}, images/s with {CLIENTS} clients: {each}.")
    lines.append(
        "* The network takes most of the time, so its engine matters more than the server: compare"
        " the peers with `this (torch)`, which computes as they do, and the cost of serving with"
        " the stub."
    )
    return lines


def _turns(results: list[Result]) -> str:
    counts = {len(one.figures.get("memory_mib", [])) for one in results if not one.failure} or {0}
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least} to {most}"


def _busy(results: list[Result]) -> str:
    shares = [share for one in results for share in one.figures.get("others_percent", [])]
    if not shares:
        return ""
    median, most = statistics.median(shares), max(shares)
    text = (
        f"Before each start of a server, other processes used {median:.0f}% of the processor"
        f" (median; at most {most:.0f}%)"
    )
    if median <= QUIET_PERCENT:
        return text + "."
    return text + ": **the machine was busy**, so only large differences mean anything."


def number(value: float) -> str:
    """Return a figure with three digits, or n/a."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _cell(result: Result, name: str) -> str:
    text, (low, high) = number(result.median(name)), result.range(name)
    return text if low == high or math.isnan(low) else f"{text} ({number(low)} to {number(high)})"


def _table(results: list[Result], network: str, figures: tuple[Figure, ...]) -> list[str]:
    headings = ["server", *(heading for _, heading, _, _ in figures), "errors"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for one in results:
        if one.network != network:
            continue
        if one.failure:
            reason = " ".join(one.failure.split()).replace("|", "\\|")[:300]
            cells = [f"failed: {reason}", *[""] * len(figures)]
        else:
            cells = [*(_cell(one, name) for name, _, _, _ in figures), str(one.errors)]
        lines.append(f"| {one.name} | " + " | ".join(cells) + " |")
    return lines
