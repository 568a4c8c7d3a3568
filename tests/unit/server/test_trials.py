"""The checks of the trials (make soak, make kills, make swaps) find wrong results."""

from __future__ import annotations

import dataclasses
import math
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms._presets import ImageClassification

from benchmarks import expected
from benchmarks.expected import Answer, Checkpoint, Expected, Picture, Wrong
from benchmarks.frames import BROKEN, Answers, Frames
from benchmarks.ledger import CANCELLED, LOST, REFUSED, RIGHT, WRONG, Ledger
from benchmarks.load import Load, Question
from benchmarks.resources import Sample, Slope, tenths
from benchmarks.soak import Outcome
from benchmarks.timeline import Timeline
from resnet50_client import (
    Category,
    Classification,
    Embedding,
    FrameAnswer,
    InvalidImageError,
    UnavailableError,
    VariantNotFoundError,
    VariantRef,
)
from resnet50_client.types import Timing

TIMING = Timing(1.0, 1.0, 1.0, 3.0, 1)
CAT, DOG = (
    Picture(name, b"", Image.new("RGB", (8, 8), colour))
    for name, colour in (("cat", "red"), ("dog", "blue"))
)
A, B = (
    Checkpoint(
        label,
        Path(label),
        digest * 64,
        tuple(f"{label} {index}" for index in range(4)),
        {"label": label},
        ImageClassification(crop_size=8, resize_size=size),
    )
    for label, digest, size in (("A", "a", 8), ("B", "b", 9))
)
CLASSIFY = Question("classify", {"top_k": 3, "min_probability": None, "include_embedding": True})


def fake_answer(model, transform, picture) -> Answer:
    """Return numbers that depend on everything, instead of running a network."""
    draw = np.random.default_rng([ord(c) for c in f"{model} {transform} {picture.name}"])
    probabilities = draw.dirichlet([0.5] * 4).astype(np.float32)
    return Answer(probabilities, draw.standard_normal(16).astype(np.float32))


@pytest.fixture
def right(monkeypatch) -> Expected:
    monkeypatch.setattr(expected, "torchvision_model", lambda state: state["label"])
    monkeypatch.setattr(expected, "answer_of", fake_answer)
    return Expected([A, B], [CAT, DOG])


def reply(checkpoint=A, picture=CAT, top_k=3, name="mine", embedding=True) -> Classification:
    answer = fake_answer(checkpoint.label, checkpoint.transform, picture)
    order = np.argsort(-answer.probabilities)[:top_k]
    categories = tuple(
        Category(int(i), checkpoint.categories[i], float(answer.probabilities[i])) for i in order
    )
    variant = VariantRef(name, checkpoint.digest)
    vector = vector_of(checkpoint, picture, name) if embedding else None
    return Classification(categories, vector, variant, TIMING)


def vector_of(checkpoint=A, picture=CAT, name="mine") -> Embedding:
    answer = fake_answer(checkpoint.label, checkpoint.transform, picture)
    variant = VariantRef(name, checkpoint.digest)
    return Embedding(answer.vector, f"{name}@{checkpoint.digest[:12]}", False, variant, TIMING)


def with_category(result: Classification, place: int, **changes) -> Classification:
    categories = list(result.categories)
    categories[place] = dataclasses.replace(categories[place], **changes)
    return dataclasses.replace(result, categories=tuple(categories))


def test_right_answers_pass(right):
    for checkpoint in (A, B):
        for picture in (CAT, DOG):
            right.check_classification(picture, reply(checkpoint, picture), 3, None, True)
            right.check_embedding(picture, vector_of(checkpoint, picture), False, "float32")
    least = reply().categories[1].probability - 0.01
    shorter = dataclasses.replace(reply(), categories=reply().categories[:2])
    right.check_classification(CAT, shorter, 3, least, True)


