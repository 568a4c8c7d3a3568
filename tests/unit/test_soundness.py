from __future__ import annotations

import contextlib

import virtual_time
from virtual_device import FakeEngine, VirtualThreads, image

from resnet50_server.batch import BatchPolicy
from resnet50_server.batcher import Scheduler
from resnet50_server.errors import EngineFailed
from resnet50_server.soundness import LEAST, WINDOW_S, Soundness


def test_variant_is_broken_once_most_of_its_answers_are_not_numbers():
    sound = Soundness()
    sound.observe(LEAST, LEAST - 1, now=0.0)
    assert sound.problem(0.0) is None  # a handful
    sound.observe(1, 1, now=1.0)
    assert sound.problem(1.0) == f"{LEAST} of its last {LEAST + 1} answers are not numbers"


def test_images_that_overflow_among_many_that_do_not_are_their_callers_affair():
    sound = Soundness()
    for second in range(100):
        sound.observe(32, 15, now=float(second))
        assert sound.problem(float(second)) is None


def test_variant_recovers_when_its_answers_are_numbers_again():
    sound = Soundness()
    sound.observe(20, 20, now=0.0)
    assert sound.problem(5.0)
    sound.observe(19, 0, now=6.0)
    assert sound.problem(6.0)
    sound.observe(1, 0, now=7.0)
    assert sound.problem(7.0) is None


def test_variant_that_nobody_asks_any_more_has_another_chance():
    sound = Soundness()
    sound.observe(20, 20, now=0.0)
    assert sound.problem(WINDOW_S - 1.0)
    assert sound.problem(WINDOW_S) is None
    sound.observe(LEAST, LEAST, now=WINDOW_S + 1.0)
    assert sound.problem(WINDOW_S + 1.0)


def test_each_variant_is_judged_by_its_own_answers_and_said_to_be_broken_once(caplog):
    async def ask() -> None:
        scheduler = Scheduler(BatchPolicy(), VirtualThreads())
        engines = {"good": FakeEngine(alpha=0.1), "bad": FakeEngine(alpha=0.1)}
        engines["bad"].without_answer = 1
        queues = {name: scheduler.add(name, engine) for name, engine in engines.items()}
        for _ in range(3 * LEAST):
            for queue in queues.values():
                answer = scheduler.submit(queue, image(1), top_k=1, with_embedding=False)
                with contextlib.suppress(EngineFailed):
                    await answer
        assert queues["good"].broken is None
        assert queues["bad"].broken.startswith(f"variant bad: {3 * LEAST} of its last")

    virtual_time.run(ask())
    (record,) = [one for one in caplog.records if one.name.startswith("resnet50_server")]
    assert "variant bad" in record.getMessage()
    assert "--precision fp32" in record.getMessage()
