"""The state behind streams, without a network: what is sent, sent again, answered and expired."""

from __future__ import annotations

import gc
import math
import re
import struct
import weakref

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from resnet50.v1 import image_pb2
from resnet50_client import (
    Classification,
    DeadlineExceededError,
    FrameAnswer,
    InvalidImageError,
    ServerError,
    UnavailableError,
    _codec,
)
from resnet50_client._frames import StreamLimits
from resnet50_client._pending_frames import ALONE_AFTER, PendingFrames, message_bytes
from resnet50_client._retries import MAX_SENDS
from resnet50_client._status import image_too_long
from tests.support.scripted_stream import answer, dropped

IMAGE = image_pb2.Image(encoded=b"image")
UNREADABLE = OSError("no such file")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pending_frames(
    count: int = 0, delivery: str = "ordered", clock: Clock | None = None, **limits: float
) -> PendingFrames[Classification]:
    """Return the state of a stream with so many frames, all of them sent."""
    kind = _codec.classify_stream(delivery, None, None, None, False, None, None, 32)
    pending = PendingFrames(kind, StreamLimits(**{"window": 32} | limits), clock or Clock())
    for _ in range(count):
        pending.add(IMAGE)
    send_all(pending)
    return pending


def send_all(pending: PendingFrames) -> list[int]:
    """Send what can be sent; return the ids."""
    sent = []
    while (request := pending.next_request()) is not None:
        sent.append(request.frame.frame_id)
    return sent


def ids(answers: list[FrameAnswer]) -> list[int]:
    return [one.frame_id for one in answers]


def test_frames_that_are_unanswered_are_sent_again_and_no_others():
    pending = pending_frames(5)
    for frame_id in (0, 1):
        assert pending.answer(answer(frame_id)).result.top.label == f"frame {frame_id}"
    assert pending.restart() == []
    assert send_all(pending) == [2, 3, 4]
    assert len(pending) == 3


def test_answer_to_a_frame_of_another_attempt_is_refused():
    pending = pending_frames(2)
    pending.restart()
    with pytest.raises(ServerError, match="frame 0"):
        pending.answer(answer(0))
    assert send_all(pending) == [0, 1]


def test_images_over_the_servers_limit_are_not_sent():
    pending = pending_frames()
    sizes = [10, 5000, 20, 6000]
    for size in sizes[:3]:
        pending.add(image_pb2.Image(encoded=bytes(size)))
    request = next(one for one in iter(pending.next_request, None) if one.frame.frame_id == 1)
    told = image_too_long(request.ByteSize(), request.ByteSize() - 1)
    assert pending.refuse_too_long(told)
    assert not pending.refuse_too_long(told)  # not for ever
    assert not pending.refuse_too_long(UnavailableError("gone"))
    pending.restart()
    pending.add(image_pb2.Image(encoded=bytes(sizes[3])))
    lengths = [len(one.frame.image.encoded) for one in iter(pending.next_request, None)]
    assert lengths == [10, 0, 20, 0]
    answers = [pending.answer(answer(frame_id)) for frame_id in range(4)]
    assert [type(one.error) for one in answers] == [type(None), InvalidImageError] * 2
    length, limit = request.ByteSize(), told.max_message_bytes
    says = rf"{length} bytes, .*\(max_message_bytes\) is {limit}; .*not sent in chunks.* as a JPEG"
    assert re.search(says, answers[1].error.message)


@pytest.mark.parametrize("size", [1, 100, 127, 128, 16_383, 16_384, 2**21])
def test_length_of_a_frames_request_is_what_protobuf_says(size):
    pending = pending_frames()
    pending.add(image_pb2.Image(encoded=bytes(size)))
    request = pending.next_request()
    assert message_bytes(request.frame) == request.ByteSize()


def test_unreadable_image_keeps_its_turn_and_its_own_error():
    pending = pending_frames()
    pending.add(UNREADABLE)
    assert not pending.next_request().frame.image.HasField("encoded")
    assert pending.answer(answer(0)).error is UNREADABLE


