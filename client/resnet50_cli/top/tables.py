"""The tables of the view, each limited to a number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from resnet50_metrics.server_metrics import STAGES, MethodMetrics, ServerMetrics, VariantMetrics

from .. import formatting
from ..formatting import NOTHING, number
from . import cells
from .cells import BAD, QUIET, WARNING
from .snapshot import ServerSnapshot, Snapshot

# From this width on, columns that rarely change are shown, too.
WIDE = 112
# A longer wait in the queue is highlighted.
_LONG_WAIT_MS = 1000.0
# Status codes of server errors, not of clients' errors or load.
_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"})
_OVERLOAD = frozenset({"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})

Row = TypeVar("Row")


def height(part: RenderableType) -> int:
    """Return the number of rows of a part of the view, in which nothing wraps."""
    return part.row_count + part.show_header if isinstance(part, Table) else 1


def state(server: ServerSnapshot) -> tuple[str, str]:
    """Return a word for a server, and its style."""
    if server.metrics is None:
        return "DOWN", BAD
    if server.metrics.ready is None:
        return "READY?", WARNING
    return ("READY", "bold green") if server.metrics.ready else ("NOT READY", BAD)


def _table(*headings: str, left: Sequence[int] = (0,), elastic: int = 0) -> Table:
    """Return a table without lines.

    Args:
        headings: Column headings.
        left: Indices of left-aligned columns (text); the others are right-aligned (numbers).
        elastic: Index of the column that is truncated if the window is too narrow.
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
    """Return a table of all servers, in total and individually, and their errors."""
    wide = width >= WIDE
    table = _table(
        *("SERVER", "STATE", "UP", "CPU", "MEMORY", "BUSY", "QUEUE", "IMAGES/s", "FAILED/s"),
        *(("OK/s", "IN FLIGHT", "STREAMS") if wide else ()),
        left=(0, 1),
    )
    answering = sum(1 for one in seen.servers if one.metrics is not None)
    style = "" if answering == len(seen.servers) else BAD
    up = Text(f"{answering} of {len(seen.servers)} up", style)
    table.add_row("total", up, *_figures(seen.total, wide), style="bold")
    by_need = sorted(seen.servers, key=lambda one: bool(one.metrics and one.metrics.ready))
    shown, left_out = _cut(seen.servers, by_need, rows)
    for server in shown:
        word, style = state(server)
        table.add_row(line(server.name), Text(word, style), *_figures(server.metrics, wide))
    lines: list[RenderableType] = [table, *_more(left_out, "servers")]
    for one in shown:
        if one.metrics is None:
            lines.append(line(f"{one.name}: {error(one)}", BAD))
    return lines


def _figures(one: ServerMetrics | None, wide: bool) -> list[Text | str]:
    if one is None:
        return [Text(NOTHING, QUIET)] * (10 if wide else 7)
    figures: list[Text | str] = [
        formatting.duration(one.uptime_s),
        formatting.percent(one.cpu_cores),
        formatting.size(one.memory_bytes),
        cells.busy(max(one.busy.values(), default=None) if one.busy is not None else None),
        formatting.count(one.queue_images),
        formatting.rate(one.images_per_s),
        Text(formatting.rate(one.failed_per_s), WARNING if one.failed_per_s else ""),
    ]
    if wide:
        figures += [
            formatting.rate(one.requests_per_s),
            formatting.count(one.inside_requests),
            formatting.count(one.open_streams),
        ]
    return figures


def error(server: ServerSnapshot) -> str:
    """Return a server's error and its duration."""
    since = f", for {formatting.duration(server.failing_s)}" if server.failing_s >= 1.0 else ""
    return server.failure + since