WRONG_REPLIES = {
    "another picture's": reply(A, DOG),
    "other weights' under this digest": dataclasses.replace(
        reply(B), variant=reply(A).variant, embedding=None
    ),
    "labels of other weights": with_category(reply(), 0, label="B 1"),
    "a probability that is off": with_category(
        reply(), 0, probability=reply().categories[0].probability + 0.01
    ),
    "not a number": with_category(reply(), 0, probability=math.nan),
    "a category that is none": with_category(reply(), 0, index=4),
    "out of order": dataclasses.replace(reply(), categories=reply().categories[::-1]),
    "twice the same": dataclasses.replace(
        reply(), categories=(reply().categories[0], *reply().categories[:2])
    ),
    "the first is missing": dataclasses.replace(
        reply(top_k=4), categories=reply(top_k=4).categories[1:]
    ),
    "too few": reply(top_k=2),
    "too many": reply(top_k=4),
    "no embedding": reply(embedding=False),
    "the embedding of another picture": dataclasses.replace(reply(), embedding=vector_of(A, DOG)),
    "the embedding of other weights": dataclasses.replace(reply(), embedding=vector_of(B)),
    "unknown weights": dataclasses.replace(reply(), variant=VariantRef("mine", "c" * 64)),
}


@pytest.mark.parametrize("result", WRONG_REPLIES.values(), ids=WRONG_REPLIES.keys())
def test_wrong_classification_is_found(right, result):
    with pytest.raises(Wrong):
        right.check_classification(CAT, result, 3, None, True)


WRONG_VECTORS = {
    "another picture's": vector_of(A, DOG),
    "other weights'": dataclasses.replace(vector_of(B), variant=vector_of(A).variant),
    "another space": dataclasses.replace(vector_of(), space=vector_of(B).space),
    "of length 1": dataclasses.replace(vector_of(), l2_normalized=True),
    "half as exact": dataclasses.replace(vector_of(), vector=vector_of().vector.astype(np.float16)),
    "too short": dataclasses.replace(vector_of(), vector=vector_of().vector[:8]),
    "not numbers": dataclasses.replace(vector_of(), vector=vector_of().vector * np.nan),
}


@pytest.mark.parametrize("result", WRONG_VECTORS.values(), ids=WRONG_VECTORS.keys())
def test_wrong_vector_is_found(right, result):
    with pytest.raises(Wrong):
        right.check_embedding(CAT, result, False, "float32")


def test_answers_that_cannot_be_told_apart_are_refused(monkeypatch, right):
    monkeypatch.setattr(expected, "answer_of", lambda model, *_: fake_answer(model, "", CAT))
    with pytest.raises(ValueError, match="too much alike"):
        Expected([A, B], [CAT, DOG])


# Which weights may answer


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.timeline.time.monotonic", lambda: now[0])
    return now


def test_old_weights_may_answer_until_the_change_is_confirmed(clock):
    timeline = Timeline()
    timeline.starts("mine", "old")
    clock[0] = 10.0
    with timeline.changing("mine", "new"):
        clock[0] = 12.0
    assert timeline.values("mine", 8.0, 9.0) == {"old"}
    assert timeline.values("mine", 9.0, 11.0) == {"old", "new"}
    assert timeline.values("mine", 11.0, 20.0) == {"old", "new"}
    assert timeline.values("mine", 12.5, 20.0) == {"new"}
    assert timeline.now("mine") == "new"


def test_change_that_fails_leaves_what_there_was(clock):
    timeline = Timeline()
    timeline.starts("mine", "old")
    with pytest.raises(RuntimeError), timeline.changing("mine", "new"):
        raise RuntimeError
    clock[0] = 1.0
    assert (timeline.now("mine"), timeline.values("mine", 0.5, 1.0)) == ("old", {"old"})


def test_default_stands_for_the_weights_of_its_variant(clock):
    timeline = Timeline()
    for name, value in (("", "one"), ("one", "first"), ("two", "second")):
        timeline.starts(name, value)
    clock[0] = 1.0
    with timeline.changing("", "two"):
        clock[0] = 2.0
    assert timeline.digests("", 0.0, 0.5) == {"one": {"first"}}
    assert timeline.digests("", 1.5, 3.0) == {"one": {"first"}, "two": {"second"}}
    assert timeline.digests("", 3.0, 3.0) == {"two": {"second"}}
    assert timeline.digests("unknown", 3.0, 3.0) == {"unknown": {None}}


# Outcomes of calls


@pytest.fixture
def load(right) -> Load:
    timeline = Timeline()
    for name, value in (("mine", A.digest), ("yours", B.digest), ("", "mine"), ("gone", None)):
        timeline.starts(name, value)
    return Load("nowhere", right, [CAT, DOG], [], timeline, Ledger(), ("mine",))


SENT = [CAT, BROKEN, DOG, CAT]


