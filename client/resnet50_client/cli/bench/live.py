"""What a run looks like while it runs: three lines on stderr."""

from __future__ import annotations

import time

import numpy as np
from rich.text import Text

from .plan import Plan
from .record import Record

NEWEST = 1000


class Live:
    """Says how a benchmark goes; read by the thread that draws."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._record: Record | None = None
        self._began = 0.0
        self._runs = 0

    def watch(self, plan: Plan, record: Record) -> None:
        """Look at the run that starts now."""
        self._plan, self._record, self._began = plan, record, time.monotonic()
        self._runs += 1

    def __rich__(self) -> Text:
        if self._plan is None or self._record is None:
            return Text("asking the server, making images")
        plan, record = self._plan, self._record
        passed_s = time.monotonic() - self._began
        if passed_s < plan.warm_up_s:
            when = f"warming up, {plan.warm_up_s - passed_s:.0f} s"
        else:
            measured_s = passed_s - plan.warm_up_s
            when = f"{min(measured_s, plan.duration_s):.0f} of {plan.duration_s:g} s"
            if measured_s > plan.duration_s:
                when += ", waiting for the last answers"
        errors = ", ".join(f"{count} {code}" for code, count in record.errors.items())
        newest = record.latency_ms[-NEWEST:]
        latency = "-"
        if newest:
            half, most = np.percentile(newest, (50, 99))
            latency = f"p50 {half:.1f} ms, p99 {most:.1f} ms"
        lines = (
            f"run {self._runs}: {plan.load.describe(plan.streams)}, {when}\n"
            f"{record.calls} calls, {record.under_way} under way, {len(record.latency_ms)}"
            f" answered, {errors or 'no errors'}\nlatency {latency}"
        )
        return Text(lines, no_wrap=True, overflow="ellipsis")
