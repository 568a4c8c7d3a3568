"""How a snapshot looks: what is wrong stands out, and stays visible in a small window."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from ..bench.table import NOTHING, number
from . import cells
from .cells import BAD, QUIET, WARNING
from .reading import STAGES, MethodReading, Reading, VariantReading
from .snapshot import ServerReading, Snapshot

# Points of the line of images/s that are kept; a window is rarely wider.
HISTORY = 400
# From this width on there is room for what rarely changes.
WIDE = 112
# Beyond these, something is amiss.
_LONG_WAIT_MS = 1000.0
_LONG_LAG_MS = 100.0
# Codes that say that the server is at fault, not its callers and not its load.
_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"})
_OVERLOAD = frozenset({"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})

Row = TypeVar("Row")


class View:
    """The newest snapshot as rows that fit; rendered again when the window changes.

    Args:
        hint: What the first line says of keys; "" for nothing.
        fit: Whether to leave rows out that do not fit into the window's height.
    """

    def __init__(self, hint: str = "", fit: bool = False) -> None:
        self._hint = hint
        self._fit = fit
        self._snapshot: Snapshot | None = None
        self._images_per_s: collections.deque[float | None] = collections.deque(maxlen=HISTORY)

    def show(self, snapshot: Snapshot) -> None:
        """Take a new snapshot."""
        self._snapshot = snapshot
        together = snapshot.together
        self._images_per_s.append(together.images_per_s if together is not None else None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._snapshot is None:
            yield Text("asking", QUIET)
            return
        height = (options.height or console.height) if self._fit else None
        yield Group(*self._lines(self._snapshot, options.max_width, height))

    def _lines(self, seen: Snapshot, width: int, height: int | None) -> list[RenderableType]:
        reading = seen.together
        head: list[RenderableType] = [_title(seen, self._hint, width)]
        if len(seen.servers) == 1:
            head += _one_server(seen.servers[0])
        if reading is None:
            return [*head, *(_servers(seen, None) if len(seen.servers) > 1 else [])]
        spark = [self._spark(seen, reading, width)]
        trouble = [_troubles(reading), *_warnings(seen, reading)]
        rows = {
            "servers": len(seen.servers) if len(seen.servers) > 1 else 0,
            "variants": len(reading.variants),
            "methods": max(1, len(reading.methods)),
        }
        gaps = True
        if height is not None:
            # The table of troubles has five rows; a table costs a row for its head.
            silent = sum(1 for one in seen.servers if one.failure)
            fixed = len(head) + 1 + 5 + len(trouble) - 1 + 3
            fixed += (2 + silent) if rows["servers"] else 0
            gaps = fixed + _height(rows) + 5 <= height
            rows = _shortened(rows, height - fixed - (5 if gaps else 0))
        sections = [
            [*head, *(_servers(seen, rows["servers"]) if rows["servers"] else [])],
            spark,
            _variants(seen, reading, rows["variants"], width),
            _latencies(reading, rows["variants"]),
            _methods(reading, rows["methods"]),
            trouble,
        ]
        lines: list[RenderableType] = []
        for section in sections:
            if lines and section and gaps:
                lines.append(Text(""))
            lines += section
        return lines

    def _spark(self, seen: Snapshot, reading: Reading, width: int) -> Text:
        text = Text("images/s ", "bold", no_wrap=True)
        text.append(f"{cells.rate(reading.images_per_s):>5} ")
        known = [one for one in self._images_per_s if one is not None]
        if not known:
            return text.append(f" figures per second come in {seen.interval_s:g} s", QUIET)
        room = max(10, width - len(text) - 28)
        points = list(self._images_per_s)
        newest = [one for one in points[-room:] if one is not None]
        text.append(cells.sparkline(points, min(room, len(points))), "cyan")
        passed_s = min(room, len(points)) * seen.interval_s
        most = cells.rate(max(newest, default=0.0))
        return text.append(f" {cells.duration(passed_s)}, most {most}", QUIET)


def _title(seen: Snapshot, hint: str, width: int) -> Text:
    names = seen.servers[0].name if len(seen.servers) == 1 else f"{len(seen.servers)} servers"
    left = Text("resnet50 top  ", "bold", no_wrap=True, overflow="ellipsis")
    left.append(names)
    when = seen.time.astimezone().strftime("%H:%M:%S")
    right = f"every {seen.interval_s:g} s, {when}" + (f", {hint}" if hint else "")
    left.truncate(max(20, width - len(right) - 2), overflow="ellipsis")
    left.pad_right(max(2, width - len(left) - len(right)))
    return left.append(right, QUIET)


def _state(server: ServerReading) -> tuple[str, str]:
    """Return a word for a server, and its style."""
    if server.reading is None:
        return "NO ANSWER", BAD
    if server.reading.ready is None:
        return NOTHING, QUIET
    return ("READY", "bold green") if server.reading.ready else ("NOT READY", BAD)


def _one_server(server: ServerReading) -> list[Text]:
    word, style = _state(server)
    first, second = Text(word, style, no_wrap=True), Text(no_wrap=True)
    if server.reading is None:
        return [first.append(f" for {cells.duration(server.failing_s)}: {server.failure}")]
    one = server.reading
    version = ", ".join(one.versions) or NOTHING
    first.append(f"  version {version}  up {cells.duration(one.uptime_s)}", "default")
    first.append(f"  CPU {cells.share(one.cpu_cores)}  memory {cells.size(one.memory_bytes)}")
    lag_ms = one.event_loop_lag_ms
    late = lag_ms is not None and lag_ms > _LONG_LAG_MS
    first.append(f"  loop lag {number(lag_ms)} ms", BAD if late else "")
    second.append(
        f"inside {cells.count(one.inside_requests)} requests, {cells.size(one.inside_bytes)}"
        f"  streams {cells.count(one.open_streams)}"
        f"  decoding {cells.count(one.decode_threads_busy)},"
        f" waiting {cells.count(one.decode_queue_calls)}  "
    )
    return [first, second.append_text(_busy(one))]


def _busy(reading: Reading) -> Text:
    devices = sorted((reading.busy or {}).items())
    shown = ", ".join(f"{device} {cells.share(one)}" for device, one in devices)
    return Text("busy ").append(shown or NOTHING)


def _table(*headings: str, texts: int = 1) -> Table:
    """Return a table of figures behind `texts` columns of words."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold dim", show_edge=False
    )
    for index, heading in enumerate(headings):
        justify = "left" if index < texts else "right"
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    return table


