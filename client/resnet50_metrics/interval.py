"""Rates between two scrapes of a server, and totals over several servers."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .scrape import Labels, Scrape, Series

_COUNTING = ("_total", "_bucket", "_count", "_sum")
_STARTED = "process_start_time_seconds"
_NO_LABELS: Labels = frozenset()

Fold = Callable[[Iterable[float]], float]
# Aggregation over servers where a sum is meaningless: mostly the worst value.
_FOLDS: Mapping[str, Fold] = {
    _STARTED: max,  # the youngest
    "resnet50_ready": min,
    "resnet50_variant_info": max,
    "resnet50_build_info": max,
    "resnet50_queue_age_seconds": max,
    "resnet50_batch_latency_alpha_seconds": max,
    "resnet50_batch_latency_beta_seconds": max,
    "resnet50_engine_busy_seconds_total": statistics.fmean,
}


@dataclass(frozen=True)
class Interval:
    """Rates of counters and histograms, newest values of gauges.

    Attributes:
        per_s: Increase per second of each counter and histogram bucket; empty if unknown, after
            the first scrape and after a restart.
        now: Gauges at the end of the interval.
    """

    per_s: Series
    now: Series

    @classmethod
    def between(cls, before: Scrape | None, after: Scrape) -> Interval:
        """Compute the rates between two scrapes of one server; `before` is None at first."""
        now = {
            name: values for name, values in after.series.items() if not name.endswith(_COUNTING)
        }
        if before is None or after.time_s <= before.time_s or _restarted(before, after):
            return cls({}, now)
        seconds = after.time_s - before.time_s
        per_s = {}
        for name, values in after.series.items():
            old = before.series.get(name)
            # A new family may have been omitted before and count from long ago; a new series of a
            # known family starts at 0 with its label's first use.
            if old is not None and name.endswith(_COUNTING):
                per_s[name] = {
                    labels: _growth(old.get(labels, 0.0), value) / seconds
                    for labels, value in values.items()
                }
        return cls(per_s, now)

    @classmethod
    def total(cls, intervals: Sequence[Interval]) -> Interval:
        """Aggregate servers; a metric that some do not export is of the others."""
        return cls(
            _folded([one.per_s for one in intervals]), _folded([one.now for one in intervals])
        )

    def rate(self, name: str, **labels: str) -> float | None:
        """Return the total rate per second of the series with these labels; None if unknown."""
        return _total(self.per_s.get(name), labels)

    def rates(self, name: str, by: str, **labels: str) -> dict[str, float] | None:
        """Return rates per second of the series with these labels, by the label `by`."""
        return _by(self.per_s.get(name), by, labels)

    def value(self, name: str, **labels: str) -> float | None:
        """Return the sum of the gauges with these labels; None if the family is not exported."""
        return _total(self.now.get(name), labels)

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels of each series of a family, gauge or counter."""
        return [dict(labels) for labels in self.now.get(name, self.per_s.get(name, {}))]

    def buckets(self, name: str, **labels: str) -> dict[float, float] | None:
        """Return a histogram's cumulative rates per second by upper bound, for `quantile`."""
        found = _by(self.per_s.get(f"{name}_bucket"), "le", labels)
        return None if found is None else {float(bound): rate for bound, rate in found.items()}

    def mean(self, name: str, **labels: str) -> float | None:
        """Return the mean of a histogram's observations; None if unknown or without any."""
        total, count = self.rate(f"{name}_sum", **labels), self.rate(f"{name}_count", **labels)
        return total / count if total is not None and count else None


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """Compute a quantile as Prometheus's histogram_quantile does.

    It is interpolated linearly within a bucket, and capped at the highest finite bound.

    Args:
        share: 0 to 1.
        buckets: Cumulative counts, or rates of them, by upper bound, +Inf among them.

    Returns:
        The quantile in the bounds' unit; None if nothing was counted.
    """
    bounds = sorted(buckets)
    most = max(buckets.values(), default=0.0)
    if not bounds or most <= 0.0:
        return None
    rank = share * most
    lower, below = 0.0, 0.0
    for bound in bounds:
        # A bucket that was reset between the scrapes must not make the sum decrease.
        count = max(below, buckets[bound])
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * max(0.0, rank - below) / (count - below)
        if bound != float("inf"):
            lower = bound
        below = count
    return lower


def _growth(before: float, after: float) -> float:
    """Return a counter's increase; a reset counter started from 0."""
    return after - before if after >= before else after


def _restarted(before: Scrape, after: Scrape) -> bool:
    old, new = (one.series.get(_STARTED, {}).get(_NO_LABELS) for one in (before, after))
    if old is not None and new is not None:
        return old != new
    return any(
        values[labels] < value
        for name, found in before.series.items()
        if name.endswith(_COUNTING)
        for values in (after.series.get(name, {}),)
        for labels, value in found.items()
        if labels in values
    )


def _folded(all_series: Sequence[Series]) -> Series:
    folded: dict[str, dict[Labels, float]] = {}
    for name in dict.fromkeys(name for series in all_series for name in series):
        family = [series[name] for series in all_series if name in series]
        if name.endswith("_bucket"):
            family = _on_common_bounds(family)
        values = collections.defaultdict(list)
        for series in family:
            for labels, value in series.items():
                values[labels].append(value)
        fold = _FOLDS.get(name, sum)
        folded[name] = {labels: fold(found) for labels, found in values.items()}
    return folded


def _on_common_bounds(family: Sequence[Mapping[Labels, float]]) -> list[Mapping[Labels, float]]:
    """Keep only the bounds that all servers export: cumulative counts stay exact there."""
    bounds = [{dict(labels).get("le") for labels in series} for series in family if series]
    common = set.intersection(*bounds) if bounds else set()
    return [{k: v for k, v in series.items() if dict(k).get("le") in common} for series in family]


def _total(series: Mapping[Labels, float] | None, labels: Mapping[str, str]) -> float | None:
    if series is None:
        return None
    wanted = labels.items()
    return sum(value for found, value in series.items() if wanted <= found)


def _by(
    series: Mapping[Labels, float] | None, by: str, labels: Mapping[str, str]
) -> dict[str, float] | None:
    if series is None:
        return None
    wanted, totals = labels.items(), collections.defaultdict[str, float](float)
    for found, value in series.items():
        if wanted <= found:
            totals[dict(found).get(by, "")] += value
    return dict(totals)