@pytest.mark.parametrize("error", [SyntaxError, struct.error, UnicodeError, ValueError])
def test_pil_image_that_cannot_be_read_fails_alone(error):
    class Broken(Image.Image):
        def load(self):
            raise error("broken")

    pending = pending_frames()
    found = pending.read(Broken())
    assert isinstance(found, InvalidImageError)
    assert f"({error.__name__}: broken)" in str(found)


def test_latest_sends_only_the_newest_again():
    pending = pending_frames(4, "latest")
    expired = pending.restart()
    assert [(one.frame_id, one.replaced_by) for one in expired] == [(0, 3), (1, 3), (2, 3)]
    assert send_all(pending) == [3]


def test_poison_frame_is_resent_alone_and_then_fails():
    """Frame 3 breaks each connection; those before it are innocent, and in flight with it."""
    pending, outcomes, sends = pending_frames(), {}, 0
    for _ in range(6):
        pending.add(IMAGE)
    while (sent := send_all(pending)) and sends <= MAX_SENDS:
        if 3 in sent:
            sends += 1
            outcomes |= {one.frame_id: one.error for one in pending.restart(broke=True)}
        else:
            outcomes |= {number: pending.answer(answer(number)).error for number in sent}
    assert sends == MAX_SENDS
    assert f"was sent {MAX_SENDS} times" in str(outcomes.pop(3))
    assert outcomes == dict.fromkeys((0, 1, 2, 4, 5))


def test_clean_stream_ends_count_against_no_frame():
    pending = pending_frames(3)
    for _ in range(10 * MAX_SENDS):
        assert pending.restart() == []
        assert send_all(pending) == [0, 1, 2]


def test_unsent_frames_are_not_blamed():
    pending = pending_frames(1)
    pending.add(IMAGE)
    for _ in range(MAX_SENDS):
        expired = pending.restart(broke=True)
        pending.next_request()  # frame 0 alone; 1 is never sent
    assert ids(expired) == [0]
    for _ in range(MAX_SENDS - 1):
        assert pending.restart(broke=True) == []
        assert send_all(pending) == [1]


def test_late_frame_is_given_up_and_its_late_answer_ignored():
    clock = Clock()
    pending = pending_frames(2, clock=clock, frame_timeout_s=5.0)
    clock.now += 4.0
    pending.add(IMAGE)
    assert (pending.expire(), pending.wait_s()) == ([], 1.0)
    clock.now += 1.0
    late = pending.expire()
    assert ids(late) == [0, 1]
    assert all(isinstance(one.error, DeadlineExceededError) for one in late)
    assert send_all(pending) == [2]
    assert [pending.answer(answer(frame_id)) for frame_id in (0, 1)] == [None, None]
    assert pending.answer(answer(2)).result is not None


def test_late_frames_that_the_server_still_has_take_room():
    clock = Clock()
    pending = pending_frames(2, clock=clock, frame_timeout_s=1.0, window=2)
    clock.now += 1.0
    pending.expire()
    assert (len(pending), pending.has_room) == (0, False)
    pending.restart()
    assert pending.has_room
    pending.add(IMAGE)
    pending.add(IMAGE)
    send_all(pending)
    clock.now += 1.0
    pending.expire()
    pending.answer(answer(2))
    assert pending.has_room


def test_idle_timeout_counts_from_the_last_frame():
    clock = Clock()
    pending = pending_frames(clock=clock, idle_timeout_s=10.0)
    clock.now += 1000.0  # a slow source is no idle server
    pending.add(IMAGE)
    assert (pending.silence(), pending.wait_s()) == (None, None)
    send_all(pending)
    assert pending.wait_s() == 10.0
    clock.now += 9.0
    pending.add(IMAGE)
    send_all(pending)  # a slow line takes it now
    clock.now += 9.0
    assert pending.silence() is None
    pending.answer(answer(0))
    assert pending.wait_s() == 10.0
    clock.now += 10.0
    assert pending.silence() == "no response for 10 s (idle_timeout_s) to 1 frame"
    pending.answer(answer(1))
    clock.now += 1000.0
    assert pending.silence() is None


