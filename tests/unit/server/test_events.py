"""Observers that fail: counted, logged, and nobody else's affair."""

from __future__ import annotations

import logging

from resnet50_server.context import Call
from resnet50_server.events import Batch, Image, Observer, Observers

CALL = Call("Classify", "id", ())
IMAGE = Image(CALL, "v", 0.0, 0.0, 0.0, 0.0, 0.0, 1)
BATCH = Batch("v", 1, 0.0, 0.0, [CALL], failed=False)
EVENTS = {
    "call_started": (CALL,),
    "call_ended": (CALL, "OK", None),
    "gave_up": (CALL, "receive"),
    "image_answered": (IMAGE,),
    "frame_refused": (CALL, RuntimeError("a frame's")),
    "frame_dropped": (CALL,),
    "batch_ended": (BATCH,),
}


class Recorder(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def __getattribute__(self, name: str):
        if name in EVENTS:
            return lambda *values: self.seen.append((name, *values))
        return super().__getattribute__(name)


class Broken(Observer):
    def __getattribute__(self, name: str):
        if name in EVENTS:
            raise KeyError(name)
        return super().__getattribute__(name)


def test_every_event_is_in_the_list_of_this_test():
    assert set(EVENTS) == {name for name in vars(Observer) if not name.startswith("_")}


def test_observer_that_fails_is_counted_and_hides_no_event_from_the_others(caplog):
    first, last = Recorder(), Recorder()
    observers = Observers([first, Broken()])
    observers.add(last)
    for event, values in EVENTS.items():
        getattr(observers, event)(*values)
    assert first.seen == last.seen == [(event, *values) for event, values in EVENTS.items()]
    assert observers.errors == {"Recorder": 0, "Broken": len(EVENTS)}
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage().split(":")[0] for record in errors] == [
        f"the observer Broken failed in {event}" for event in EVENTS
    ]
    assert all(record.exc_info[0] is KeyError for record in errors)
