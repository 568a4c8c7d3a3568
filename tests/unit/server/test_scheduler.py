from __future__ import annotations

import asyncio
import contextlib
import logging
import random

import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.deadlines import REMEASURE_AFTER_S
from resnet50_server.batching.retry import MAX_CONSECUTIVE_FAILURES
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.context import BULK_EVERY, CURRENT_REQUEST, RequestContext
from resnet50_server.errors import (
    DeadlineUnreachable,
    EngineFailed,
    QueueFull,
    ShuttingDown,
    Unloading,
)
from tests.support.virtual_device import FakeEngine, VirtualThreads, context, image
from tests.support.virtual_time import in_virtual_time, run


class Bench:
    def __init__(
        self,
        policy: BatchPolicy | None = None,
        workers: int = 1,
        prefetch: int = 0,
        **engine: float,
    ) -> None:
        self.device = VirtualThreads(workers)
        self.scheduler = Scheduler(
            policy or BatchPolicy(), self.device, self.on_broken, workers, prefetch
        )
        self.engine = FakeEngine(**engine)
        self.queue = self.scheduler.add("v", self.engine)
        self.broken: list[BaseException] = []

    def on_broken(self, error: BaseException) -> None:
        self.broken.append(error)

    def submit(
        self, number: int, *, queue=None, accepted=False, top_k=1, with_embedding=False, **request
    ):
        return self.scheduler.submit(
            self.queue if queue is None else queue,
            image(number),
            top_k=top_k,
            with_embedding=with_embedding,
            context=context(**request),
            accepted=accepted,
        )

    def accept(self, *, decode_s=0.0, **request):
        return self.scheduler.accept(self.queue, context(**request), decode_s)


@in_virtual_time
async def test_lone_request_starts_at_once():
    bench = Bench()
    result = await bench.submit(7)
    assert result.indices.tolist() == [7]
    assert (result.queue_s, result.batch_size) == (0.0, 1)
    assert result.compute_s == pytest.approx(1.0)


@in_virtual_time
async def test_arrivals_during_a_batch_share_the_next():
    bench = Bench()
    first = bench.submit(0)
    await asyncio.sleep(0.5)
    others = [bench.submit(number) for number in range(1, 6)]
    results = await asyncio.gather(first, *others)
    assert bench.engine.batches == [[0], [1, 2, 3, 4, 5]]
    assert [result.indices[0] for result in results] == [0, 1, 2, 3, 4, 5]
    assert results[3].queue_s == pytest.approx(0.5)


@in_virtual_time
async def test_accept_refuses_what_submit_would_and_nothing_else():
    bench = Bench()
    await bench.submit(0)
    first = bench.submit(1)
    await asyncio.sleep(0)
    with pytest.raises(DeadlineUnreachable) as refused, bench.accept(within=1.5):
        raise AssertionError
    assert not refused.value.accepted
    with pytest.raises(DeadlineUnreachable):
        bench.submit(2, within=1.5)
    with bench.accept(within=2.5), bench.accept():
        assert bench.queue.accepted == 2
    bench.submit(2, within=2.5)
    assert bench.queue.accepted == len(bench.queue.waiting) == 1
    await first


@in_virtual_time
async def test_images_in_decoding_count_for_later_deadlines():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    with bench.accept(within=2.5), bench.accept(within=2.5):
        # Behind both, the device would come to it after 2 s.
        with pytest.raises(DeadlineUnreachable):
            bench.submit(3, within=2.6)
        with bench.accept(within=3.5):
            pass
        # Before both, it would make the second one late.
        with pytest.raises(DeadlineUnreachable, match="behind it were accepted"):
            bench.submit(3, within=1.5)
    await bench.submit(3, within=2.6)


@in_virtual_time
async def test_accepted_image_is_not_refused_after_decoding():
    bench = Bench(BatchPolicy(max_batch_size=1, max_queue_size=1))
    await bench.submit(0)
    with bench.accept(within=2.5):
        with pytest.raises(QueueFull), bench.accept():
            raise AssertionError
        # Decoding takes longer than expected: by then the device has something else to do.
        running = bench.submit(1, stream="stream")
        await asyncio.sleep(0.1)
    decoded = bench.submit(2, within=2.4, accepted=True)
    with pytest.raises(QueueFull):
        bench.submit(3)
    await asyncio.gather(running, decoded)
    assert bench.engine.batches == [[0], [1], [2]]


