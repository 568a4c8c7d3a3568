"""Latency and failed calls around the end of an overload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .svg import Picture, Point

DATA = Path(__file__).resolve().parents[1] / "benchmarks" / "data" / "recovery.json"
_LEFT, _WIDE = 62, 550
# Top and height of the two plots.
_LATENCY, _FAILED = (70, 150), (250, 56)


def draw() -> str:
    """Return the picture."""
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    steps = data["steps"]
    first: float = steps[0]["begin_s"]
    step: float = steps[1]["begin_s"] - first
    last: float = steps[-1]["begin_s"] + step
    top_ms = 1000.0 * data["deadline_s"]
    picture = Picture(640, 368, "Latency and failed calls before and after an overload ends")
    overload, load = f"{data['overload']:.0%}", f"{data['load']:.0%}"
    picture.text(12, 24, f"From {overload} to {load} of the capacity", size=15, bold=True)
    picture.text(
        12,
        43,
        f"Timed engine, {data['capacity_per_s']:.0f} images/s, deadline {data['deadline_s']:g} s;"
        " each point is half a second of calls",
        size=12,
        tone="muted",
    )

    def x(seconds: float) -> float:
        return _LEFT + (seconds - first) / (last - first) * _WIDE

    def y(share: float, plot: tuple[int, int]) -> float:
        return plot[0] + plot[1] * (1 - min(1.0, share))

    end = x(0.0)
    for plot in (_LATENCY, _FAILED):
        picture.bar(_LEFT, plot[0], end - _LEFT, plot[1], tone="faint")
        picture.line([(_LEFT, y(0, plot)), (_LEFT + _WIDE, y(0, plot))], width=1)
    for ms in (0, 250, 500, 750, 1000):
        picture.text(_LEFT - 8, y(ms / top_ms, _LATENCY) + 4, str(ms), size=12, anchor="end")
    for percent in (0, 100):
        height = y(percent / 100, _FAILED) + 4
        picture.text(_LEFT - 8, height, f"{percent}%", size=12, anchor="end")
    for second in range(round(first), round(last) + 1, 5):
        sign = "+" if second > 0 else ""
        picture.text(x(second), 324, f"{sign}{second} s", size=12, anchor="middle")
    quiet = y(data["quiet_p99_ms"] / top_ms, _LATENCY)
    picture.line([(_LEFT, quiet), (_LEFT + _WIDE, quiet)], tone="green", dashed=True)
    picture.text(_LEFT + _WIDE, quiet - 6, "p99 before the overload", size=12, anchor="end")
    for name, tone in (("p99_ms", "orange"), ("p50_ms", "blue")):
        points = [
            (x(one["begin_s"] + step / 2), y(one[name] / top_ms, _LATENCY))
            for one in steps
            if one[name] is not None
        ]
        picture.line(points, tone=tone, width=2)
    picture.text(12, 62, "ms", size=12, tone="muted")
    _legend(picture, x(1.0), _LATENCY[0] + 14)
    failed: list[Point] = [
        (x(one["begin_s"] + step / 2), y(one["failed_share"], _FAILED)) for one in steps
    ]
    picture.line(failed, tone="red", width=2)
    picture.text(end + 12, _FAILED[0] + 14, "failed calls", tone="red")
    picture.text(end, _LATENCY[0] - 8, f"overload: {overload}", size=12, tone="muted", anchor="end")
    picture.text(end + 12, _LATENCY[0] - 8, f"then {load}", size=12, tone="muted")
    run = data["run"].rpartition("; ")[2].rstrip(".")
    picture.text(12, 354, f"python -m benchmarks.recovery, {run}", size=12, tone="muted")
    return picture.svg()


def _legend(picture: Picture, x: float, y: float) -> None:
    for number, (name, tone) in enumerate((("p99", "orange"), ("p50", "blue"))):
        picture.line([(x, y + 18 * number), (x + 22, y + 18 * number)], tone=tone, width=2)
        picture.text(x + 28, y + 4 + 18 * number, f"{name} of answered calls", tone=tone)