def answers(load: Load, variant: str = "mine") -> Answers:
    """Return what takes the answers to a stream, over which `SENT` has been sent."""
    frames = Frames(load, "stream", random.Random(0), len(SENT))
    for picture in SENT:
        frames.given.append((picture, time.monotonic()))
        load.ledger.began("stream")
    return Answers(load, "stream", CLASSIFY, variant, frames)


def answer_to(number: int, picture: Picture, checkpoint=A, name="mine") -> FrameAnswer:
    if picture is BROKEN:
        return FrameAnswer(number, error=InvalidImageError("", code="INVALID_ARGUMENT"))
    return FrameAnswer(number, reply(checkpoint, picture, name=name))


def test_stream_that_is_answered_as_it_has_to_be_is_counted(load):
    frames = Frames(load, "stream", random.Random(0), 20, broken=0.3)
    list(frames)
    taken = Answers(load, "stream", CLASSIFY, "mine", frames)
    pictures = [picture for picture, _ in frames.given]
    for number, picture in enumerate(pictures):
        taken.take(answer_to(number, picture), ordered=True)
    taken.end(None)
    load.ledger.close()
    assert load.ledger.faults == []
    broken = sum(one is BROKEN for one in pictures)
    assert (load.ledger.count(RIGHT), load.ledger.count(REFUSED)) == (20 - broken, broken)
    assert load.ledger.weights == {"A": 20 - broken}
    assert 0 < broken < 20


def frame_answers(load: Load, case: str) -> None:
    taken = answers(load)
    replies = [answer_to(number, picture) for number, picture in enumerate(SENT)]
    end: Exception | None = None
    if case == "one is missing":
        del replies[3]
    elif case == "one comes twice":
        replies[3] = replies[2]
    elif case == "out of order":
        replies.reverse()
    elif case == "two change places":
        replies[0], replies[2] = (
            FrameAnswer(0, replies[2].result),
            FrameAnswer(2, replies[0].result),
        )
    elif case == "one that was never sent":
        replies.append(FrameAnswer(4, reply()))
    elif case == "stale weights":
        with load.timeline.changing("mine", B.digest):
            pass
        taken = answers(load)
    elif case == "another variant":
        replies = [answer_to(n, one, B, "yours") for n, one in enumerate(SENT)]
    elif case == "one fails":
        replies[2] = FrameAnswer(2, error=UnavailableError("", code="UNAVAILABLE"))
    elif case == "a broken one is answered":
        replies[1] = FrameAnswer(1, reply())
    elif case == "the stream fails":
        replies, end = replies[:2], UnavailableError("", code="UNAVAILABLE")
    elif case == "the stream fails at its end":
        end = UnavailableError("", code="UNAVAILABLE")
    elif case == "ordered, and one is dropped":
        replies[1] = FrameAnswer(1, replaced_by=2)
    for one in replies:
        taken.take(one, ordered=True)
    taken.end(end)
    load.ledger.close()


@pytest.mark.parametrize(
    "case",
    [
        *("one is missing", "one comes twice", "out of order", "two change places"),
        *("one that was never sent", "stale weights", "another variant", "one fails"),
        *("a broken one is answered", "the stream fails", "the stream fails at its end"),
        "ordered, and one is dropped",
    ],
)
def test_stream_that_is_not_answered_so_is_found(load, case):
    frame_answers(load, case)
    assert load.ledger.faults


def test_frames_of_a_stream_that_was_left_are_given_up(load):
    taken = answers(load)
    taken.take(answer_to(0, CAT), ordered=True)
    taken.leave()
    load.ledger.close()
    assert load.ledger.faults == []
    assert load.ledger.count(CANCELLED) == 3


def test_frame_that_is_asked_for_after_the_end_is_not_given(load):
    frames = Frames(load, "stream", random.Random(0), 10)
    given = iter(frames)
    next(given)
    Answers(load, "stream", CLASSIFY, "mine", frames).leave()
    assert next(given, None) is None
    load.ledger.close()
    assert load.ledger.faults == []


def test_default_does_not_change_within_a_stream(load):
    taken = answers(load, variant="")
    with load.timeline.changing("", "yours"):
        pass
    taken.take(answer_to(0, CAT, A, "mine"), ordered=True)
    taken.take(answer_to(1, BROKEN), ordered=True)
    assert load.ledger.faults == []
    taken.take(answer_to(2, DOG, B, "yours"), ordered=True)
    assert any("answers of mine and yours" in fault.text for fault in load.ledger.faults)