@in_virtual_time
async def test_bulk_in_decoding_delays_no_interactive_request():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    with contextlib.ExitStack() as stack:
        for _ in range(BULK_EVERY - 1):
            stack.enter_context(bench.accept(bulk=True))
        await bench.submit(1, within=1.0)
        with pytest.raises(DeadlineUnreachable):
            bench.submit(2, within=2.0, bulk=True)


@in_virtual_time
async def test_image_in_decoding_fails_if_its_variant_is_unloaded():
    bench = Bench()
    with bench.accept():
        await bench.scheduler.remove(bench.queue, Unloading("it goes"), 1.0)
        with pytest.raises(Unloading):
            bench.submit(1, accepted=True)
    with pytest.raises(Unloading), bench.accept():
        raise AssertionError


@in_virtual_time
async def test_no_batch_exceeds_max_batch_size():
    bench = Bench(BatchPolicy(max_batch_size=4))
    await asyncio.gather(*(bench.submit(number) for number in range(10)))
    assert [len(batch) for batch in bench.engine.batches] == [4, 4, 2]


@in_virtual_time
async def test_earliest_deadline_goes_first():
    bench = Bench(BatchPolicy(max_batch_size=1))
    first = bench.submit(0)
    await asyncio.sleep(0.1)
    late = bench.submit(1, within=9.0)
    soon = bench.submit(2, within=5.0)
    await asyncio.gather(first, late, soon)
    assert bench.engine.batches == [[0], [2], [1]]


@in_virtual_time
async def test_request_without_deadline_is_not_starved():
    bench = Bench(BatchPolicy(max_batch_size=1))
    patient = bench.submit(99)
    answered_at = None

    async def press() -> None:
        for number in range(60):
            if answered_at is None:
                bench.submit(number, within=8.0)
            await asyncio.sleep(0.9)

    bench.submit(0)
    pressing = asyncio.create_task(press())
    await patient
    answered_at = asyncio.get_running_loop().time()
    assert answered_at < 20.0
    await pressing


