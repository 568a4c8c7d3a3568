"""The tables of the view, each cut to so many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..bench.table import NOTHING, number
from . import cells
from .cells import BAD, QUIET, WARNING
from .reading import STAGES, MethodReading, Reading, VariantReading
from .snapshot import ServerReading, Snapshot

# From this width on there is room for what rarely changes.
WIDE = 112
# Longer than this, something is amiss.
_LONG_WAIT_MS = 1000.0
# Codes that say that the server is at fault, not its callers and not its load.
_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"})
_OVERLOAD = frozenset({"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})

Row = TypeVar("Row")


def height(part: RenderableType) -> int:
    """Return how many rows a part of the view takes: nothing in it is wrapped."""
    return part.row_count + part.show_header if isinstance(part, Table) else 1


def state(server: ServerReading) -> tuple[str, str]:
    """Return a word for a server, and its style."""
    if server.reading is None:
        return "NO ANSWER", BAD
    if server.reading.ready is None:
        return "READY?", WARNING
    return ("READY", "bold green") if server.reading.ready else ("NOT READY", BAD)


def _table(*headings: str, left: Sequence[int] = (0,), elastic: int = 0) -> Table:
    """Return a table without lines.

    Args:
        headings: Of its columns.
        left: Which columns hold words; the others hold figures.
        elastic: Which column is cut if the window is too narrow.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold dim")
    for index, heading in enumerate(headings):
        table.add_column(
            Text(heading, no_wrap=True),
            justify="left" if index in left else "right",
            no_wrap=index != elastic,
            overflow="ellipsis",
        )
    return table


def servers(seen: Snapshot, rows: int, width: int) -> list[RenderableType]:
    """Return all servers together, each of them, and why some do not answer."""
    wide = width >= WIDE
    table = _table(
        *("SERVER", "STATE", "UP", "CPU", "MEMORY", "BUSY", "QUEUE", "IMAGES/s", "FAILED/s"),
        *(("OK/s", "INSIDE", "STREAMS") if wide else ()),
        left=(0, 1),
    )
    answering = sum(1 for one in seen.servers if one.reading is not None)
    style = "" if answering == len(seen.servers) else BAD
    up = Text(f"{answering} of {len(seen.servers)} up", style)
    table.add_row("together", up, *_figures(seen.together, wide), style="bold")
    by_need = sorted(seen.servers, key=lambda one: bool(one.reading and one.reading.ready))
    shown, left_out = _cut(seen.servers, by_need, rows)
    for server in shown:
        word, style = state(server)
        table.add_row(line(server.name), Text(word, style), *_figures(server.reading, wide))
    lines: list[RenderableType] = [table, *_more(left_out, "servers")]
    for one in shown:
        if one.reading is None:
            lines.append(line(f"{one.name}: {silence(one)}", BAD))
    return lines


def _figures(one: Reading | None, wide: bool) -> list[Text | str]:
    if one is None:
        return [Text(NOTHING, QUIET)] * (10 if wide else 7)
    figures: list[Text | str] = [
        cells.duration(one.uptime_s),
        cells.share(one.cpu_cores),
        cells.size(one.memory_bytes),
        cells.busy(max(one.busy.values(), default=None) if one.busy is not None else None),
        cells.count(one.queue_images),
        cells.rate(one.images_per_s),
        Text(cells.rate(one.failed_per_s), WARNING if one.failed_per_s else ""),
    ]
    if wide:
        figures += [
            cells.rate(one.requests_per_s),
            cells.count(one.inside_requests),
            cells.count(one.open_streams),
        ]
    return figures


def silence(server: ServerReading) -> str:
    """Return why a server has no figures, and for how long."""
    since = f", for {cells.duration(server.failing_s)}" if server.failing_s >= 1.0 else ""
    return server.failure + since