def test_refusal_is_right_only_where_nothing_is_served(load):
    gone = VariantNotFoundError("", code="NOT_FOUND")
    load.ledger.began("call")
    load.refuse("call", gone, load.timeline.digests("gone", 0.0, 1.0), 1, "")
    assert load.ledger.refusals == {"NOT_FOUND": 1}
    for error, variant in ((gone, "mine"), (UnavailableError("", code="UNAVAILABLE"), "gone")):
        load.ledger.began("call")
        load.refuse("call", error, load.timeline.digests(variant, 0.0, 1.0), 1, "")
    assert load.ledger.count(LOST) == 2


def test_call_that_has_not_ended_is_found():
    ledger = Ledger()
    ledger.began("call")
    ledger.began("call")
    ledger.right("call", "A", 0.1)
    ledger.close()
    assert "2 begun, 1 ended" in str(ledger.faults[0])
    assert ledger.count(WRONG) == 0


# State of the server


def samples(seconds: float, mib) -> list[Sample]:
    return [Sample(at, mib(at), 20, 30) for at in np.arange(0.0, seconds, 2.0)]


def test_slope_is_that_of_the_line():
    slope = Slope.of(samples(1800.0, lambda at: 500.0 + at / 3600.0 * 36.0), 60.0)
    assert (slope.per_hour, slope.scatter) == (pytest.approx(36.0), pytest.approx(0.0, abs=1e-6))
    assert (slope.floors, slope.error) == (30, pytest.approx(0.0, abs=1e-6))


def test_slope_passes_over_peaks():
    def swapped_every_20_s(at: float) -> float:
        return 500.0 + at / 3600.0 * 36.0 + (200.0 if at % 20.0 < 6.0 else 0.0)

    assert Slope.of(samples(1800.0, swapped_every_20_s), 60.0).per_hour == pytest.approx(36, 0.05)


def test_interval_of_the_slope_holds_the_true_one():
    noise, covered = np.random.default_rng(0), 0
    for _ in range(100):
        slope = Slope.of(samples(1800.0, lambda at: 500.0 + noise.normal(0.0, 10.0)), 60.0)
        covered += abs(slope.per_hour) < slope.error
    assert covered > 85


def test_correlated_samples_widen_the_interval():
    noise, levels = np.random.default_rng(0), [500.0]
    steps = noise.normal(0.0, 10.0, 900)
    for step in steps:
        levels.append(500.0 + 0.99 * (levels[-1] - 500.0) + step)
    drifting = Slope.of(samples(1800.0, lambda at: levels[int(at / 2)]), 20.0)
    shuffled = noise.permutation(levels)
    mixed = Slope.of(samples(1800.0, lambda at: float(shuffled[int(at / 2)])), 20.0)
    assert drifting.error / drifting.scatter > 2 * mixed.error / mixed.scatter


@pytest.mark.parametrize(
    ("what", "more"),
    [("mib", 60.0), ("threads", 3), ("files", 9), ("places", 1.0), ("", 0)],
)
def test_server_that_holds_more_at_its_end_breaks_its_promise(what, more):
    taken = samples(600.0, lambda at: 1000.0)
    late, places = taken[250:], {}
    if what == "places":
        places = {"resnet50_open_streams": more}
    elif what:
        late = [dataclasses.replace(one, **{what: getattr(one, what) + more}) for one in late]
    outcome = Outcome(Ledger(), 600.0, {}, places, [*taken[:250], *late])
    outcome.judge()
    assert bool(outcome.ledger.faults) == bool(what)
    assert tenths(taken, lambda one: one.mib) == (1000.0, 1000.0)


@pytest.mark.parametrize(
    ("seconds", "growth", "broken"),
    [(3600.0, 25.0, True), (3600.0, 15.0, False), (600.0, 50.0, False)],
)
def test_memory_that_grows_slowly_is_found_by_its_slope(seconds, growth, broken):
    noise = np.random.default_rng(0)
    taken = samples(seconds, lambda at: 1500.0 + growth * at / 3600.0 + noise.normal(0.0, 1.0))
    outcome = Outcome(Ledger(), seconds, samples=taken)
    outcome.judge()
    assert bool(outcome.ledger.faults) == broken


def test_ledger_counts_what_many_threads_do():
    ledger = Ledger()

    def work() -> None:
        for _ in range(2000):
            ledger.began("call")
            ledger.right("call", "A", 0.0)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    ledger.close()
    assert (ledger.begun, ledger.count(RIGHT), ledger.faults) == (16000, 16000, [])