@in_virtual_time
async def test_full_queue_is_refused_at_once():
    bench = Bench(BatchPolicy(max_batch_size=1, max_queue_size=2))
    running = bench.submit(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [bench.submit(1), bench.submit(2)]
    with pytest.raises(QueueFull, match=r"max_queue_size \(2\)") as refused:
        bench.submit(3)
    assert refused.value.retry_after_s > 0
    await asyncio.gather(running, *waiting)


@in_virtual_time
async def test_request_beyond_max_queue_wait_is_refused():
    bench = Bench(BatchPolicy(max_batch_size=1, max_queue_wait_s=2.5))
    await bench.submit(0)  # how long a batch takes is known from here on: 1 s
    accepted = [bench.submit(1)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    accepted += [bench.submit(2), bench.submit(3)]
    with pytest.raises(QueueFull, match=r"max_queue_wait_s .*with the deadline") as refused:
        bench.submit(4)
    assert refused.value.limit == "max_queue_wait_s"
    assert refused.value.retry_after_s == pytest.approx(0.5)
    accepted += [bench.submit(5, within=100.0), bench.submit(6, stream="a stream")]
    await asyncio.gather(*accepted)


@in_virtual_time
async def test_cancelled_request_leaves_the_queue_and_costs_nothing():
    bench = Bench(BatchPolicy(max_queue_size=2))
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    gone, kept = bench.submit(1), bench.submit(2)
    gone.cancel()
    await asyncio.sleep(0)
    assert len(bench.queue.waiting) == 1
    replacement = bench.submit(3)
    await asyncio.gather(running, kept, replacement)
    assert bench.engine.batches == [[0], [2, 3]]


@in_virtual_time
async def test_cancel_during_compute_does_not_disturb_the_batch():
    bench = Bench()
    gone, kept = bench.submit(1), bench.submit(2)
    await asyncio.sleep(0.5)
    gone.cancel()
    assert (await kept).indices.tolist() == [2]
    assert (await bench.submit(3)).indices.tolist() == [3]


@in_virtual_time
async def test_unreachable_deadline_is_refused_at_once():
    bench = Bench()
    await bench.submit(0)
    with pytest.raises(DeadlineUnreachable, match="nothing was computed"):
        bench.submit(1, within=0.5)
    assert bench.engine.batches == [[0]]


@in_virtual_time
async def test_deadline_behind_waiting_requests_is_refused_at_once():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    ahead = bench.submit(2, within=2.5)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(3, within=2.6)
    await asyncio.gather(running, ahead)
    assert bench.engine.batches == [[0], [1], [2]]


@in_virtual_time
async def test_request_that_would_make_accepted_ones_late_is_refused():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    accepted = [bench.submit(2, within=2.0), bench.submit(3, within=3.0)]
    with pytest.raises(DeadlineUnreachable, match="behind it were accepted"):
        bench.submit(4, within=2.95)
    await asyncio.gather(running, *accepted)
    assert bench.engine.batches == [[0], [1], [2], [3]]


@in_virtual_time
async def test_request_that_turns_late_in_the_queue_is_shed():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    hopeless = bench.submit(2, within=2.5)
    bench.queue.latency.observe(1, 5.0)  # the device is slower than it seemed
    await running
    with pytest.raises(DeadlineUnreachable):
        await hopeless
    assert [2] not in bench.engine.batches


def warm(policy: BatchPolicy, **engine: float) -> Bench:
    """Make a bench whose batcher already knows how long batches take."""
    bench = Bench(policy, **engine)
    for size in (1, 2):
        bench.queue.latency.observe(size, bench.engine.alpha + bench.engine.beta * size)
    return bench


@in_virtual_time
async def test_batch_is_closed_early_to_meet_its_first_deadline():
    bench = warm(BatchPolicy(max_batch_size=8), alpha=1.0, beta=0.5)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    others = [bench.submit(number) for number in (3, 4, 5)]
    urgent = bench.submit(2, within=4.0)
    await asyncio.gather(running, urgent, *others)
    assert bench.engine.batches == [[1], [2, 3, 4], [5]]


@in_virtual_time
async def test_late_device_sheds_instead_of_running_small_batches():
    bench = warm(BatchPolicy(max_batch_size=2), alpha=1.0, beta=0.5)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    urgent = bench.submit(2, within=3.2)
    others = [bench.submit(number) for number in (3, 4)]
    with pytest.raises(DeadlineUnreachable) as refused:
        await urgent
    assert refused.value.accepted
    await asyncio.gather(running, *others)
    assert bench.engine.batches == [[1], [3, 4]]


@in_virtual_time
async def test_late_batch_sheds_its_most_urgent_request():
    for others, batches in ((2, [[1], [3, 4]]), (1, [[1], [2, 3]])):
        bench = warm(BatchPolicy(max_batch_size=2), alpha=1.0, beta=0.5)
        running = bench.submit(1)
        await asyncio.sleep(0.1)
        bench.submit(2, within=3.5)  # as a batch of two it would be there after 3.4 s
        rest = [bench.submit(number) for number in (3, 4)[:others]]
        bench.scheduler._deadlines.margin.seconds = 0.2
        await asyncio.gather(running, *rest)
        assert bench.engine.batches == batches


@in_virtual_time
async def test_each_batch_before_a_request_may_be_late():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    bench.scheduler._deadlines.margin.seconds = 0.1
    waiting = [bench.submit(number) for number in (1, 2)]  # none of them has a deadline
    with pytest.raises(DeadlineUnreachable):
        bench.submit(3, within=1.05)
    bench.submit(3, within=1.15)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(4, within=2.15)
    bench.submit(4, within=2.25)
    await asyncio.gather(*waiting)


@in_virtual_time
async def test_one_urgent_request_does_not_shrink_all_batches():
    bench = warm(BatchPolicy(max_batch_size=32), alpha=0.01, beta=0.01)
    running = bench.submit(0)
    await asyncio.sleep(0.005)
    urgent = bench.submit(1, within=0.2)  # a quarter of that is a batch of 4
    others = [bench.submit(number) for number in range(2, 40)]
    await asyncio.gather(running, urgent, *others)
    assert [len(batch) for batch in bench.engine.batches] == [1, 14, 25]


OVERLOADED = {
    # Seconds of a batch, of an image in it; images in a batch; until the deadline.
    "V100": (0.0021, 0.000147, 64, 0.030),
    "CPU, int8": (0.011, 0.035, 32, 1.0),
    "CPU, fp32": (0.004, 0.059, 32, 1.0),
}


@pytest.mark.parametrize("device", OVERLOADED)
def test_overload_leaves_most_deadlines_met(device):
    """1.3 times the capacity (docs/adr/0004-deadline-aware-batching.md, 0024-goodput.md)."""
    run(overload(*OVERLOADED[device]))


async def overload(alpha: float, beta: float, size: int, allowed: float) -> None:
    bench = Bench(BatchPolicy(max_batch_size=size), alpha=alpha, beta=beta)
    rate = 1.3 * size / (alpha + beta * size)
    draw = random.Random(0)
    met = []

    async def call(number: int) -> None:
        loop = asyncio.get_running_loop()
        within = allowed * draw.uniform(0.5, 1.5)
        deadline = loop.time() + within
        try:
            await bench.submit(number % 250, within=within)
        except DeadlineUnreachable:
            met.append(False)
        else:
            met.append(loop.time() <= deadline + 1e-9)

    calls = []
    for number in range(6000):
        calls.append(asyncio.create_task(call(number)))
        await asyncio.sleep(draw.expovariate(rate))
    await asyncio.gather(*calls)
    assert sum(met) / len(met) > 0.70  # at best 1 / 1.3 = 0.77


@in_virtual_time
async def test_failed_batch_fails_its_requests_only():
    bench = Bench()
    bench.engine.error = RuntimeError("device lost")
    outcomes = await asyncio.gather(bench.submit(1), bench.submit(2), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineFailed, EngineFailed]
    assert isinstance(outcomes[0].__cause__, RuntimeError)
    bench.engine.error = None
    assert (await bench.submit(3)).indices.tolist() == [3]
    assert bench.broken == []


@in_virtual_time
async def test_device_whose_batches_all_fail_is_lost():
    bench = Bench()
    bench.engine.error = RuntimeError("device lost")
    for number in range(MAX_CONSECUTIVE_FAILURES):
        assert bench.broken == []
        with pytest.raises(EngineFailed):
            await bench.submit(number)
    await asyncio.sleep(1.0)  # for the self-test
    assert isinstance(bench.broken[0].__cause__, RuntimeError)
    with pytest.raises(ShuttingDown):
        bench.submit(9)


@in_virtual_time
async def test_nan_output_fails_its_request_only():
    bench = Bench()
    bench.engine.without_answer = 1
    broken, good = await asyncio.gather(bench.submit(1), bench.submit(2), return_exceptions=True)
    assert isinstance(broken, EngineFailed)
    assert good.indices.tolist() == [2]
    with pytest.raises(EngineFailed, match="NaN or Inf"):
        await bench.submit(1, top_k=0, with_embedding=True)


@in_virtual_time
async def test_cancel_as_the_batch_forms_disturbs_no_one():
    """gRPC cancels a call when its deadline passes, which is when the batcher sheds it."""
    bench = Bench()
    await bench.submit(0)
    loop = asyncio.get_running_loop()
    late, kept = bench.submit(1, within=1.5), bench.submit(2)
    late.cancel()  # its callback runs in the next turn
    taken = bench.queue.take_batch(8, loop.time() + 1.0, 0.0)
    assert [waiting.image[0, 0, 0] for waiting in taken] == [2]
    await asyncio.sleep(0)
    assert len(bench.queue.waiting) == 0
    # It was still waiting; the other one is in a batch, and is computed in vain.
    assert (bench.scheduler.cancelled.waiting, bench.scheduler.cancelled.computing) == (1, 0)
    kept.cancel()
    await asyncio.sleep(0)
    assert (bench.scheduler.cancelled.waiting, bench.scheduler.cancelled.computing) == (1, 1)


@in_virtual_time
async def test_one_stall_does_not_cause_lasting_refusals():
    bench = Bench(alpha=0.005)
    for number in range(50):
        await bench.submit(number)
    bench.engine.alpha = 2.0  # the process was stopped, say
    await bench.submit(50)
    bench.engine.alpha = 0.005
    answered = 0
    for number in range(100):
        try:
            await bench.submit(number, within=0.030)
            answered += 1
        except DeadlineUnreachable:
            await asyncio.sleep(0.010)
    assert answered >= 95


@in_virtual_time
async def test_idle_device_accepts_requests_after_a_slow_phase():
    bench = Bench()
    await bench.submit(0)
    bench.engine.alpha = 0.1
    with pytest.raises(DeadlineUnreachable):
        bench.submit(1, within=0.5)
    await asyncio.sleep(REMEASURE_AFTER_S + 0.1)
    assert (await bench.submit(1, within=0.5)).batch_size == 1


@in_virtual_time
async def test_scheduler_bug_fails_every_request_and_is_reported():
    bench = Bench()
    first = bench.submit(1)

    def broken_take(*_):
        raise AssertionError("bug in the batcher")

    bench.queue.take_batch = broken_take
    with pytest.raises(ShuttingDown):  # it was not computed: another server may
        await first
    assert isinstance(bench.broken[0].__cause__, AssertionError)
    with pytest.raises(ShuttingDown):
        bench.submit(2)


@in_virtual_time
async def test_queue_delay_fills_a_batch_and_ends_on_time():
    bench = Bench(BatchPolicy(max_batch_size=8, max_queue_delay_ms=200))
    first = bench.submit(0)
    await asyncio.sleep(0.1)
    second = bench.submit(1)
    results = await asyncio.gather(first, second)
    assert bench.engine.batches == [[0, 1]]
    assert results[0].queue_s == pytest.approx(0.2)


@in_virtual_time
async def test_queue_delay_ends_as_soon_as_the_batch_is_full():
    bench = Bench(BatchPolicy(max_batch_size=2, max_queue_delay_ms=5000))
    results = await asyncio.gather(bench.submit(0), bench.submit(1))
    assert results[0].queue_s == pytest.approx(0.0)


@in_virtual_time
async def test_classify_and_embed_share_a_batch():
    for order in ((1, 2), (2, 1)):
        bench, options = Bench(), {1: {"top_k": 3}, 2: {"top_k": 0, "with_embedding": True}}
        asked = {number: bench.submit(number, **options[number]) for number in order}
        classified, embedded = await asked[1], await asked[2]
        assert bench.engine.batches == [list(order)]
        assert (classified.indices.tolist(), classified.embedding) == ([1, 1, 1], None)
        assert (embedded.indices.tolist(), embedded.embedding.tolist()) == ([], [2.0])


@in_virtual_time
async def test_variants_share_the_engine_thread_but_not_batches():
    bench = Bench()
    other_engine = FakeEngine()
    other = bench.scheduler.add("other", other_engine)
    await asyncio.gather(
        bench.submit(1), bench.submit(2, queue=other), bench.submit(3), bench.submit(4, queue=other)
    )
    assert bench.engine.batches == [[1, 3]]
    assert other_engine.batches == [[2, 4]]


async def saturate(bench: Bench, flow: str, window: int, answered: dict[str, int]) -> None:
    """Keep `window` images of a flow waiting for ever, as a stream at full speed does."""

    async def one() -> None:
        while True:
            await bench.submit(0, stream=flow)
            answered[flow] = answered.get(flow, 0) + 1

    await asyncio.gather(*(one() for _ in range(window)))


@in_virtual_time
async def test_streams_share_the_device_equally():
    bench = Bench(BatchPolicy(max_batch_size=8))
    answered: dict[str, int] = {}
    windows = {f"flow {number}": 4 * (1 + number) for number in range(10)}
    tasks = [
        asyncio.create_task(saturate(bench, flow, window, answered))
        for flow, window in windows.items()
    ]
    await asyncio.sleep(500)
    for task in tasks:
        task.cancel()
    shares = [answered[flow] / sum(answered.values()) for flow in windows]
    assert 0.09 < min(shares) <= max(shares) < 0.11


@in_virtual_time
async def test_single_image_waits_for_one_image_of_each_flow():
    bench = Bench(BatchPolicy(max_batch_size=16))
    tasks = [asyncio.create_task(saturate(bench, f"flow {number}", 32, {})) for number in range(10)]
    for _ in range(50):
        await asyncio.sleep(1.7)
        result = await bench.submit(1)
        # The batch that runs, then the one that takes it along.
        assert result.queue_s <= 1.0 + 1e-9
    for task in tasks:
        task.cancel()


@in_virtual_time
async def test_images_of_a_flow_keep_their_order():
    bench = Bench(BatchPolicy(max_batch_size=2))
    await asyncio.gather(*(bench.submit(number, stream="a") for number in range(7)))
    assert [number for batch in bench.engine.batches for number in batch] == list(range(7))


@in_virtual_time
async def test_cancelled_images_of_a_flow_do_not_block_the_rest():
    bench = Bench(BatchPolicy(max_batch_size=1))
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    images = [bench.submit(number, stream="a") for number in range(1, 6)]
    for gone in (0, 1, 3):  # the one in line, the next one, one in the middle
        images[gone].cancel()
    await asyncio.gather(running, images[2], images[4])
    assert bench.engine.batches == [[0], [3], [5]]
    assert len(bench.queue.waiting) == 0


@in_virtual_time
async def test_workers_compute_at_the_same_time():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.gather(*calls)
    assert bench.device.spans == [(0.0, 1.0), (0.0, 1.0), (1.0, 2.0), (1.0, 2.0)]


@in_virtual_time
async def test_busy_time_is_shared_by_the_workers():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    await asyncio.gather(bench.submit(1), bench.submit(2))
    assert bench.scheduler.busy_s == pytest.approx(1.0)


@in_virtual_time
async def test_deadline_check_uses_the_first_free_worker():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    await bench.submit(0)
    running = [bench.submit(number) for number in (1, 2)]
    await asyncio.sleep(0.1)
    accepted = [bench.submit(number, within=2.0) for number in (3, 4)]  # 1.9 s from now
    with pytest.raises(DeadlineUnreachable):
        bench.submit(5, within=2.5)
    accepted.append(bench.submit(6, within=3.0))
    await asyncio.gather(*running, *accepted)


@in_virtual_time
async def test_deadline_check_knows_when_each_worker_is_free():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    await bench.submit(0)
    running = [bench.submit(1)]  # from 1.0 to 2.0
    await asyncio.sleep(0.6)
    running.append(bench.submit(2))  # from 1.6 to 2.6
    await asyncio.sleep(0)
    running.append(bench.submit(3, within=1.5))  # the first worker's next, to 3.0
    with pytest.raises(DeadlineUnreachable):
        bench.submit(4, within=1.9)  # the second worker's next, to 3.6
    running.append(bench.submit(5, within=2.1))
    await asyncio.gather(*running)
    assert [end for _, end in bench.device.spans] == pytest.approx([1.0, 2.0, 2.6, 3.0, 3.6])


@in_virtual_time
async def test_full_batch_is_prefetched_a_smaller_one_just_in_time():
    policy = BatchPolicy(max_batch_size=3)
    bench = Bench(policy, prefetch=1, alpha=1.0, prepare_alpha=0.2)
    await bench.submit(0)
    assert bench.device.spans == [(pytest.approx(0.2), pytest.approx(1.2))]
    first = bench.submit(1)
    await asyncio.sleep(0.5)
    two = [bench.submit(number) for number in (2, 3)]
    await asyncio.sleep(0.1)
    assert bench.engine.batches == [[0], [1]]  # what is still to come may join
    third = bench.submit(4)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bench.engine.batches == [[0], [1], [2, 3, 4]]
    fifth = bench.submit(5)
    results = await asyncio.gather(first, *two, third, fifth)
    assert bench.engine.batches == [[0], [1], [2, 3, 4], [5]]
    # The device never waits for a batch to be prepared.
    ends = [end for _, end in bench.device.spans]
    assert [start for start, _ in bench.device.spans[2:]] == pytest.approx(ends[1:3])
    assert [result.batch_size for result in results] == [1, 3, 3, 3, 1]
    # Their wait includes the batch that the device computed before theirs.
    assert results[3].queue_s == pytest.approx(0.6)


@in_virtual_time
async def test_batches_in_flight_are_limited():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    calls = [bench.submit(number) for number in range(5)]
    await asyncio.sleep(0.5)
    assert bench.engine.batches == [[0], [1]]
    await asyncio.sleep(1.0)
    assert bench.engine.batches == [[0], [1], [2]]
    await asyncio.gather(*calls)


@in_virtual_time
async def test_deadline_check_counts_a_prefetched_batch():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    await bench.submit(0)
    running = [bench.submit(number) for number in (1, 2)]
    await asyncio.sleep(0.1)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(3, within=2.8)
    running.append(bench.submit(4, within=3.0))
    await asyncio.gather(*running)


@in_virtual_time
async def test_failed_batches_in_flight_fail_their_requests_only():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    bench.engine.error = RuntimeError("device lost")
    calls = [bench.submit(number) for number in (1, 2)]
    await asyncio.sleep(2.5)  # both have failed, and their retries are in flight
    bench.engine.error = None
    calls.append(bench.submit(3))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:2]] == [EngineFailed, EngineFailed]
    assert outcomes[2].indices.tolist() == [3]


