"""Rendering of a snapshot: problems are highlighted, and stay visible in a small window."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from resnet50_metrics.server_metrics import ServerMetrics

from .. import formatting
from ..formatting import NOTHING, number
from ..output import printable
from . import cells, tables
from .cells import BAD, QUIET, WARNING
from .snapshot import ServerSnapshot, Snapshot

# Number of points of the images/s sparkline; a window is rarely wider.
HISTORY = 400
# A longer event-loop lag delays all requests and is highlighted.
_LONG_LAG_MS = 100.0
_STUCK = "resnet50_ready is not exported: the server's event loop is stuck, or its version is old"


class View:
    """The newest snapshot, rendered to fit the window.

    Args:
        hint: Hint about keys in the first line; "" for none.
        fit: Omit rows that do not fit the window's height.
    """

    def __init__(self, hint: str = "", fit: bool = False) -> None:
        self._hint = hint
        self._fit = fit
        self._snapshot: Snapshot | None = None
        self._images_per_s: collections.deque[float | None] = collections.deque(maxlen=HISTORY)

    def show(self, snapshot: Snapshot) -> None:
        """Set a new snapshot."""
        self._snapshot = printable(snapshot)
        total = snapshot.total
        self._images_per_s.append(total.images_per_s if total is not None else None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._snapshot is None:
            yield Text("polling", QUIET)
            return
        height = (options.height or console.height) if self._fit else None
        yield Group(*self._lines(self._snapshot, options.max_width, height))

    def _lines(self, seen: Snapshot, width: int, height: int | None) -> list[RenderableType]:
        metrics, several = seen.total, len(seen.servers) > 1
        head: list[RenderableType] = [_title(seen, self._hint, width)]
        if not several:
            head.extend(_one_server(seen.servers[0]))
        if metrics is None:
            return head + (tables.servers(seen, len(seen.servers), width) if several else [])
        spark = self._spark(seen, metrics, width)

        def laid_out(shape: _Shape) -> list[RenderableType]:
            sections: list[list[RenderableType]] = [
                head + (tables.servers(seen, shape.servers, width) if several else []),
                [spark],
                tables.variants(seen, metrics, shape.variants, width),
                tables.latencies(metrics, shape.variants) if shape.latencies else [],
                tables.methods(metrics, shape.methods) if shape.methods else [],
                tables.problems(metrics, shape.zero_rates) + tables.warnings(seen, metrics),
            ]
            lines: list[RenderableType] = []
            for section in filter(None, sections):
                if lines and shape.gaps:
                    lines.append(Text(""))
                lines += section
            return lines

        whole = _Shape(len(seen.servers), len(metrics.variants), max(1, len(metrics.methods)))
        if height is None:
            return laid_out(whole)
        lines = []
        for shape in _smaller(whole):
            lines = laid_out(shape)
            if sum(map(tables.height, lines)) <= height:
                break
        return lines

    def _spark(self, seen: Snapshot, metrics: ServerMetrics, width: int) -> Text:
        text = Text(no_wrap=True).append("images/s ", "bold dim")
        text.append(f"{formatting.rate(metrics.images_per_s):>5} ", "bold")
        known = [one for one in self._images_per_s if one is not None]
        if not known:
            return text.append(f" rates are available in {seen.interval_s:g} s", QUIET)
        room = max(10, width - len(text) - 28)
        if len(self._images_per_s) < 2:  # as with --once
            return text
        points = list(self._images_per_s)
        newest = [one for one in points[-room:] if one is not None]
        text.append(cells.sparkline(points, min(room, len(points))), "cyan")
        passed_s = min(room, len(points)) * seen.interval_s
        most = formatting.rate(max(newest, default=0.0))
        return text.append(f" {formatting.duration(passed_s)}, most {most}", QUIET)


def _title(seen: Snapshot, hint: str, width: int) -> Text:
    names = seen.servers[0].name if len(seen.servers) == 1 else f"{len(seen.servers)} servers"
    left = Text(no_wrap=True, overflow="ellipsis").append("resnet50 top  ", "bold").append(names)
    when = seen.time.astimezone().strftime("%H:%M:%S")
    right = f"every {seen.interval_s:g} s, {when}" + (f", {hint}" if hint else "")
    left.truncate(max(20, width - len(right) - 2), overflow="ellipsis")
    left.pad_right(max(2, width - len(left) - len(right)))
    return left.append(right, QUIET)


def _one_server(server: ServerSnapshot) -> list[Text]:
    word, style = tables.state(server)
    first, second = Text(no_wrap=True).append(word, style), Text(no_wrap=True)
    if server.metrics is None:
        return [first.append(f": {tables.error(server)}")]
    one = server.metrics
    version = ", ".join(one.versions) or NOTHING
    first.append(f"  version {version}  up {formatting.duration(one.uptime_s)}")
    first.append(
        f"  CPU {formatting.percent(one.cpu_cores)}  memory {formatting.size(one.memory_bytes)}"
    )
    lag_ms = one.event_loop_lag_ms
    late = lag_ms is not None and lag_ms > _LONG_LAG_MS
    first.append(f"  loop lag {number(lag_ms)} ms", BAD if late else "")
    second.append(
        f"requests in flight {formatting.count(one.inside_requests)},"
        f" {formatting.size(one.inside_bytes)}"
        f"  streams {formatting.count(one.open_streams)}"
        f"  decoding {formatting.count(one.decode_threads_busy)},"
        f" waiting {formatting.count(one.decode_queue_calls)}  "
    )
    second.append_text(_busy(one))
    if one.ready is None:
        return [first, second, tables.line(_STUCK, WARNING)]
    return [first, second]


def _busy(metrics: ServerMetrics) -> Text:
    devices = sorted((metrics.busy or {}).items())
    shown = ", ".join(f"{device} {cells.busy(one)}" for device, one in devices)
    return Text("busy ").append(shown or NOTHING)


@dataclass(frozen=True)
class _Shape:
    """Size of the view: rows of each table, and optional parts."""

    servers: int
    variants: int
    methods: int
    gaps: bool = True
    zero_rates: bool = True
    latencies: bool = True


def _smaller(shape: _Shape) -> Iterator[_Shape]:
    """Yield ever smaller shapes, which omit the least important parts first."""
    yield shape
    shape = replace(shape, gaps=False)
    yield shape
    shape = replace(shape, zero_rates=False)
    yield shape
    while True:
        rows = {name: getattr(shape, name) for name in ("servers", "variants", "methods")}
        longest = max(rows, key=lambda name: rows[name])
        if rows[longest] <= 2:
            break
        shape = replace(shape, **{longest: rows[longest] - 1})
        yield shape
    yield (shape := replace(shape, latencies=False))
    yield replace(shape, methods=0)
