"""What waits for a thread or a device, in an order that is fair. Event loop only, no locks."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Whatever has no deadline is ordered as if it had this one, and no deadline counts as later, so
# that nothing is starved by what is more urgent.
PATIENCE_S = 10.0


@dataclass(eq=False)
class Entry(Generic[Item]):
    """One item that waits.

    Attributes:
        item: What was pushed.
        flow: Whose it is; None if it stands alone.
        due: Its place in the order, in loop time; infinite while it is a flow's later item.
        taken: Whether it was popped.
        gone: Whether it gave up waiting.
    """

    item: Item
    flow: Hashable | None
    due: float = math.inf
    taken: bool = False
    gone: bool = False


class FairQueue(Generic[Item]):
    """Items by due time; of each flow only one at a time stands in line.

    A flow's next item joins, as if it had just come, when the one before it leaves. However much
    one flow has waiting, another's item, or one that stands alone, waits for one item of each flow
    at most.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry[Item]]] = []
        # Of each flow that has an item in the heap: its later items.
        self._later: dict[Hashable, deque[Entry[Item]]] = {}
        self._numbers = itertools.count()
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def __iter__(self) -> Iterator[Entry[Item]]:
        """Iterate over all that wait, in no order."""
        for _, _, entry in self._heap:
            if not entry.gone:
                yield entry
        for line in self._later.values():
            yield from (entry for entry in line if not entry.gone)

    def push(
        self,
        item: Item,
        now: float,
        *,
        deadline: float | None = None,
        flow: Hashable | None = None,
    ) -> Entry[Item]:
        """Add an item.

        Args:
            item: What waits.
            now: Loop time.
            deadline: In loop time; earlier ones come first. It does not order a flow's items.
            flow: Whose it is; None if it stands alone.
        """
        entry = Entry(item, flow)
        self._live += 1
        if flow is None:
            patient = now + PATIENCE_S
            self._line_up(entry, patient if deadline is None else min(deadline, patient))
        elif flow in self._later:
            self._later[flow].append(entry)
        else:
            self._later[flow] = deque()
            self._line_up(entry, now + PATIENCE_S)
        return entry

    def peek(self) -> Entry[Item] | None:
        """Return what would be popped; None if nothing waits."""
        while self._heap and self._heap[0][2].gone:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self, now: float) -> Entry[Item] | None:
        """Take out the item that is due first; None if nothing waits."""
        entry = self.peek()
        if entry is None:
            return None
        heapq.heappop(self._heap)
        entry.taken = True
        self._live -= 1
        self._next_of_flow(entry, now)
        return entry

    def put_back(self, entry: Entry[Item]) -> None:
        """Undo a `pop`, but for its flow's next item, which stays in line."""
        entry.taken = False
        self._live += 1
        if entry.flow is not None:
            self._later.setdefault(entry.flow, deque())
        self._line_up(entry, entry.due)

    def remove(self, entry: Entry[Item], now: float) -> None:
        """Take out an item that gave up waiting."""
        entry.gone = True
        self._live -= 1
        if entry.due < math.inf:  # it stood in line
            self._next_of_flow(entry, now)
        if len(self._heap) > 64 and len(self._heap) > 2 * self._live:
            self._heap = [one for one in self._heap if not one[2].gone]
            heapq.heapify(self._heap)

    def _line_up(self, entry: Entry[Item], due: float) -> None:
        entry.due = due
        heapq.heappush(self._heap, (due, next(self._numbers), entry))

    def _next_of_flow(self, entry: Entry[Item], now: float) -> None:
        """Let a flow's next item join after one has left."""
        if entry.flow is None or entry.flow not in self._later:
            return
        line = self._later[entry.flow]
        while line:
            following = line.popleft()
            if not following.gone:
                self._line_up(following, now + PATIENCE_S)
                return
        del self._later[entry.flow]