@in_virtual_time
async def test_device_failure_with_batches_in_flight_is_reported_once():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    bench.engine.error = RuntimeError("device lost")
    calls = [bench.submit(number) for number in range(2 * MAX_CONSECUTIVE_FAILURES)]
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(5.0)
    assert len(bench.broken) == 1


@in_virtual_time
async def test_wait_behind_a_slow_batch_is_reported_as_it_was():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    bench.queue.latency.observe(1, 0.1)  # the engine takes 1 s
    results = await asyncio.gather(bench.submit(0), bench.submit(1))
    assert [result.queue_s for result in results] == pytest.approx([0.0, 1.0])


@in_virtual_time
async def test_waiting_for_the_device_is_not_preparation_time():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1, prepare_alpha=0.2)
    await asyncio.gather(*(bench.submit(number) for number in range(5)))
    assert bench.queue.preparation.batch_s(1) == pytest.approx(0.2)


@in_virtual_time
async def test_variant_with_the_earliest_deadline_goes_first():
    bench = Bench()
    slow = FakeEngine(alpha=3.0)
    other = bench.scheduler.add("slow", slow, [(1, 3.0)])
    bench.queue.latency.observe(1, 1.0)
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    patient = bench.submit(1, within=20.0)
    urgent = bench.submit(2, queue=other, within=5.0)
    await asyncio.gather(running, patient, urgent)
    assert [start for start, _ in bench.device.spans] == pytest.approx([0.0, 1.0, 4.0])