def test_error_of_a_stream_says_how_many_frames_have_no_answer():
    for count, says in ((1, "gone; 1 frame had no answer"), (3, "gone; 3 frames had no answer")):
        assert str(pending_frames(count).unanswered(UnavailableError("gone"))) == says
    assert str(pending_frames().unanswered(UnavailableError("gone"))) == "gone"


def test_sources_are_released_with_their_answers():
    class Source:
        pass

    clock = Clock()
    pending = pending_frames(clock=clock, frame_timeout_s=1.0)
    sources = [Source() for _ in range(3)]
    alive = [weakref.ref(one) for one in sources]
    for one in sources:
        pending.add(IMAGE, one)
    send_all(pending)
    del sources, one
    answers = [pending.answer(answer(0))]
    clock.now += 1.0
    answers += pending.expire()
    assert [one.source for one in answers] == [one() for one in alive]
    del answers
    gc.collect()
    assert [one() for one in alive] == [None] * 3


def test_means_are_those_of_the_answered_frames():
    clock = Clock()
    pending = pending_frames(3, clock=clock, frame_timeout_s=5.0)
    for frame_id, seconds in ((0, 1.0), (1, 2.0)):
        clock.now += seconds
        reply = answer(frame_id)
        reply.timing.total_us = 500
        pending.answer(reply)
    clock.now += 2.0
    pending.expire()
    stats = pending.stats()
    assert (stats.answered, stats.failed) == (2, 1)
    assert stats.mean_latency_ms == pytest.approx(2000.0)  # after 1 s and 3 s
    assert stats.mean_server_ms == pytest.approx(0.5)


