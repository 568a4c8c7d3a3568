"""A queue by deadline, fair between flows, with a bulk lane. Event loop only, no locks."""

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

# Items without a deadline, or with a later one, are ordered as if they had this one, so that urgent
# items cannot starve them.
DEFAULT_DEADLINE_S = 10.0


def virtual_deadline(now: float, deadline: float | None) -> float:
    """Return the deadline that orders an item without a flow that arrives now, in loop time."""
    default = now + DEFAULT_DEADLINE_S
    return default if deadline is None else min(deadline, default)


class BulkWeight:
    """Decides when bulk goes first: one part in `BULK_EVERY` while interactive work waits too.

    Parts are of any unit: `FairQueue` counts items, `DeadlinePolicy` seconds of a device.
    """

    def __init__(self) -> None:
        self._interactive = 0.0

    def add_interactive(self, amount: float = 1.0) -> None:
        """Count interactive work that was done while bulk waited."""
        self._interactive += amount

    def reset(self) -> None:
        """Start anew, because bulk was done."""
        self._interactive = 0.0

    def is_due(self, amount: float = 1.0) -> bool:
        """Return whether so much bulk goes next; without interactive work before it none does."""
        return self._interactive > 0.0 and self._interactive >= BULK_EVERY * amount

    def count_due(self, interactive: int) -> int:
        """Return how many bulk items will have gone after so many more interactive ones."""
        return int(interactive + self._interactive) // BULK_EVERY


@dataclass(eq=False, slots=True)
class Entry(Generic[Item]):
    """An item in a queue.

    Attributes:
        item: As pushed.
        flow: As pushed.
        due: Its virtual deadline, in loop time; infinite while an item of its flow is before it.
        number: Orders items of the same virtual deadline: first come, first served.
        taken: Whether it was popped.
        bulk: Whether it is in the bulk lane.
    """

    item: Item
    flow: Hashable | None
    due: float = math.inf
    number: int = 0
    taken: bool = False
    bulk: bool = False


