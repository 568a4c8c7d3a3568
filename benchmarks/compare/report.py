"""Page of a comparison, from its recorded results."""

from __future__ import annotations

import math

from benchmarks.compare.results import CLIENTS, CONCURRENCIES, Result, Run

NETWORKS = {
    "resnet50": "The network",
    "stub": "A stub network: the cost of the server, decoding and transform",
}
OURS = "this"
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
    """Return whether all turns of one result are better than all turns of the other."""
    name, _, _, less = figure
    (low, high), (least, greatest) = one.range(name), other.range(name)
    return high < least if less else low > greatest


def losses(results: list[Result]) -> list[str]:
    """Return a line per figure and network in which a peer is better than this server is."""
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
                    if not peer.name.startswith(OURS) and better(peer, own, figure)
                ]
                if peers:
                    where = "stub network" if network == "stub" else own.name
                    mine = number(own.median(figure[0]))
                    lines.append(f"* {figure[2]}, {where}: {mine} against {', '.join(peers)}.")
    return lines


def page(results: list[Result], run: Run) -> str:
    """Return the page as Markdown."""
    lost = losses(results) or ["* Nothing in this run."]
    rates = ", ".join(f"{rate:.1f}/s ({network})" for network, rate in run.rates.items())
    counts = ", ".join(str(clients) for clients in CONCURRENCIES)
    load_average = max((one.load_average for one in results), default=0.0)
    parts = [
        "# Comparison with other servers",
        "",
        "`make compare` installs other Python model servers, each in its own virtual environment"
        " below `.cache/compare`, serves the same ResNet50 with them, checks that all answer"
        f" alike, and rewrites this page. This run: `{run.command}`.",
        "",
        f"{run.machine}; {run.versions}. The 1-minute load average before the run was"
        f" {load_average:.1f}{_busy(load_average)}.",
        "",
        "![Throughput, latency and CPU of each server](../images/comparison.svg)",
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
        f"* One server at a time, {run.turns} turns over all of them. A load takes"
        f" {run.seconds:g} s, half of it with the stub: {counts} clients, each of which waits for"
        " its answer, and then, for twice that time, Poisson arrivals at 70% of the slowest"
        f" server's throughput with {CLIENTS} clients: {rates or 'not measured'}. The first turn finds that rate.",
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
        "A peer is listed if its worst turn is better than this server's best one.",
        "",
        *lost,
        "",
        "## Settings",
        "",
        "| server | versions | settings | measured (UTC) |",
        "|---|---|---|---|",
    ]
    for one in {result.name: result for result in reversed(results)}.values():
        parts.append(f"| {one.name} | {one.versions} | {one.settings} | {one.measured} |")
    return "\n".join(parts) + "\n"


def _busy(load_average: float) -> str:
    if load_average <= 0.7:
        return ""
    return ": **other processes ran at the same time**, so only large differences mean anything"


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