def _servers(seen: Snapshot, rows: int | None) -> list[RenderableType]:
    table = _table(
        *("SERVER", "STATE", "UP", "CPU", "MEMORY", "INSIDE"),
        *("QUEUE", "IMAGES/s", "OK/s", "FAILED/s"),
        texts=2,
    )
    answering = sum(1 for one in seen.servers if one.reading is not None)
    total = f"{answering} of {len(seen.servers)}"
    style = "" if answering == len(seen.servers) else BAD
    table.add_row(
        "together", Text(f"{total} answer", style), *_figures(seen.together), style="bold"
    )
    shown, left_out = _cut(seen.servers, rows)
    for server in shown:
        word, style = _state(server)
        table.add_row(server.name, Text(word, style), *_figures(server.reading))
    silent = [one for one in shown if one.failure]
    return [
        table,
        *_more(left_out, "servers"),
        *(
            Text(f"{one.name}: {one.failure}, for {cells.duration(one.failing_s)}", BAD)
            for one in silent
        ),
    ]


def _figures(one: Reading | None) -> list[Text | str]:
    if one is None:
        return [Text(NOTHING, QUIET)] * 8
    return [
        cells.duration(one.uptime_s),
        cells.share(one.cpu_cores),
        cells.size(one.memory_bytes),
        cells.count(one.inside_requests),
        cells.count(one.queue_images),
        cells.rate(one.images_per_s),
        cells.rate(one.requests_per_s),
        Text(cells.rate(one.failed_per_s), WARNING if one.failed_per_s else ""),
    ]


