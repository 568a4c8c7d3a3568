"""Variants as a table, with their failures below it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from resnet50_client.types import Loading, Transform, Variant

from ..formatting import NOTHING, size


def table(variants: Sequence[Variant]) -> Table:
    """Return a table with a row per variant, whose texts are printable."""
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "state", "transform", "acc@1", "runs on", "weights"):
        rows.add_column(heading, no_wrap=heading != "state")
    for heading in ("memory", "in flight"):
        rows.add_column(heading, no_wrap=True, justify="right")
    for variant in variants:
        accuracy = variant.published_accuracy
        rows.add_row(
            variant.name + (" *" if variant.server_default else ""),
            state(variant),
            sizes(variant.transform),
            f"{accuracy.acc_at_1:.2f}" if accuracy else NOTHING,
            " ".join(filter(None, (variant.engine, variant.device, variant.precision))) or NOTHING,
            (variant.digest or NOTHING)[:12],
            size(variant.memory_bytes) if variant.memory_bytes else NOTHING,
            str(variant.requests),
        )
    rows.caption, rows.caption_justify = "* default: serves requests that name no variant", "left"
    return rows


def sizes(transform: Transform) -> str:
    """Return the sizes after a variant's resize and its crop: "232 → 224", "224 x 224"."""
    height, width = transform.input_size
    if not height:
        return NOTHING
    cropped = str(height) if height == width else f"{height} x {width}"
    if transform.resize_to is None:
        resized = str(transform.resize or transform.resize_longer_side or "")
        return " → ".join(filter(None, (resized, cropped)))
    resized = f"{transform.resize_to[0]} x {transform.resize_to[1]}"
    return resized if transform.resize_to == transform.input_size else f"{resized} → {cropped}"


def failures(variants: Sequence[Variant]) -> list[str]:
    """Return a line for each variant that is out of service or whose last load failed."""
    lines: list[str] = []
    for variant in variants:
        if variant.problem:
            lines.append(f"{variant.name}: out of service: {variant.problem}")
        if variant.last_failure:
            lines.append(f"{variant.name}: the last load failed: {variant.last_failure}")
    return lines


def state(variant: Variant) -> str:
    """Return a variant's state, with the progress of a load in progress."""
    word = variant.state.upper() if variant.state in ("failed", "unhealthy") else variant.state
    if variant.state == "ready" and not variant.trained:
        word += ", UNTRAINED"
    if variant.activation == "none":
        word += ", embeddings only"
    if variant.loading is None:
        return word
    loading = progress(variant.loading)
    return loading if variant.state == "loading" else f"{word}; {loading}"


def progress(loading: Loading) -> str:
    """Return the stage and duration of a load."""
    return f"loading: {loading.stage.replace('_', ' ')}, {loading.elapsed_s:.0f} s"