@in_virtual_time
async def test_deadline_check_counts_other_variants():
    bench = Bench()
    other = bench.scheduler.add("slow", FakeEngine(alpha=3.0), [(1, 3.0)])
    bench.queue.latency.observe(1, 1.0)
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    urgent = bench.submit(1, queue=other, within=4.0)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(2, within=4.5)  # behind the other variant's 3 s
    sooner = bench.submit(3, within=3.9)  # before it, though that makes the other one late
    outcomes = await asyncio.gather(running, urgent, sooner, return_exceptions=True)
    assert isinstance(outcomes[1], DeadlineUnreachable)
    assert outcomes[2].indices.tolist() == [3]


@in_virtual_time
async def test_deadline_check_adds_the_margin_of_late_answers():
    """The callers' own turns after a batch, which the batcher's estimates know nothing of."""
    bench = warm(BatchPolicy(), alpha=1.0)
    loop = asyncio.get_running_loop()

    def slow_turn(future: asyncio.Future) -> None:
        loop.now += 0.5

    for _ in range(20):
        call = bench.submit(0)
        call.add_done_callback(slow_turn)
        await call
        await asyncio.sleep(0.1)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(1, within=1.4)
    await bench.submit(2, within=3.0)


@in_virtual_time
async def test_warm_up_latency_judges_the_first_deadline():
    bench = Bench()
    queue = bench.scheduler.add("warm", bench.engine, [(1, 1.0), (4, 1.0)])
    with pytest.raises(DeadlineUnreachable):
        bench.submit(1, queue=queue, within=0.9)
    assert bench.engine.batches == []
    await bench.submit(2, queue=queue, within=1.1)