def line(text: str, style: str = "") -> Text:
    """Return text that is truncated rather than wrapped."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def variants(seen: Snapshot, metrics: ServerMetrics, rows: int, width: int) -> list[RenderableType]:
    """Return a table of variants with their rates and queues."""
    wide = width >= WIDE
    headings = ["VARIANT", "STATE", "IMAGES/s", "BATCH", "QUEUE", "OLDEST ms", "α ms", "β ms"]
    table = _table(*headings, *(("ACC@1", "RUNS ON") if wide else ()), left=(0, 1))
    shown, left_out = _cut(metrics.variants, metrics.variants, rows)
    for one in shown:
        waits = one.queue_age_ms is not None and one.queue_age_ms > _LONG_WAIT_MS
        row: list[Text | str] = [
            _variant_name(one),
            _variant_state(seen, one),
            formatting.rate(one.images_per_s),
            number(one.batch_mean),
            formatting.count(one.queue_images),
            Text(number(one.queue_age_ms), BAD if waits else ""),
            number(one.alpha_ms),
            number(one.beta_ms),
        ]
        if wide:
            status = seen.variant_status.get(one.name)
            accuracy = status.acc_at_1 if status is not None else None
            row += [f"{accuracy:.2f}" if accuracy else NOTHING, "; ".join(one.engines) or NOTHING]
        table.add_row(*row)
    return [table, *_more(left_out, "variants")] if metrics.variants else []


def _variant_name(one: VariantMetrics) -> Text:
    return line(one.name + (" *" if one.default else ""))


def _variant_state(seen: Snapshot, one: VariantMetrics) -> Text:
    status = seen.variant_status.get(one.name)
    if status is None and one.loaded is not None:
        return Text("loaded") if one.loaded else Text("not loaded", WARNING)
    if status is None:
        return Text(NOTHING, QUIET)
    if status.state != "ready":
        return Text(
            status.state.upper(), BAD if status.state in ("failed", "unhealthy") else WARNING
        )
    if status.loading:
        return Text("RELOADING", WARNING)
    return Text("ready") if status.trained else Text("UNTRAINED", WARNING)


def latencies(metrics: ServerMetrics, rows: int) -> list[RenderableType]:
    """Return a table of latencies by variant and stage."""
    table = _table("p50 / p99 ms", *(stage.upper() for stage in STAGES))
    shown, left_out = _cut(metrics.variants, metrics.variants, rows)
    for one in shown:
        table.add_row(_variant_name(one), *(cells.latency(one.stages[stage]) for stage in STAGES))
    return [table, *_more(left_out, "variants")] if metrics.variants else []


def methods(metrics: ServerMetrics, rows: int) -> list[RenderableType]:
    """Return a table of each RPC's successful and failed requests."""
    table = _table("REQUESTS/s", "OK", "p50 / p99 ms", "FAILED", left=(0, 3), elastic=3)
    busiest = sorted(metrics.methods, key=lambda one: -sum(one.per_s.values()))
    shown, left_out = _cut(metrics.methods, busiest, rows)
    for one in shown:
        table.add_row(
            one.name,
            formatting.rate(one.per_s.get("OK", 0.0)),
            cells.latency(one.latency),
            _failures(one),
        )
    if not metrics.methods:
        table.add_row(Text("no request yet", QUIET), NOTHING, NOTHING, NOTHING)
    return [table, *_more(left_out, "methods")]


def _failures(method: MethodMetrics) -> Text:
    codes = {code: one for code, one in method.per_s.items() if code != "OK"}
    failing = {code for code, one in codes.items() if one}
    return cells.by_name(
        codes, BAD if failing & _FAULTS else WARNING if failing & _OVERLOAD else ""
    )


def problems(metrics: ServerMetrics, quiet: bool) -> list[RenderableType]:
    """Return rates of rejections, cancellations, drops and failures; with `quiet` also zeros."""
    table = _table("", "", left=(0, 1), elastic=1)
    table.show_header = False
    table.columns[0].style = "bold dim"
    dropped = {one.name: one.dropped_per_s for one in metrics.variants}
    failed = {one.name: one.failed_batches_per_s for one in metrics.variants}
    for name, rates, style in (
        ("REJECTED/s", metrics.refused_per_s, WARNING),
        ("CANCELLED/s", metrics.cancelled_per_s, WARNING),
        ("DROPPED FRAMES/s", _known(dropped), WARNING),
        ("NOT DECODED/s", metrics.undecodable_per_s, WARNING),
        ("FAILED BATCHES/s", _known(failed), BAD),
    ):
        if quiet or (rates and any(rates.values())):
            table.add_row(name, cells.by_name(rates, style))
    return [table] if table.row_count else []


def _known(rates: dict[str, float | None]) -> dict[str, float] | None:
    known = {name: one for name, one in rates.items() if one is not None}
    return known or None


def warnings(seen: Snapshot, metrics: ServerMetrics) -> list[RenderableType]:
    """Return differences between servers, failed loads and variants out of service."""
    found = [
        f"{name}: out of service: {status.problem}"
        for name, status in seen.variant_status.items()
        if status.problem
    ]
    found += [
        f"{name}: the last load failed: {status.last_failure}"
        for name, status in seen.variant_status.items()
        if status.last_failure
    ]
    found += [
        f"{address}: listing its variants failed: {reason}"
        for address, reason in seen.query_errors.items()
    ]
    for one in metrics.variants:
        if len(one.digests) > 1:
            digests = ", ".join(digest[:12] for digest in one.digests)
            found.append(f"{one.name}: the servers have different weights: {digests}")
    if len(metrics.versions) > 1:
        found.append(f"the servers are of different versions: {', '.join(metrics.versions)}")
    return [line(text, WARNING) for text in found]


def _cut(
    entries: Sequence[Row], by_priority: Sequence[Row], rows: int
) -> tuple[Sequence[Row], int]:
    """Return the entries that fit, and how many do not; one row is reserved for that number.

    Args:
        entries: All entries, in display order if all fit.
        by_priority: All entries, the most important first.
        rows: Available rows.
    """
    if len(entries) <= rows:
        return entries, 0
    fitting = max(0, rows - 1)
    return by_priority[:fitting], len(entries) - fitting


def _more(count: int, kind: str) -> list[RenderableType]:
    return [Text(f"… {count} more {kind}: make the window taller", QUIET)] if count else []
