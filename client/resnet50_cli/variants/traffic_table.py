"""Traffic splits as tables: variant and candidate side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from resnet50_client.types import TrafficReport, TrafficShare

from ..formatting import NOTHING, number


def reports_table(address: str, reports: Sequence[TrafficReport]) -> RenderableType:
    """Return the tables of a server's traffic splits, whose text is printable."""
    if not reports:
        return Text(f"{address}: no traffic split is set")
    return Group(Text(f"{address}:"), *(_report(one) for one in reports))


def summary(report: TrafficReport) -> str:
    """Return one line about a split."""
    split = report.split
    return (
        f"{split.candidate} serves {split.canary_percent:g}% of the callers of {split.variant}"
        f" and shadows {split.shadow_percent:g}% of its images"
    )


def _report(report: TrafficReport) -> RenderableType:
    split, comparison = report.split, report.comparison
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column(split.variant, justify="right", no_wrap=True)
    table.add_column(f"{split.candidate} (candidate)", justify="right", no_wrap=True)
    variant, candidate = report.variant_answers, report.candidate_answers
    table.add_row("weights", report.variant_digest[:12], report.candidate_digest[:12])
    table.add_row("callers", f"{100 - split.canary_percent:g}%", f"{split.canary_percent:g}%")
    table.add_row("answered", str(variant.answered), str(candidate.answered))
    table.add_row("failed", _failed(variant), _failed(candidate))
    for name in ("p50", "p99"):
        table.add_row(f"{name} ms", *(_ms(one, name) for one in (variant, candidate)))
    if comparison is not None:
        table.add_row(
            "batch ms",
            number(comparison.variant_compute_ms),
            number(comparison.candidate_compute_ms),
        )
    return Group(table, *(Text(line) for line in _comparison(report)), "")


def _comparison(report: TrafficReport) -> Iterator[str]:
    """Yield lines about the images that both variants computed."""
    split, comparison = report.split, report.comparison
    if report.ended:
        yield f"ENDED by the server: {report.ended}"
    yield f"for {timedelta(seconds=int(report.elapsed_s))}"
    if not split.shadow_percent:
        yield "no shadow traffic (--shadow)"
        return
    compared = comparison.images if comparison is not None else 0
    yield (
        f"shadow {split.shadow_percent:g}% of images: {compared} compared, {report.skipped}"
        f" skipped, {report.failed} failed on the candidate"
    )
    if comparison is not None:
        yield (
            f"top-1 agreement {comparison.top_1_agreement:.2%}; cosine similarity mean"
            f" {comparison.embedding_cosine:.4f}, min {comparison.min_embedding_cosine:.4f}"
        )


def _failed(share: TrafficShare) -> str:
    requests = share.answered + share.failed
    return f"{share.failed} ({share.failed / requests:.2%})" if share.failed else "0"


def _ms(share: TrafficShare, name: str) -> str:
    return number(getattr(share, f"{name}_ms")) if share.answered else NOTHING