def _variants(seen: Snapshot, reading: Reading, rows: int, width: int) -> list[RenderableType]:
    wide = width >= WIDE
    headings = ["VARIANT", "STATE", "IMAGES/s", "BATCH", "QUEUE", "OLDEST ms", "α ms", "β ms"]
    table = _table(*headings, *(("ACC@1", "RUNS ON") if wide else ()), texts=2)
    variants, left_out = _cut(reading.variants, rows)
    for one in variants:
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


def _variant_name(one: VariantReading) -> str:
    return one.name + (" *" if one.default else "")


def _variant_state(seen: Snapshot, one: VariantReading) -> Text:
    fact = seen.facts.get(one.name)
    if fact is None:
        return Text(NOTHING, QUIET)
    if fact.state != "ready":
        return Text(fact.state.upper(), BAD if fact.state == "failed" else WARNING)
    return Text("ready") if fact.trained else Text("UNTRAINED", WARNING)


def _latencies(reading: Reading, rows: int) -> list[RenderableType]:
    table = _table("p50 / p99 ms", *(stage.upper() for stage in STAGES))
    variants, left_out = _cut(reading.variants, rows)
    for one in variants:
        table.add_row(_variant_name(one), *(cells.latency(one.stages[stage]) for stage in STAGES))
    return [table, *_more(left_out, "variants")] if reading.variants else []


def _methods(reading: Reading, rows: int) -> list[RenderableType]:
    table = _table("REQUESTS/s", "OK", "p50 / p99 ms", "FAILED")
    table.columns[-1].justify = "left"
    methods, left_out = _cut(reading.methods, rows)
    for one in methods:
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


def _troubles(reading: Reading) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold dim")
    table.add_column(no_wrap=True, overflow="ellipsis")
    by_variant = {one.name: one.dropped_per_s for one in reading.variants}
    failed = {one.name: one.failed_batches_per_s for one in reading.variants}
    table.add_row("REFUSED/s", cells.by_name(reading.refused_per_s, WARNING))
    table.add_row("CANCELLED/s", cells.by_name(reading.cancelled_per_s, WARNING))
    table.add_row("DROPPED FRAMES/s", cells.by_name(_known(by_variant), WARNING))
    table.add_row("NOT DECODED/s", cells.by_name(reading.undecodable_per_s, WARNING))
    table.add_row("FAILED BATCHES/s", cells.by_name(_known(failed), BAD))
    return table


def _known(rates: dict[str, float | None]) -> dict[str, float] | None:
    known = {name: one for name, one in rates.items() if one is not None}
    return known or None


def _warnings(seen: Snapshot, reading: Reading) -> list[RenderableType]:
    """Return what only shows when servers are compared."""
    found = []
    for one in reading.variants:
        if len(one.digests) > 1:
            digests = ", ".join(digest[:12] for digest in one.digests)
            found.append(f"{one.name}: the servers hold different weights: {digests}")
    if len(reading.versions) > 1:
        found.append(f"the servers are of different versions: {', '.join(reading.versions)}")
    return [Text(line, WARNING, no_wrap=True, overflow="ellipsis") for line in found]


def _cut(those: Sequence[Row], rows: int | None) -> tuple[Sequence[Row], int]:
    """Return what fits into so many rows, one of which says how much does not."""
    if rows is None or len(those) <= rows:
        return those, 0
    kept = max(0, rows - 1)
    return those[:kept], len(those) - kept


def _more(count: int, what: str) -> list[RenderableType]:
    return [Text(f"… {count} more {what}: make the window taller", QUIET)] if count else []


def _height(rows: Mapping[str, int]) -> int:
    # Each variant stands in two tables.
    return rows["servers"] + 2 * rows["variants"] + rows["methods"]


def _shortened(rows: Mapping[str, int], room: int) -> dict[str, int]:
    """Take rows from the longest table until all fit, or none has more than two."""
    left = dict(rows)
    while _height(left) > room:
        longest = max(left, key=lambda name: left[name])
        if left[longest] <= 2:
            break
        left[longest] -= 1
    return left
