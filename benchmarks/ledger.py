"""Account of every call and every frame: nothing may be left over."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from dataclasses import dataclass

RIGHT = "right"  # answered, and the answer is the right one
REFUSED = "refused"  # as it had to be
CANCELLED = "cancelled"  # by the caller, or replaced by a newer frame, as it had to be
WRONG = "wrong"
LOST = "lost"  # failed though nothing was wrong with it, or never answered
GOOD = (RIGHT, REFUSED, CANCELLED)
# So many faults are printed; all are counted.
SHOWN = 20


@dataclass(frozen=True)
class Fault:
    """A call that was lost, or answered wrongly.

    Attributes:
        shape: Of the call.
        outcome: "wrong" or "lost".
        at_s: When, in seconds from the start.
        text: Everything that is known of it.
    """

    shape: str
    outcome: str
    at_s: float
    text: str

    def __str__(self) -> str:
        return f"{self.outcome.upper()} {self.shape} at {self.at_s:.1f} s: {self.text}"


class Ledger:
    """Counts calls and frames by shape and outcome; for many threads.

    Attributes:
        faults: Those that were lost or answered wrongly, and whatever else broke a promise.
        refusals: How many were refused as they had to be, by the name of gRPC's code.
        weights: How many right answers each checkpoint gave.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.refusals: collections.Counter[str] = collections.Counter()
        self.weights: collections.Counter[str] = collections.Counter()
        self._begun: collections.Counter[str] = collections.Counter()
        self._outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        self._longest_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def began(self, shape: str) -> None:
        """Count a call or a frame that is on its way."""
        with self._lock:
            self._begun[shape] += 1

    def right(self, shape: str, weights: str, took_s: float) -> None:
        """Count a right answer.

        Args:
            shape: Of the call.
            weights: Label of the checkpoint that gave it.
            took_s: How long it took.
        """
        with self._lock:
            self._outcomes[shape, RIGHT] += 1
            self.weights[weights] += 1
            self._longest_s[shape] = max(took_s, self._longest_s.get(shape, 0.0))

    def refused(self, shape: str, code: str, count: int = 1) -> None:
        """Count what was refused as it had to be."""
        with self._lock:
            self._outcomes[shape, REFUSED] += count
            self.refusals[code] += count

    def cancelled(self, shape: str, count: int = 1) -> None:
        """Count calls that were cancelled, or frames replaced by a newer one."""
        with self._lock:
            self._outcomes[shape, CANCELLED] += count

    def fault(self, shape: str, outcome: str, text: str, count: int = 1) -> None:
        """Count what is wrong or lost, and print it."""
        fault = Fault(shape, outcome, time.monotonic() - self._started, text)
        with self._lock:
            self._outcomes[shape, outcome] += count
            self.faults.append(fault)
        if len(self.faults) <= SHOWN:
            print(fault, flush=True)

    def broken(self, text: str) -> None:
        """Note a promise that is broken, but not to a single call."""
        self.faults.append(Fault("trial", "broken", time.monotonic() - self._started, text))
        print(self.faults[-1], flush=True)

    def close(self) -> None:
        """See that every call and frame has come to an end; call it when all callers have."""
        for shape, begun in self._begun.items():
            ended = sum(count for (one, _), count in self._outcomes.items() if one == shape)
            if ended != begun:
                self.broken(f"{shape}: {begun} begun, {ended} ended")

    def count(self, outcome: str, shape: str | None = None) -> int:
        """Return how many calls and frames ended like that."""
        return sum(
            count
            for (one, how), count in self._outcomes.items()
            if how == outcome and shape in (None, one)
        )

    @property
    def begun(self) -> int:
        """How many calls and frames there were."""
        return self._begun.total()

    def shapes(self) -> list[str]:
        """Return what shapes of calls there were."""
        return sorted(self._begun)

    def longest_s(self, shapes: str = "") -> float:
        """Return how long the longest call with a right answer took; 0 without any.

        Args:
            shapes: Prefixes of their names.
        """
        longest = (took for one, took in self._longest_s.items() if one.startswith(shapes))
        return max(longest, default=0.0)

    def by_shape(self) -> str:
        """Return a table."""
        head = f"{'':<22}" + "".join(f"{name:>10}" for name in ("begun", *GOOD, WRONG, LOST))
        lines = [f"{head}{'longest s':>11}"]
        for shape in self.shapes():
            counts = "".join(
                f"{self._outcomes[shape, how]:>10}" for how in itertools.chain(GOOD, (WRONG, LOST))
            )
            longest = self._longest_s.get(shape, 0.0)
            lines.append(f"{shape:<22}{self._begun[shape]:>10}{counts}{longest:>11.2f}")
        return "\n".join(lines)