@in_virtual_time
async def test_close_fails_waiting_and_in_flight_requests():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    accepted = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    assert len(bench.engine.batches) == 2
    await bench.scheduler.close()
    outcomes = await asyncio.gather(*accepted, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ShuttingDown}
    with pytest.raises(ShuttingDown):
        bench.submit(4)
    await asyncio.sleep(5.0)  # the device ends what it had; nothing follows
    assert len(bench.engine.batches) == 2


@in_virtual_time
async def test_many_cancellations_do_not_grow_the_queue():
    bench = Bench()
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    for number in range(5000):
        bench.submit(number % 250).cancel()
        await asyncio.sleep(0)
    assert len(bench.queue.waiting) == 0
    assert len(bench.queue.waiting._ready) < 200
    await running


@in_virtual_time
async def test_bulk_does_not_hide_its_variants_urgency():
    bench = Bench(BatchPolicy(max_batch_size=1), alpha=0.1)
    other = bench.scheduler.add("w", bench.engine)
    running = [bench.submit(number) for number in range(BULK_EVERY)]
    bulk = bench.submit(97, bulk=True)
    await asyncio.sleep(0.1 * BULK_EVERY - 0.05)  # the last of those is being computed
    rival, urgent = bench.submit(98, within=5.0, queue=other), bench.submit(99, within=4.0)
    assert bench.queue.waiting.peek().item.future is bulk
    await asyncio.gather(*running, bulk, rival, urgent)
    assert bench.engine.batches[BULK_EVERY:] == [[97], [99], [98]]


