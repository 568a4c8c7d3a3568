"""What waits for a thread or a device, in an order that is fair. Event loop only, no locks."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from resnet50_server.context import BULK_EVERY

Item = TypeVar("Item")

# Whatever has no deadline is ordered as if it had this one, and no deadline counts as later, so
# that nothing is starved by what is more urgent.
DEFAULT_DEADLINE_S = 10.0


def virtual_deadline(now: float, deadline: float | None) -> float:
    """Return the place in the order of what comes now and stands alone, in loop time."""
    patient = now + DEFAULT_DEADLINE_S
    return patient if deadline is None else min(deadline, patient)


@dataclass(eq=False)
class Entry(Generic[Item]):
    """One item that waits.

    Attributes:
        item: What was pushed.
        flow: Whose it is; None if it stands alone.
        due: Its place in the order, in loop time; infinite while it is a flow's later item.
        number: Of those due at the same time the lowest, who lined up first, comes first.
        taken: Whether it was popped.
        bulk: Whether it stands in the bulk lane.
    """

    item: Item
    flow: Hashable | None
    due: float = math.inf
    number: int = 0
    taken: bool = False
    bulk: bool = False


class FairQueue(Generic[Item]):
    """Items by due time; of each flow only one at a time stands in line.

    A flow's next item joins, as if it had just come, when the one before it leaves. However much
    one flow has waiting, another's item, or one that stands alone, waits for one item of each flow
    at most.

    Bulk items stand in a lane of their own, in the order in which they came, fair between flows as
    well. They go when nothing else waits; while something does, one item in `BULK_EVERY` is bulk.
    """

    def __init__(self) -> None:
        # Sorted; the numbers differ, so entries are never compared. Kept whole, not as a heap: it
        # is asked how many stand before a deadline, and moving a few thousand pointers costs less
        # than a microsecond.
        self._line: list[tuple[float, int, Entry[Item]]] = []
        # Of each flow that has an item in line: its later items.
        self._later: dict[Hashable, deque[Entry[Item]]] = {}
        self._numbers = itertools.count()
        self._live = 0
        self._alone = 0
        self._bulk: FairQueue[Item] | None = None
        # How many went since one of the bulk lane did, or could have.
        self._since_bulk = 0

    def __len__(self) -> int:
        return self._live

    def __iter__(self) -> Iterator[Entry[Item]]:
        """Iterate over all that wait, in no order."""
        for _, _, entry in self._line:
            yield entry
        for line in self._later.values():
            yield from line
        if self._bulk:
            yield from self._bulk

    @property
    def alone(self) -> int:
        """How many of those that wait belong to no flow."""
        return self._alone

    @property
    def only_bulk(self) -> bool:
        """Whether something waits, and all of it is bulk."""
        return self._live > 0 and not self._line

    @property
    def interactive(self) -> int:
        """How many stand in the line that is not bulk: all but the later items of flows."""
        return len(self._line)

    def before(self, due: float, bulk: bool = False) -> int:
        """Return how many go before an item that is due then and came now.

        Args:
            due: In loop time; see `virtual_deadline`.
            bulk: Whether the item is.
        """
        first = len(self._line) if bulk else bisect_left(self._line, (due, math.inf))
        if not self._bulk:
            return first
        if bulk:
            return first + self._bulk.before(due)
        return first + min(len(self._bulk), (first + self._since_bulk) // BULK_EVERY)

    def at(self, position: int) -> Entry[Item] | None:
        """Return who stands there in the line that is not bulk, 0 being the first; or None."""
        return self._line[position][2] if position < len(self._line) else None

    def push(
        self,
        item: Item,
        now: float,
        *,
        deadline: float | None = None,
        flow: Hashable | None = None,
        bulk: bool = False,
    ) -> Entry[Item]:
        """Add an item.

        Args:
            item: What waits.
            now: Loop time.
            deadline: In loop time; earlier ones come first. It does not order a flow's items.
            flow: Whose it is; None if it stands alone.
            bulk: Whether it goes behind what is not; its deadline does not order it.
        """
        self._count(flow, 1)
        if bulk:
            if self._bulk is None:
                self._bulk, self._since_bulk = FairQueue(), 0
            entry = self._bulk.push(item, now, flow=flow)
            entry.bulk = True
            return entry
        entry = Entry(item, flow)
        if flow is None:
            self._line_up(entry, virtual_deadline(now, deadline))
        elif flow in self._later:
            self._later[flow].append(entry)
        else:
            self._later[flow] = deque()
            self._line_up(entry, now + DEFAULT_DEADLINE_S)
        return entry

    def peek(self) -> Entry[Item] | None:
        """Return what would be popped; None if nothing waits."""
        return self._bulk.peek() if self._bulk and self._is_bulks_turn() else self.at(0)

    def pop(self, now: float) -> Entry[Item] | None:
        """Take out the item that goes next; None if nothing waits."""
        if not self._live:
            return None
        if self._bulk:
            if self._is_bulks_turn():
                self._since_bulk = 0
                if (bulk := self._bulk.pop(now)) is not None:
                    self._count(bulk.flow, -1)
                return bulk
            self._since_bulk += 1
        entry = self._line.pop(0)[2]
        self._count(entry.flow, -1)
        entry.taken = True
        self._next_of_flow(entry, now)
        return entry

    def put_back(self, entry: Entry[Item]) -> None:
        """Undo a `pop`, but for its flow's next item, which stays in line."""
        self._count(entry.flow, 1)
        if entry.bulk and self._bulk is not None:  # in the lane itself there is no other one
            self._bulk.put_back(entry)
            return
        entry.taken = False
        if entry.flow is not None:
            self._later.setdefault(entry.flow, deque())
        insort(self._line, (entry.due, entry.number, entry))

    def remove(self, entry: Entry[Item], now: float) -> None:
        """Take out an item that gave up waiting."""
        self._count(entry.flow, -1)
        if entry.bulk and self._bulk is not None:
            self._bulk.remove(entry, now)
        elif entry.due < math.inf:
            del self._line[bisect_left(self._line, (entry.due, entry.number))]
            self._next_of_flow(entry, now)
        else:
            self._later[entry.flow].remove(entry)

    def _count(self, flow: Hashable | None, more: int) -> None:
        self._live += more
        if flow is None:
            self._alone += more

    def _is_bulks_turn(self) -> bool:
        """Return whether the bulk lane, in which something waits, goes next."""
        return not self._line or self._since_bulk >= BULK_EVERY

    def _line_up(self, entry: Entry[Item], due: float) -> None:
        entry.due, entry.number = due, next(self._numbers)
        insort(self._line, (due, entry.number, entry))

    def _next_of_flow(self, entry: Entry[Item], now: float) -> None:
        """Let a flow's next item join after one has left."""
        if entry.flow is None or entry.flow not in self._later:
            return
        line = self._later[entry.flow]
        if line:
            self._line_up(line.popleft(), now + DEFAULT_DEADLINE_S)
        else:
            del self._later[entry.flow]