class Streams(RuleBasedStateMachine):
    """Any order of images, sends, answers right and wrong, breaks and restarts, and time.

    `answered` holds the outcome of each frame that has one, `in_flight` the frames that the server
    has, in the order in which it got them.
    """

    WINDOW = 5

    @initialize(
        delivery=st.sampled_from(["ordered", "latest"]),
        frame_timeout_s=st.sampled_from([math.inf, 10.0]),
    )
    def begin(self, delivery: str, frame_timeout_s: float) -> None:
        self.clock = Clock()
        self.ordered = delivery == "ordered"
        self.pending = pending_frames(
            0, delivery, self.clock, window=self.WINDOW, frame_timeout_s=frame_timeout_s
        )
        self.sources: list[object] = []
        self.added_at: list[float] = []
        self.sent: set[int] = set()
        self.restarts = 0
        self.answered: dict[int, FrameAnswer] = {}
        self.in_flight: list[int] = []
        self.breaks: dict[int, int] = {}

    def take(self, given: FrameAnswer) -> None:
        assert given.frame_id not in self.answered
        assert given.source is self.sources[given.frame_id]
        assert given.result is None or given.result.source is given.source
        assert given.latency_s == self.clock.now - self.added_at[given.frame_id]
        self.answered[given.frame_id] = given

    @precondition(lambda self: self.pending.has_room)
    @rule(readable=st.lists(st.booleans(), min_size=1, max_size=WINDOW), sent=st.booleans())
    def images(self, readable: list[bool], sent: bool) -> None:
        for one in readable:
            if self.pending.has_room:
                self.sources.append(object())
                self.added_at.append(self.clock.now)
                self.pending.add(IMAGE if one else UNREADABLE, self.sources[-1])
        if sent:
            self.send(self.WINDOW)

    @rule(count=st.integers(1, WINDOW))
    def send(self, count: int) -> None:
        for _ in range(count):
            request = self.pending.next_request()
            if request is None:
                return
            frame_id = request.frame.frame_id
            assert frame_id not in self.answered
            assert not self.in_flight or frame_id > self.in_flight[-1]
            if self.breaks.get(frame_id, 0) >= ALONE_AFTER:
                assert self.in_flight == []
            self.in_flight.append(frame_id)
            self.sent.add(frame_id)

    @precondition(lambda self: self.in_flight)
    @rule(choice=st.integers(0, WINDOW), drop=st.booleans())
    def answers(self, choice: int, drop: bool) -> None:
        at = 0 if self.ordered else choice % len(self.in_flight)
        frame_id = self.in_flight[at]
        newer = [one for one in self.in_flight if one > frame_id]
        if drop and newer and not self.ordered:
            given = self.pending.answer(dropped(frame_id, newer[-1]))
        else:
            given = self.pending.answer(answer(frame_id))
        del self.in_flight[at]
        assert (given is None) == (frame_id in self.answered)  # expired meanwhile
        if given is not None:
            assert given.frame_id == frame_id
            assert given.result is None or given.result.top.label == f"frame {frame_id}"
            self.take(given)

    @rule(offset=st.integers(-4, 4), drop=st.booleans())
    def answers_wrongly(self, offset: int, drop: bool) -> None:
        frame_id = max(0, (self.in_flight[0] if self.in_flight else self.added) + offset)
        due = self.in_flight[:1] if self.ordered else self.in_flight
        if frame_id not in due:
            reply = dropped(frame_id, frame_id + 1) if drop else answer(frame_id)
        else:
            reply = dropped(frame_id, frame_id if drop else self.added)
        with pytest.raises(ServerError):
            self.pending.answer(reply)

    @precondition(lambda self: self.in_flight)
    @rule(broke=st.booleans(), sent=st.booleans())
    def restart(self, broke: bool, sent: bool) -> None:
        for frame_id in self.in_flight if broke else ():
            self.breaks[frame_id] = self.breaks.get(frame_id, 0) + 1
        alone = len(self.in_flight) == 1
        self.restarts += 1
        self.in_flight = []
        for given in self.pending.restart(broke):
            if given.replaced_by is None:
                assert alone and self.breaks[given.frame_id] == MAX_SENDS
            self.take(given)
        if sent:
            self.send(self.WINDOW)

    @rule(seconds=st.sampled_from([1.0, 4.0, 10.0]))
    def time(self, seconds: float) -> None:
        self.clock.now += seconds
        for given in self.pending.expire():
            self.take(given)

    @property
    def added(self) -> int:
        return len(self.sources)

    @invariant()
    def counts_are_those_of_the_answers(self) -> None:
        if hasattr(self, "pending"):
            given = self.answered.values()
            stats = self.pending.stats()
            assert stats.read == self.added
            assert stats.sent == len(self.sent)
            assert stats.answered == sum(one.result is not None for one in given)
            assert stats.failed == sum(one.error is not None for one in given)
            assert stats.dropped == sum(one.dropped for one in given)
            assert stats.pending == len(self.pending)
            assert stats.resumes == self.restarts

    @invariant()
    def no_frame_is_lost_and_none_is_held_twice(self) -> None:
        if hasattr(self, "pending"):
            assert len(self.pending) + len(self.answered) == self.added
            late = sum(one in self.answered for one in self.in_flight)
            assert self.pending.has_room == (len(self.pending) + late < self.WINDOW)
            if self.ordered:
                assert list(self.answered) == list(range(len(self.answered)))
            assert all(count <= MAX_SENDS for count in self.breaks.values())

    def teardown(self) -> None:
        """A server that answers at last leaves nothing unanswered."""
        if not hasattr(self, "pending"):
            return
        self.restart(False, True)
        for _ in range(self.WINDOW):
            self.send(self.WINDOW)
            if self.in_flight:
                self.answers(0, False)
        assert sorted(self.answered) == list(range(self.added))
        assert [self.answered[one].source for one in range(self.added)] == self.sources


TestStreams = Streams.TestCase
TestStreams.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