@in_virtual_time
async def test_batch_is_not_delayed_past_a_deadline_behind_bulk():
    bench = Bench(BatchPolicy(max_batch_size=BULK_EVERY, max_queue_delay_ms=60_000.0))
    running = [bench.submit(number) for number in range(BULK_EVERY)]
    bulk = bench.submit(98, bulk=True)
    await asyncio.sleep(0.5)
    urgent = bench.submit(99, within=5.0)
    assert bench.queue.waiting.peek().item.future is bulk
    await asyncio.gather(*running, bulk, urgent)
    assert bench.engine.batches[1:] == [[98, 99]]


@in_virtual_time
async def test_bulk_of_another_variant_gets_a_sixteenth():
    bench = Bench(BatchPolicy(max_batch_size=1), alpha=0.1)
    other = bench.scheduler.add("w", FakeEngine(alpha=0.2), [(1, 0.2)])
    running = bench.submit(0)
    await asyncio.sleep(0.05)
    bulk = [bench.submit(100 + number, bulk=True, queue=other) for number in range(3)]
    served_at = []
    for one in bulk:
        one.add_done_callback(lambda _: served_at.append(len(bench.engine.batches)))
    waiting = [bench.submit(number) for number in range(1, 80)]
    await asyncio.gather(running, *waiting, *bulk)
    # A batch of theirs lasts as long as two of ours: one for 2 x 16 of ours, and what is left.
    assert bench.engine.batches == [[number] for number in range(80)]
    assert other.engine.batches == [[100], [101], [102]]
    first, second, third = served_at
    assert first == pytest.approx(2 * BULK_EVERY, abs=3)
    assert second - first == pytest.approx(2 * BULK_EVERY, abs=2)
    assert third == 80


