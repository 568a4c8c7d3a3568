from __future__ import annotations

from prometheus_client import generate_latest

from resnet50_server.context import RequestContext
from resnet50_server.errors import (
    EngineFailed,
    InvalidImage,
    InvalidRequest,
    PermissionDenied,
    QueueFull,
    ServingError,
    ShuttingDown,
    Unauthenticated,
    Unloading,
)
from resnet50_server.events import BatchEvent, ImageEvent
from resnet50_server.telemetry.metrics import Metrics
from tests.support.scrape import Scrape


def metrics() -> Metrics:
    counted = Metrics({"Classify": False, "ClassifyStream": True}, ["Classify"], "1.2.3")
    counted.init_series(["v"])
    return counted


def shown(counted: Metrics) -> Scrape:
    return Scrape(generate_latest(counted.registry).decode())


def call(method: str, variant: str = "") -> RequestContext:
    return RequestContext(method, "id", (), variant=variant)


def test_method_that_is_not_known_is_counted_as_other():
    counted = metrics()
    for number in range(3):
        counted.call_ended(call(f"Made up {number}"), "UNIMPLEMENTED", ServingError("no"))
    found = shown(counted).of("resnet50_requests_total", "method", "code")
    assert found == {("other", "UNIMPLEMENTED"): 3}


def test_refusal_is_counted_under_its_limit():
    counted = metrics()
    counted.call_ended(
        call("Classify", "v"), "RESOURCE_EXHAUSTED", QueueFull("max_queue_size", "full", 0.1)
    )
    counted.call_ended(call("ClassifyStream", "v"), "UNAVAILABLE", ShuttingDown("draining"))
    for _ in range(2):
        counted.call_ended(call("ClassifyStream", "v"), "UNAVAILABLE", Unloading("v goes"))
    found = shown(counted)
    assert found.of("resnet50_shed_total", "limit") == {
        "max_queue_size": 1,
        "draining": 1,
        "unloading": 2,
    }
    # A stream is no image.
    assert found.of("resnet50_images_total", "variant", "outcome") == {("v", "refused"): 1}


def test_image_that_cannot_be_read_is_counted_under_its_fault():
    counted = metrics()
    for _ in range(2):
        error = InvalidImage("image", "is short", kind="truncated")
        counted.image_refused(call("ClassifyStream", "v"), error)
    counted.image_refused(call("ClassifyStream", "v"), InvalidRequest("frame", "is wrong"))
    assert shown(counted).of("resnet50_decode_failures_total", "reason") == {"truncated": 2}


def test_refused_frame_is_counted_under_its_status_code():
    counted = metrics()
    counted.init_series(["v"])
    found = shown(counted)
    assert found.one("resnet50_image_errors_total", variant="v", code="INTERNAL") == 0
    stream = call("ClassifyStream", "v")
    for error in (EngineFailed("it did"), RuntimeError("a fault"), InvalidImage("image", "is")):
        counted.image_refused(stream, error)
    assert shown(counted).of("resnet50_image_errors_total", "variant", "code") == {
        ("v", "INTERNAL"): 2,
        ("v", "INVALID_ARGUMENT"): 1,
    }


def test_caller_who_may_not_is_counted_under_the_reason():
    counted = metrics()
    counted.call_ended(
        call("Classify"), "UNAUTHENTICATED", Unauthenticated("TOKEN_MISSING", "no token")
    )
    counted.call_ended(call("Classify"), "PERMISSION_DENIED", PermissionDenied("me", "admin"))
    counted.call_ended(call("Classify"), "INVALID_ARGUMENT", InvalidRequest("field", "is wrong"))
    assert shown(counted).of("resnet50_unauthenticated_total", "reason") == {
        "TOKEN_MISSING": 1,
        "SCOPE_MISSING": 1,
    }


def test_only_answers_that_are_no_streams_have_durations():
    counted = metrics()
    counted.call_ended(call("Classify", "v"), "OK", None)
    counted.call_ended(call("Classify", "v"), "CANCELLED", None)
    counted.call_ended(call("Classify", "v"), "INTERNAL", RuntimeError("a fault"))
    counted.call_ended(call("ClassifyStream", "v"), "OK", None)
    name = "resnet50_request_duration_seconds_count"
    assert shown(counted).of(name, "method", "variant") == {("Classify", "v"): 1}


def test_variant_has_zeros_before_anything_happens():
    counted = metrics()
    counted.init_series(["v"])
    found = shown(counted)
    for outcome in ("answered", "refused", "dropped"):
        assert found.one("resnet50_images_total", variant="v", outcome=outcome) == 0
    assert found.one("resnet50_batch_failures_total", variant="v") == 0
    assert found.one("resnet50_build_info", version="1.2.3") == 1


def test_unloaded_variant_has_no_series():
    counted = metrics()
    before = set(shown(counted))
    counted.init_series(["w"])
    for name in ("v", "w"):
        counted.call_ended(call("Classify", name), "OK", None)
        counted.image_refused(call("ClassifyStream", name), EngineFailed("it did"))
        counted.frame_dropped(call("ClassifyStream", name))
        counted.image_answered(ImageEvent(call("Classify", name), name, 0.0, 0.1, 0.1, 0.1, 0.3, 1))
        counted.batch_ended(BatchEvent(name, 1, 0.1, 0.0, [], failed=True, non_finite=1))
    counted.forget("w")
    counted.call_ended(call("ClassifyStream", "w"), "UNAVAILABLE", Unloading("w goes"))
    found = shown(counted)
    assert not [labels for _, labels in found if ("variant", "w") in labels]
    assert before <= set(found)
    assert found.of("resnet50_requests_total", "method", "variant") == {
        ("Classify", "v"): 1,
        ("ClassifyStream", ""): 1,
    }
    # One that comes back begins at 0.
    counted.init_series(["w"])
    assert shown(counted).one("resnet50_images_total", variant="w", outcome="answered") == 0