def line(text: str, style: str = "") -> Text:
    """Return text that is cut, not wrapped, where it does not fit."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def variants(seen: Snapshot, reading: Reading, rows: int, width: int) -> list[RenderableType]:
    """Return what each variant does, and what waits for it."""
    wide = width >= WIDE
    headings = ["VARIANT", "STATE", "IMAGES/s", "BATCH", "QUEUE", "OLDEST ms", "α ms", "β ms"]
    table = _table(*headings, *(("ACC@1", "RUNS ON") if wide else ()), left=(0, 1))
    shown, left_out = _cut(reading.variants, reading.variants, rows)
    for one in shown:
        waits = one.queue_age_ms is not None and one.queue_age_ms > _LONG_WAIT_MS
        row: list[Text | str] = [
            _variant_name(one),
            _variant_state(seen, one),
            cells.rate(one.images_per_s),
            number(one.batch_mean),
            cells.count(one.queue_images),
            Text(number(one.queue_age_ms), BAD if waits else ""),
            number(one.alpha_ms),
            number(one.beta_ms),
        ]
        if wide:
            fact = seen.facts.get(one.name)
            accuracy = fact.acc_at_1 if fact is not None else None
            row += [f"{accuracy:.2f}" if accuracy else NOTHING, "; ".join(one.engines) or NOTHING]
        table.add_row(*row)
    return [table, *_more(left_out, "variants")] if reading.variants else []


def _variant_name(one: VariantReading) -> Text:
    return line(one.name + (" *" if one.default else ""))


def _variant_state(seen: Snapshot, one: VariantReading) -> Text:
    fact = seen.facts.get(one.name)
    if fact is None and one.loaded is not None:
        return Text("loaded") if one.loaded else Text("not loaded", WARNING)
    if fact is None:
        return Text(NOTHING, QUIET)
    if fact.state != "ready":
        return Text(fact.state.upper(), BAD if fact.state in ("failed", "unhealthy") else WARNING)
    if fact.loading:
        return Text("RELOADING", WARNING)
    return Text("ready") if fact.trained else Text("UNTRAINED", WARNING)


def latencies(reading: Reading, rows: int) -> list[RenderableType]:
    """Return where the time of each variant's images went."""
    table = _table("p50 / p99 ms", *(stage.upper() for stage in STAGES))
    shown, left_out = _cut(reading.variants, reading.variants, rows)
    for one in shown:
        table.add_row(_variant_name(one), *(cells.latency(one.stages[stage]) for stage in STAGES))
    return [table, *_more(left_out, "variants")] if reading.variants else []


def methods(reading: Reading, rows: int) -> list[RenderableType]:
    """Return each RPC's requests, well and failed."""
    table = _table("REQUESTS/s", "OK", "p50 / p99 ms", "FAILED", left=(0, 3), elastic=3)
    busiest = sorted(reading.methods, key=lambda one: -sum(one.per_s.values()))
    shown, left_out = _cut(reading.methods, busiest, rows)
    for one in shown:
        table.add_row(
            one.name,
            cells.rate(one.per_s.get("OK", 0.0)),
            cells.latency(one.latency),
            _failures(one),
        )
    if not reading.methods:
        table.add_row(Text("no request yet", QUIET), NOTHING, NOTHING, NOTHING)
    return [table, *_more(left_out, "methods")]


def _failures(method: MethodReading) -> Text:
    codes = {code: one for code, one in method.per_s.items() if code != "OK"}
    failing = {code for code, one in codes.items() if one}
    return cells.by_name(
        codes, BAD if failing & _FAULTS else WARNING if failing & _OVERLOAD else ""
    )


def troubles(reading: Reading, quiet: bool) -> list[RenderableType]:
    """Return what was refused, given up, dropped or failed; `quiet`: also what was not."""
    table = _table("", "", left=(0, 1), elastic=1)
    table.show_header = False
    table.columns[0].style = "bold dim"
    dropped = {one.name: one.dropped_per_s for one in reading.variants}
    failed = {one.name: one.failed_batches_per_s for one in reading.variants}
    for name, rates, style in (
        ("REFUSED/s", reading.refused_per_s, WARNING),
        ("CANCELLED/s", reading.cancelled_per_s, WARNING),
        ("DROPPED FRAMES/s", _known(dropped), WARNING),
        ("NOT DECODED/s", reading.undecodable_per_s, WARNING),
        ("FAILED BATCHES/s", _known(failed), BAD),
    ):
        if quiet or (rates and any(rates.values())):
            table.add_row(name, cells.by_name(rates, style))
    return [table] if table.row_count else []


def _known(rates: dict[str, float | None]) -> dict[str, float] | None:
    known = {name: one for name, one in rates.items() if one is not None}
    return known or None


def warnings(seen: Snapshot, reading: Reading) -> list[RenderableType]:
    """Return what only shows when servers are compared, and what could not be loaded."""
    found = [
        f"{name}: out of service: {fact.problem}"
        for name, fact in seen.facts.items()
        if fact.problem
    ]
    found += [
        f"{name}: the last load failed: {fact.last_failure}"
        for name, fact in seen.facts.items()
        if fact.last_failure
    ]
    found += [
        f"{address}: could not be asked for its variants: {reason}"
        for address, reason in seen.not_asked.items()
    ]
    for one in reading.variants:
        if len(one.digests) > 1:
            digests = ", ".join(digest[:12] for digest in one.digests)
            found.append(f"{one.name}: the servers hold different weights: {digests}")
    if len(reading.versions) > 1:
        found.append(f"the servers are of different versions: {', '.join(reading.versions)}")
    return [line(text, WARNING) for text in found]


def _cut(those: Sequence[Row], by_need: Sequence[Row], rows: int) -> tuple[Sequence[Row], int]:
    """Return what fits into so many rows, one of which says how much does not.

    Args:
        those: In the order in which they are shown as long as all fit.
        by_need: In the order in which they are kept otherwise.
        rows: How many there are.
    """
    if len(those) <= rows:
        return those, 0
    kept = max(0, rows - 1)
    return by_need[:kept], len(those) - kept


def _more(count: int, what: str) -> list[RenderableType]:
    return [Text(f"… {count} more {what}: make the window taller", QUIET)] if count else []
