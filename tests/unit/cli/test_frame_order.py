"""Answers of `resnet50 stream --annotate` in the order of their frames."""

from __future__ import annotations

import queue
import threading

from resnet50_cli.stream.frame_order import FrameOrder
from resnet50_client import FrameAnswer


class Images:
    """A source that tells whether it was closed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.closed = False

    def frames(self):
        try:
            for number in range(self.count):
                yield str(number)
        finally:
            self.closed = True


def order_of(images: Images, limit: int, stop: threading.Event | None = None) -> FrameOrder:
    return FrameOrder(images.frames(), stop or threading.Event(), limit)


def ids(answers) -> list[int]:
    return [one.frame_id for one in answers]


def test_answers_come_in_the_order_of_their_frames():
    order = order_of(Images(4), 5)
    assert list(order.images()) == ["0", "1", "2", "3"]
    assert ids(order.in_order(FrameAnswer(1, replaced_by=2))) == []
    assert ids(order.in_order(FrameAnswer(2))) == []
    assert ids(order.in_order(FrameAnswer(0))) == [0, 1, 2]
    assert ids(order.in_order(FrameAnswer(3))) == [3]


def test_frames_before_the_oldest_unanswered_one_are_limited():
    read, drawn, ahead = 0, [], []

    def frames():
        nonlocal read
        while read < 200:
            read += 1
            ahead.append(read - len(drawn))
            yield str(read)

    order = FrameOrder(frames(), threading.Event(), 3)
    sent: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def send() -> None:
        for number, _ in enumerate(order.images()):
            sent.put(number)
        sent.put(None)

    sending = threading.Thread(target=send)
    sending.start()
    while (number := sent.get()) is not None:
        for one in order.in_order(FrameAnswer(number)):
            drawn.append(one.frame_id)
    sending.join()
    assert drawn == list(range(200))
    assert max(ahead) <= 3


def test_source_is_closed_when_the_order_ends():
    for end in ("close", "stop"):
        images, stop = Images(5), threading.Event()
        order = order_of(images, 5, stop)
        reading = order.images()
        assert next(reading) == "0"
        order.close() if end == "close" else stop.set()
        assert list(reading) == []
        assert images.closed
