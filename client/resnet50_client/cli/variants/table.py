"""Variants as a table, with what went wrong below it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ...results import Loading, Variant
from ..top.cells import size


def table(found: Sequence[Variant]) -> Table:
    """Return a row for each variant; their texts are printable."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "state", "transform", "acc@1", "runs on", "weights"):
        shown.add_column(heading, no_wrap=heading != "state")
    for heading in ("memory", "requests"):
        shown.add_column(heading, no_wrap=True, justify="right")
    for one in found:
        accuracy = one.published_accuracy
        shown.add_row(
            one.name + (" *" if one.server_default else ""),
            state(one),
            f"{one.transform.resize} → {one.transform.crop}" if one.transform.crop else "-",
            f"{accuracy.acc_at_1:.2f}" if accuracy else "-",
            " ".join(filter(None, (one.engine, one.device, one.precision))) or "-",
            one.digest[:12] or "-",
            size(one.memory_bytes) if one.memory_bytes else "-",
            str(one.requests),
        )
    shown.caption, shown.caption_justify = "* answers requests that name no variant", "left"
    return shown


def failures(found: Sequence[Variant]) -> list[str]:
    """Return a line for each variant that is out of service, or whose last load failed."""
    lines: list[str] = []
    for one in found:
        if one.problem:
            lines.append(f"{one.name}: out of service: {one.problem}")
        if one.last_failure:
            lines.append(f"{one.name}: the last load failed: {one.last_failure}")
    return lines


def state(one: Variant) -> str:
    """Return whether a variant can answer, and what is loaded under its name."""
    word = one.state.upper() if one.state in ("failed", "unhealthy") else one.state
    if one.state == "ready" and not one.trained:
        word += ", UNTRAINED"
    if one.loading is None:
        return word
    return f"{word}; {progress(one.loading)}" if one.state != "loading" else progress(one.loading)


def progress(loading: Loading) -> str:
    """Return how far a variant is that is being loaded."""
    return f"loading: {loading.stage.replace('_', ' ')}, {loading.elapsed_s:.0f} s"
