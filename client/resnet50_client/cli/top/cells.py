"""Figures as text that fits into a cell; a dash is what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from ..bench.table import NOTHING, number
from .reading import Latency

_BARS = "▁▂▃▄▅▆▇█"

BAD = "bold red"
WARNING = "yellow"
QUIET = "dim"


def rate(per_s: float | None) -> str:
    """Return a rate: 0 is told from a little."""
    if per_s is None:
        return NOTHING
    if per_s == 0:
        return "0"
    return "<0.01" if per_s < 0.005 else number(per_s)


def count(value: float | None) -> str:
    """Return a number of things."""
    return NOTHING if value is None else f"{value:.0f}"


def share(value: float | None) -> str:
    """Return a share in percent."""
    return NOTHING if value is None else f"{value:.0%}"


def busy(ratio: float | None) -> str:
    """Return how busy a device is: a long batch counts in the interval in which it ends."""
    return share(None if ratio is None else min(1.0, ratio))


def size(value: float | None) -> str:
    """Return a number of bytes."""
    if value is None:
        return NOTHING
    if value < 2**20:
        return f"{value / 2**10:.0f} KiB"
    return f"{value / 2**20:.0f} MiB" if value < 10 * 2**30 else f"{value / 2**30:.0f} GiB"


def duration(seconds: float | None) -> str:
    """Return a time that passed, in its two largest units: "45s", "3h12m"."""
    if seconds is None:
        return NOTHING
    whole = int(seconds)
    for long, short, unit_s, part_s in (("d", "h", 86400, 3600), ("h", "m", 3600, 60)):
        if whole >= unit_s:
            return f"{whole // unit_s}{long}{whole % unit_s // part_s:02}{short}"
    return f"{whole // 60}m{whole % 60:02}s" if whole >= 60 else f"{whole}s"


def latency(one: Latency) -> str:
    """Return median and 99th percentile; the highest bound of the buckets as what it is."""
    if one.p50_ms is None:
        return NOTHING
    return f"{_quantile(one.p50_ms, one)} / {_quantile(one.p99_ms, one)}"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return the newest values as bars, the highest one full; blank where there is none."""
    newest = values[-width:]
    most = max((one for one in newest if one is not None), default=0.0)
    bars = []
    for one in newest:
        if one is None:
            bars.append(" ")
        else:
            bars.append(_BARS[round(one / most * (len(_BARS) - 1))] if most else _BARS[0])
    return "".join(bars).rjust(width)


def by_name(rates: Mapping[str, float] | None, style: str) -> Text:
    """Return a total and what it is made of: "3.60  queue 3.20, rate 0.40"."""
    if rates is None:
        return Text(NOTHING, QUIET)
    parts = sorted(((name, one) for name, one in rates.items() if one), key=lambda one: -one[1])
    if not parts:
        return Text("0", QUIET)
    text = Text(rate(sum(one for _, one in parts)), style, no_wrap=True, overflow="ellipsis")
    named = ", ".join(f"{name or 'other'} {rate(one)}" for name, one in parts)
    return text.append(f"  {named}")


def _quantile(value: float | None, one: Latency) -> str:
    if value is not None and one.bound_ms is not None and value >= one.bound_ms:
        return f"≥{number(one.bound_ms)}"
    return number(value)
