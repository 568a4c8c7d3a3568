"""Everything that is shown at one moment, for eyes and for machines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from .facts import Fact, Facts
from .interval import Interval
from .reading import Reading
from .watch import Watch, look_at_all


@dataclass(frozen=True)
class ServerReading:
    """One server.

    Attributes:
        name: As it is shown.
        url: Where its metrics are.
        failure: Why it has no figures; "" if it answers.
        failing_s: For how long it has had none, in seconds.
        reading: Its figures; None if it does not answer.
    """

    name: str
    url: str
    failure: str
    failing_s: float
    reading: Reading | None


@dataclass(frozen=True)
class Snapshot:
    """All servers at one moment.

    Attributes:
        time: When.
        interval_s: Between two looks, in seconds.
        servers: One each, in the order in which they were named.
        together: Those that answer, added up; None if none does.
        facts: What the API says of variants, by name; empty if it does not answer.
        not_asked: Why a server could not be asked for them, by address.
    """

    time: datetime
    interval_s: float
    servers: tuple[ServerReading, ...]
    together: Reading | None
    facts: Mapping[str, Fact]
    not_asked: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, watches: Sequence[Watch], facts: Facts, interval_s: float) -> Snapshot:
        """Take what is known now."""
        now_s = time.time()
        servers, intervals = [], []
        for one in watches:
            interval, reading = one.interval, None
            if interval is not None:
                try:
                    reading = Reading.of(interval, now_s)
                    intervals.append(interval)
                except Exception as error:  # of one server: the others are shown
                    one.fail(f"{type(error).__name__}: {error}")
                    interval = None
            failing_s = time.monotonic() - one.failing_since_s if interval is None else 0.0
            name, url = one.endpoint.name, one.endpoint.url
            failure = one.failure if interval is None else ""
            servers.append(ServerReading(name, url, failure, failing_s, reading))
        known = facts.known()
        together = Reading.of(Interval.together(intervals), now_s) if intervals else None
        return cls(
            datetime.fromtimestamp(now_s, timezone.utc),
            interval_s,
            tuple(servers),
            together.with_variants(known) if together is not None else None,
            known,
            facts.failures(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` writes: units stand in the names, unknown is None."""
        return asdict(self) | {"time": self.time.isoformat(timespec="milliseconds")}


def snapshots(watches: Sequence[Watch], facts: Facts, interval_s: float) -> Iterator[Snapshot]:
    """Look at servers once per interval, for ever; blocks between.

    Args:
        watches: One for each server.
        facts: What is known of their variants.
        interval_s: From one look to the next, in seconds.
    """
    due_s = time.monotonic()
    while True:
        look_at_all(watches)
        yield Snapshot.of(watches, facts, interval_s)
        # A look that took too long is not made up for.
        due_s = max(due_s + interval_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))
