from __future__ import annotations

import contextlib

import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.batching.variant_health import (
    BUCKET_S,
    MAX_RETEST_S,
    MIN_NON_FINITE,
    RETEST_S,
    STABLE_S,
    WINDOW_S,
    NonFiniteMonitor,
    VariantHealth,
)
from resnet50_server.errors import EngineFailed, VariantUnhealthy
from tests.support import virtual_time
from tests.support.virtual_device import FakeEngine, VirtualThreads, context, image


class Health(VariantHealth):
    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[str | None] = []
        super().__init__("v", lambda: self.now)
        self.on_change(lambda: self.seen.append(self.problem))


def test_variant_is_unhealthy_once_most_outputs_are_nan():
    health = Health()
    health.record(MIN_NON_FINITE, MIN_NON_FINITE - 1)
    assert health.problem is None  # a handful
    health.now = 1.0
    health.record(1, 1)
    assert (
        health.problem
        == f"{MIN_NON_FINITE} of its last {MIN_NON_FINITE + 1} results have NaN or Inf"
    )
    assert health.seen == [health.problem]


@pytest.mark.parametrize("non_finite", [15, 16])
def test_few_overflowing_images_leave_the_variant_healthy(non_finite):
    health = Health()
    for second in range(100):
        health.now = float(second)
        health.record(32, non_finite)
        assert health.problem is None


def test_results_older_than_a_minute_are_forgotten():
    health = Health()
    health.record(MIN_NON_FINITE - 1, MIN_NON_FINITE - 1)
    health.now = WINDOW_S
    health.record(MIN_NON_FINITE - 1, MIN_NON_FINITE - 1)
    assert health.problem is None
    health.now += WINDOW_S - 1.0
    health.record(1, 1)
    assert (
        health.problem == f"{MIN_NON_FINITE} of its last {MIN_NON_FINITE} results have NaN or Inf"
    )


def test_healthy_variant_remembers_no_more_than_a_minute_of_results():
    now = 0.0
    monitor = NonFiniteMonitor(lambda: now)
    for _ in range(1000):
        now += BUCKET_S
        assert monitor.record(32, 0) is None
    assert len(monitor) == WINDOW_S / BUCKET_S


def test_results_neither_change_nor_end_a_problem():
    health = Health()
    health.record(MIN_NON_FINITE, MIN_NON_FINITE)
    problem = health.problem
    health.record(1000, 0)
    health.record(2000, 2000)
    assert health.problem == problem
    assert health.seen == [problem]


def test_recovered_variant_is_judged_by_new_outputs():
    health = Health()
    health.record(MIN_NON_FINITE, MIN_NON_FINITE)
    health.recover()
    assert health.problem is None
    health.record(MIN_NON_FINITE - 1, MIN_NON_FINITE - 1)
    assert health.problem is None
    health.record(1, 1)
    assert [problem is None for problem in health.seen] == [False, True, False]


def test_self_tests_back_off_until_long_healthy():
    health = Health()
    waits = []
    for _ in range(7):
        health.fail("as the test wants it", "nothing")
        waits.append(health.retest_s)
        health.now += health.retest_s
        health.recover()
        health.now += 1.0
    assert waits == [RETEST_S * 2**number for number in range(5)] + [MAX_RETEST_S] * 2
    health.now += STABLE_S
    health.fail("as the test wants it", "nothing")
    assert health.retest_s == RETEST_S
    health.on_test_failed()
    assert health.retest_s == 2 * RETEST_S


def test_each_variant_is_judged_by_its_own_outputs(caplog):
    async def ask() -> None:
        scheduler = Scheduler(BatchPolicy(max_batch_size=1), VirtualThreads())
        engines = {"good": FakeEngine(alpha=0.1), "bad": FakeEngine(alpha=0.1)}
        engines["bad"].without_answer = 1
        queues = {name: scheduler.add(name, engine) for name, engine in engines.items()}
        for _ in range(MIN_NON_FINITE):
            for queue in queues.values():
                pending = scheduler.submit(
                    queue, image(1), top_k=1, with_embedding=False, context=context()
                )
                with contextlib.suppress(EngineFailed):
                    await pending
        for call in (
            lambda: scheduler.submit(
                queues["bad"], image(2), top_k=1, with_embedding=False, context=context()
            ),
            lambda: scheduler.accept(queues["bad"], context()).__enter__(),
        ):
            with pytest.raises(VariantUnhealthy, match="variant bad is out of service: "):
                call()
        assert queues["good"].health.problem is None
        answer = await scheduler.submit(
            queues["good"], image(3), top_k=1, with_embedding=False, context=context()
        )
        assert answer.indices.tolist() == [3]

    virtual_time.run(ask())
    (record,) = [one for one in caplog.records if one.name.startswith("resnet50_server")]
    assert "variant bad is out of service" in record.getMessage()
    assert "--precision fp32" in record.getMessage()


def test_queued_images_of_an_unhealthy_variant_are_refused():
    async def ask() -> None:
        scheduler = Scheduler(BatchPolicy(max_batch_size=MIN_NON_FINITE), VirtualThreads())
        engine = FakeEngine(alpha=1.0)
        engine.without_answer = 1
        queue = scheduler.add("v", engine)
        calls = [
            scheduler.submit(queue, image(1), top_k=1, with_embedding=False, context=context())
            for _ in range(2 * MIN_NON_FINITE)
        ]
        for call in calls[:MIN_NON_FINITE]:
            with pytest.raises(EngineFailed):
                await call
        assert all(call.done() for call in calls)
        assert {type(call.exception()) for call in calls[MIN_NON_FINITE:]} == {VariantUnhealthy}
        assert len(engine.batches) == 1

    virtual_time.run(ask())
