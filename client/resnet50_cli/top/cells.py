"""Table cells that only `top` has; others are of `formatting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from resnet50_metrics.server_metrics import Latency

from ..formatting import NOTHING, number, percent, rate

_BARS = "▁▂▃▄▅▆▇█"

BAD = "bold red"
WARNING = "yellow"
QUIET = "dim"


def busy(ratio: float | None) -> str:
    """Format a device's utilisation; capped, as a long batch counts in the interval of its end."""
    return percent(None if ratio is None else min(1.0, ratio))


def latency(one: Latency) -> str:
    """Format median and 99th percentile; "≥" marks the highest bucket bound."""
    if one.p50_ms is None:
        return NOTHING
    return f"{_quantile(one.p50_ms, one)} / {_quantile(one.p99_ms, one)}"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Format the newest values as bars, scaled to the highest; unknown ones are blank."""
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
    """Format a total and its parts: "3.60  queue 3.20, rate 0.40"."""
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
