"""Progress of a benchmark: three lines on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from rich.text import Text

from .plan import Plan
from .recorder import Progress


class ProgressView:
    """Renders the progress of a benchmark; read by the display's thread."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._progress: Callable[[], Progress] | None = None
        self._began = 0.0
        self._runs = 0

    def watch(self, plan: Plan, progress: Callable[[], Progress]) -> None:
        """Show the run that starts now."""
        self._plan, self._progress, self._began = plan, progress, time.monotonic()
        self._runs += 1

    def __rich__(self) -> Text:
        if self._plan is None or self._progress is None:
            return Text("querying the server, preparing images")
        plan, progress = self._plan, self._progress()
        passed_s = time.monotonic() - self._began
        if passed_s < plan.warm_up_s:
            when = f"warming up, {plan.warm_up_s - passed_s:.0f} s"
        else:
            measured_s = passed_s - plan.warm_up_s
            when = f"{min(measured_s, plan.duration_s):.0f} of {plan.duration_s:g} s"
            if measured_s > plan.duration_s:
                when += ", waiting for the last responses"
        errors = ", ".join(f"{count} {code}" for code, count in progress.errors.items())
        latency = "-"
        if progress.newest_ms:
            half, most = np.quantile(progress.newest_ms, (0.5, 0.99))
            latency = f"p50 {half:.1f} ms, p99 {most:.1f} ms"
        lines = (
            f"run {self._runs}: {plan.load.describe(plan.streams)}, {when}\n"
            f"{progress.calls} calls, {progress.in_flight} in flight, {progress.answered}"
            f" answered, {errors or 'no errors'}\nlatency {latency}"
        )
        return Text(lines, no_wrap=True, overflow="ellipsis")