class FairQueue(Generic[Item]):
    """Items by virtual deadline; of each flow, such as a stream, only one item at a time is ready.

    A flow's next item becomes ready when the one before it leaves, as if it arrived then. So an
    item of another flow, or without one, waits for one item of each flow at most, whatever their
    backlogs.

    Bulk items have a lane of their own, first come, first served, and fair between flows too. They
    go when nothing else waits; otherwise one item in `BULK_EVERY` is bulk.

    Attributes:
        without_flow: Number of items without a flow.
    """

    def __init__(self) -> None:
        # Sorted; the numbers differ, so entries are never compared. A sorted list and no heap:
        # `count_before` needs positions, and moving a few thousand pointers takes less than 1 us.
        self._ready: list[tuple[float, int, Entry[Item]]] = []
        # The later items of each flow that has a ready one.
        self._backlog: dict[Hashable, deque[Entry[Item]]] = {}
        self._numbers = itertools.count()
        self._length = 0
        self.without_flow = 0
        self._bulk: FairQueue[Item] | None = None
        self._bulk_weight = BulkWeight()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Entry[Item]]:
        """Iterate over all entries, in no order."""
        for _, _, entry in self._ready:
            yield entry
        for entries in self._backlog.values():
            yield from entries
        if self._bulk:
            yield from self._bulk

    @property
    def only_bulk(self) -> bool:
        """True if it has items and all of them are bulk."""
        return self._length > 0 and not self._ready

    @property
    def interactive(self) -> int:
        """Number of ready items that are not bulk."""
        return len(self._ready)

    def count_before(self, due: float, bulk: bool = False) -> int:
        """Return how many items go before one that arrives now.

        Args:
            due: Its virtual deadline, in loop time.
            bulk: Whether it is bulk.
        """
        first = len(self._ready) if bulk else bisect_left(self._ready, (due, math.inf))
        if not self._bulk:
            return first
        if bulk:
            return first + self._bulk.count_before(due)
        return first + min(len(self._bulk), self._bulk_weight.count_due(first))

    def peek_at(self, position: int) -> Entry[Item] | None:
        """Return the ready item at a position, 0 being the first, bulk aside; None if none is."""
        return self._ready[position][2] if position < len(self._ready) else None

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
            item: The item.
            now: Loop time.
            deadline: In loop time; orders items that have no flow and are not bulk.
            flow: The stream, for example, that it belongs to; None if it is a single item.
            bulk: Whether it goes into the bulk lane.
        """
        self._length += 1
        if flow is None:
            self.without_flow += 1
        if bulk:
            if self._bulk is None:
                self._bulk = FairQueue()
                self._bulk_weight.reset()
            entry = self._bulk.push(item, now, flow=flow)
            entry.bulk = True
            return entry
        entry = Entry(item, flow)
        if flow is None:
            self._enqueue(entry, virtual_deadline(now, deadline))
        elif flow in self._backlog:
            self._backlog[flow].append(entry)
        else:
            self._backlog[flow] = deque()
            self._enqueue(entry, virtual_deadline(now, None))
        return entry

    def earliest_due(self) -> float | None:
        """Return the earliest virtual deadline of a ready item; None if there is none."""
        due = self._ready[0][0] if self._ready else None
        if self._bulk and self._is_bulk_next() and (bulk := self._bulk.earliest_due()) is not None:
            return bulk if due is None else min(due, bulk)
        return due

    def peek(self) -> Entry[Item] | None:
        """Return the entry that `pop` would return."""
        return self._bulk.peek() if self._bulk and self._is_bulk_next() else self.peek_at(0)

    def pop(self, now: float) -> Entry[Item] | None:
        """Remove and return the next entry; None if the queue is empty."""
        if not self._length:
            return None
        if self._bulk:
            if self._is_bulk_next():
                self._bulk_weight.reset()
                if (bulk := self._bulk.pop(now)) is not None:
                    self._count(bulk.flow, -1)
                return bulk
            self._bulk_weight.add_interactive()
        entry = self._ready.pop(0)[2]
        entry.taken = True
        self._length -= 1
        if entry.flow is None:
            self.without_flow -= 1
        else:
            self._enqueue_next_of_flow(entry, now)
        return entry

    def put_back(self, entry: Entry[Item]) -> None:
        """Undo a `pop`; the next item of its flow stays ready."""
        self._count(entry.flow, 1)
        if entry.bulk and self._bulk is not None:  # the lane itself has no bulk lane
            self._bulk.put_back(entry)
            return
        entry.taken = False
        if entry.flow is not None:
            self._backlog.setdefault(entry.flow, deque())
        insort(self._ready, (entry.due, entry.number, entry))

    def remove(self, entry: Entry[Item], now: float) -> None:
        """Remove an entry that was cancelled."""
        self._count(entry.flow, -1)
        if entry.bulk and self._bulk is not None:
            self._bulk.remove(entry, now)
        elif entry.due < math.inf:
            del self._ready[bisect_left(self._ready, (entry.due, entry.number))]
            self._enqueue_next_of_flow(entry, now)
        else:
            self._backlog[entry.flow].remove(entry)

    def _count(self, flow: Hashable | None, change: int) -> None:
        self._length += change
        if flow is None:
            self.without_flow += change

    def _is_bulk_next(self) -> bool:
        """Return whether the bulk lane, which is not empty, goes next."""
        return not self._ready or self._bulk_weight.is_due()

    def _enqueue(self, entry: Entry[Item], due: float) -> None:
        entry.due, entry.number = due, next(self._numbers)
        insort(self._ready, (due, entry.number, entry))

    def _enqueue_next_of_flow(self, entry: Entry[Item], now: float) -> None:
        """Make a flow's next item ready after one has left."""
        if entry.flow is None or entry.flow not in self._backlog:
            return
        backlog = self._backlog[entry.flow]
        if backlog:
            self._enqueue(backlog.popleft(), virtual_deadline(now, None))
        else:
            del self._backlog[entry.flow]
