"""All displayed data at one point in time, for the view and for JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from resnet50_metrics.interval import Interval
from resnet50_metrics.server_metrics import ServerMetrics

from .poller import Poller, poll_all
from .variant_status import VariantStatus, VariantStatusPoller


@dataclass(frozen=True)
class ServerSnapshot:
    """One server.

    Attributes:
        name: Display name.
        url: URL of its metrics.
        failure: Error of the last poll; "" if it succeeded.
        failing_s: Seconds since polls began to fail.
        metrics: Its metrics; None if the last poll failed.
    """

    name: str
    url: str
    failure: str
    failing_s: float
    metrics: ServerMetrics | None


@dataclass(frozen=True)
class Snapshot:
    """All servers at one point in time.

    Attributes:
        time: Time of the snapshot, in UTC.
        interval_s: Poll interval in seconds.
        servers: Servers, in the order of the command line.
        total: Those that answer, added up; None if none does.
        variant_status: Status by variant; empty if no server responds over gRPC.
        query_errors: Errors of polling it, by address.
    """

    time: datetime
    interval_s: float
    servers: tuple[ServerSnapshot, ...]
    total: ServerMetrics | None
    variant_status: Mapping[str, VariantStatus]
    query_errors: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, pollers: Sequence[Poller], statuses: VariantStatusPoller, interval_s: float
    ) -> Snapshot:
        """Collect the latest data."""
        now_s = time.time()
        servers, intervals = [], []
        for one in pollers:
            interval, metrics = one.interval, None
            if interval is not None:
                try:
                    metrics = ServerMetrics.of(interval, now_s)
                    intervals.append(interval)
                except Exception as error:  # of one server; the others are still shown
                    one.fail(f"{type(error).__name__}: {error}")
                    interval = None
            failing_s = time.monotonic() - one.failing_since_s if interval is None else 0.0
            name, url = one.endpoint.name, one.endpoint.url
            failure = one.failure if interval is None else ""
            servers.append(ServerSnapshot(name, url, failure, failing_s, metrics))
        known = statuses.latest()
        total = ServerMetrics.of(Interval.total(intervals), now_s) if intervals else None
        return cls(
            datetime.fromtimestamp(now_s, timezone.utc),
            interval_s,
            tuple(servers),
            total.with_variants(known) if total is not None else None,
            known,
            statuses.errors(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object for `--json`: names include units, unknown values are None."""
        return asdict(self) | {"time": self.time.isoformat(timespec="milliseconds")}


def snapshots(
    pollers: Sequence[Poller], statuses: VariantStatusPoller, interval_s: float
) -> Iterator[Snapshot]:
    """Poll servers once per interval, forever; blocks in between.

    Args:
        pollers: One for each server.
        statuses: Status of their variants.
        interval_s: From one look to the next, in seconds.
    """
    due_s = time.monotonic()
    while True:
        poll_all(pollers)
        yield Snapshot.of(pollers, statuses, interval_s)
        # A slow poll delays the following ones; none is skipped or caught up.
        due_s = max(due_s + interval_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))
