"""A listener that fails is counted and logged; the others and requests are unaffected."""

from __future__ import annotations

import logging

from resnet50_server.context import RequestContext
from resnet50_server.events import BatchEvent, CompositeEvents, ImageEvent, ServerEvents

CONTEXT = RequestContext("Classify", "id", ())
IMAGE = ImageEvent(CONTEXT, "v", 0.0, 0.0, 0.0, 0.0, 0.0, 1)
BATCH = BatchEvent("v", 1, 0.0, 0.0, [CONTEXT], failed=False)
EVENTS = {
    "call_started": (CONTEXT,),
    "call_ended": (CONTEXT, "OK", None),
    "cancelled": (CONTEXT, "receive"),
    "image_answered": (IMAGE,),
    "image_refused": (CONTEXT, RuntimeError("a frame's")),
    "frame_dropped": (CONTEXT,),
    "batch_ended": (BATCH,),
}


class Recorder(ServerEvents):
    def __init__(self) -> None:
        self.seen: list[tuple] = []


class Broken(ServerEvents):
    pass


def _record(event: str):
    return lambda self, *values: self.seen.append((event, *values))


def _fail(event: str):
    def fail(self, *values):
        raise KeyError(event)

    return fail


for _event in EVENTS:
    setattr(Recorder, _event, _record(_event))
    setattr(Broken, _event, _fail(_event))


def test_every_event_is_in_the_list_of_this_test():
    assert set(EVENTS) == {name for name in vars(ServerEvents) if not name.startswith("_")}


def test_failing_listener_is_counted_and_hides_no_event(caplog):
    first, last = Recorder(), Recorder()
    events = CompositeEvents([first, Broken()])
    events.add(last)
    for event, values in EVENTS.items():
        getattr(events, event)(*values)
    assert first.seen == last.seen == [(event, *values) for event, values in EVENTS.items()]
    assert events.errors == {"Recorder": 0, "Broken": len(EVENTS)}
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage().split(";")[0] for record in errors] == [
        f"Broken failed to record {event}" for event in EVENTS
    ]
    assert all(record.exc_info[0] is KeyError for record in errors)
