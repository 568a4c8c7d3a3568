from __future__ import annotations

import gc
import random
import weakref

from resnet50_server.batching.fair_queue import DEFAULT_DEADLINE_S, FairQueue
from resnet50_server.context import BULK_EVERY


def popped(queue: FairQueue[str], now: float = 0.0) -> list[str]:
    found = []
    while (entry := queue.pop(now)) is not None:
        found.append(entry.item)
    return found


def test_items_are_ordered_by_deadline_or_arrival():
    queue: FairQueue[str] = FairQueue()
    queue.push("first", 0.0)
    queue.push("second", 0.1)
    queue.push("urgent", 0.2, deadline=1.0)
    queue.push("far off", 0.3, deadline=1000.0)
    assert popped(queue) == ["urgent", "first", "second", "far off"]


def test_equal_deadlines_are_served_in_order_of_arrival():
    queue: FairQueue[str] = FairQueue()
    for name in "abc":
        queue.push(name, 0.0, deadline=1.0)
    assert popped(queue) == ["a", "b", "c"]


def test_count_before_counts_ready_items():
    queue: FairQueue[str] = FairQueue()
    for deadline in (3.0, 1.0, 2.0):
        queue.push("", 0.0, deadline=deadline)
    for _ in range(4):
        queue.push("", 0.0, flow="stream")  # one is ready, due after DEFAULT_DEADLINE_S
    assert [queue.count_before(due) for due in (0.5, 1.0, 2.5, DEFAULT_DEADLINE_S)] == [0, 1, 2, 4]
    assert len(queue) == 7
    assert queue.peek_at(1).due == 2.0
    assert queue.peek_at(4) is None


def test_items_put_back_go_before_later_arrivals():
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 0.0, deadline=1.0)
    queue.push("b", 0.0, deadline=1.0)
    taken = [queue.pop(0.0), queue.pop(0.0)]
    queue.push("c", 0.0, deadline=1.0)
    for entry in reversed(taken):
        queue.put_back(entry)
    assert popped(queue) == ["a", "b", "c"]


def test_items_put_back_count_as_without_a_flow_again():
    queue: FairQueue[str] = FairQueue()
    for bulk in (False, True):
        queue.push("", 0.0, bulk=bulk)
    taken = [queue.pop(0.0), queue.pop(0.0)]
    assert (len(queue), queue.without_flow) == (0, 0)
    for entry in taken:
        queue.put_back(entry)
    assert (len(queue), queue.without_flow) == (2, 2)


def test_removed_items_leave_from_any_position():
    draw = random.Random(0)
    queue: FairQueue[str] = FairQueue()
    entries = [
        queue.push(str(number), 0.0, deadline=draw.random(), flow=draw.choice((None, "a", "b")))
        for number in range(200)
    ]
    draw.shuffle(entries)
    for entry in entries[:150]:
        queue.remove(entry, 0.0)
    assert len(queue) == 50
    assert sorted(popped(queue)) == sorted(entry.item for entry in entries[150:])


def test_flow_is_released_with_its_last_item():
    class Flow:
        pass

    queue: FairQueue[str] = FairQueue()
    for leave in ("pop", "remove"):
        flow = Flow()
        released = weakref.ref(flow)
        first, second = queue.push("a", 0.0, flow=flow), queue.push("b", 0.0, flow=flow)
        if leave == "pop":
            assert popped(queue) == ["a", "b"]
        else:
            queue.remove(second, 0.0)
            queue.remove(first, 0.0)
        del flow, first, second
        gc.collect()
        assert released() is None


def test_bulk_waits_behind_interactive_whatever_its_deadline():
    queue: FairQueue[str] = FairQueue()
    queue.push("bulk", 0.0, deadline=0.1, bulk=True)
    queue.push("late", 5.0)
    queue.push("urgent", 5.0, deadline=6.0)
    assert queue.peek().item == "urgent"
    assert popped(queue) == ["urgent", "late", "bulk"]


def test_bulk_is_not_starved_while_something_interactive_waits():
    queue: FairQueue[str] = FairQueue()
    for _ in range(3):
        queue.push("bulk", 0.0, bulk=True)
    order = []
    for now in range(3 * (BULK_EVERY + 1)):
        while len([entry for entry in queue if not entry.bulk]) < 2:
            queue.push("interactive", float(now))
        assert queue.peek() is not None
        order.append(queue.pop(float(now)).item)
    assert order == 3 * [*BULK_EVERY * ["interactive"], "bulk"]


def test_bulk_flows_take_turns():
    queue: FairQueue[str] = FairQueue()
    for _ in range(3):
        queue.push("a", 0.0, flow="a", bulk=True)
    queue.push("b", 1.0, flow="b", bulk=True)
    assert popped(queue, now=2.0) == ["a", "b", "a", "a"]


def test_bulk_items_can_be_put_back_and_removed():
    queue: FairQueue[str] = FairQueue()
    entries = [queue.push(str(number), 0.0, bulk=True) for number in range(4)]
    first = queue.pop(0.0)
    assert first is entries[0]
    assert first.taken
    queue.put_back(first)
    assert not first.taken
    queue.remove(entries[2], 0.0)
    assert len(queue) == len(list(queue)) == 3
    assert popped(queue) == ["0", "1", "3"]


def test_count_before_counts_the_share_of_bulk():
    queue: FairQueue[str] = FairQueue()
    for _ in range(2 * BULK_EVERY):
        queue.push("", 0.0, deadline=1.0)
    assert queue.count_before(2.0) == 2 * BULK_EVERY
    for _ in range(10):
        queue.push("", 0.0, bulk=True)
    assert queue.count_before(0.5) == 0
    assert queue.count_before(2.0) == 2 * BULK_EVERY + 2
    assert queue.count_before(0.5 + DEFAULT_DEADLINE_S, bulk=True) == 2 * BULK_EVERY + 10