@in_virtual_time
async def test_bulk_of_another_variant_runs_when_idle():
    bench = Bench(alpha=0.1)
    other = bench.scheduler.add("w", bench.engine, [(1, 0.1)])
    result = await bench.submit(1, bulk=True, queue=other)
    assert result.queue_s == 0.0


@in_virtual_time
async def test_failing_shadows_do_not_lose_the_device():
    bench = Bench(BatchPolicy(max_batch_size=1))
    bench.engine.error = RuntimeError("bad weights")
    for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(EngineFailed):
            await bench.submit(1, shadow=True, bulk=True)
    assert bench.broken == []
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(EngineFailed):
            await bench.submit(1)
    await asyncio.sleep(1.0)  # for the self-test
    assert len(bench.broken) == 1


@in_virtual_time
async def test_device_faults_are_logged_without_a_request():
    logged: list[tuple[str, RequestContext | None]] = []

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append((record.getMessage(), CURRENT_REQUEST.get(None)))

    bench = Bench()
    bench.engine.error = RuntimeError("as the test wants it")

    async def ask() -> None:
        CURRENT_REQUEST.set(RequestContext("Classify", "somebody's", ()))
        with pytest.raises(EngineFailed):
            await bench.submit(1)

    handler = Log()
    logging.getLogger("resnet50_server").addHandler(handler)
    try:
        await asyncio.create_task(ask())
    finally:
        logging.getLogger("resnet50_server").removeHandler(handler)
    attempts = [f"a batch of 1 failed on variant v (attempt {number} of 2)" for number in (1, 2)]
    assert logged == [(message, None) for message in attempts]
