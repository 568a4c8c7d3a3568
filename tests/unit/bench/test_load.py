from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
import scipy.stats

from resnet50.v1 import result_pb2
from resnet50_bench.calls import DROPPED, OK, Outcome
from resnet50_bench.load_generator import PAUSE_WHILE_AWAY_S, Generator, paced, poisson
from resnet50_bench.plan import Load, Plan
from resnet50_bench.recorder import Recorder
from tests.support.virtual_time import run


class FakeServer:
    """Answers one call after the other, each in `service_s`; ends those whose deadline passes."""

    def __init__(self, service_s: float = 0.01, workers: int = 1) -> None:
        self.service_s = service_s
        self.workers = asyncio.Semaphore(workers)
        self.numbers: list[int] = []
        self.in_flight = self.most = 0
        self.codes = itertools.repeat(OK)

    async def _serve(self) -> None:
        async with self.workers:
            await asyncio.sleep(self.service_s)

    async def __call__(self, number: int, deadline: float) -> Outcome:
        self.numbers.append(number)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            left_s = deadline - asyncio.get_running_loop().time()
            await asyncio.wait_for(self._serve(), left_s)
        except asyncio.TimeoutError:
            return Outcome("DEADLINE_EXCEEDED")
        finally:
            self.in_flight -= 1
        code = next(self.codes)
        timing = result_pb2.Timing(compute_us=1000, total_us=2000, batch_size=4)
        return Outcome(code, timing if code == OK else None)


async def drive(plan: Plan, call, stop_after_s: float | None = None) -> Recorder:
    clock = asyncio.get_running_loop().time
    recorder = Recorder(clock(), plan.warm_up_s, plan.duration_s, plan.timeout_s, plan.requests)
    generator = Generator(plan, call, recorder)
    if stop_after_s is not None:
        asyncio.get_running_loop().call_later(stop_after_s, generator.stop)
    await generator.run()
    await generator.drain()
    recorder.close(clock())
    return recorder


def load(concurrency: int | None = None, rate: float | None = None, **options) -> Plan:
    defaults = {"duration_s": 10.0, "warm_up_s": 0.0}
    return Plan(load=Load(concurrency=concurrency, rate_per_s=rate), **defaults | options)


def test_open_loop_latency_includes_the_backlog():
    async def scenario():
        # 20 calls a second to a server that answers 10: by the end the backlog is about 10 s.
        return await drive(load(rate=20), FakeServer(service_s=0.1))

    recorder = run(scenario())
    assert max(recorder.latency_ms) > 6000
    assert np.polyfit(range(len(recorder.latency_ms)), recorder.latency_ms, 1)[0] > 20


def test_late_calls_count_from_their_scheduled_time():
    async def scenario():
        loop = asyncio.get_running_loop()
        # The generator's own event loop stands still for 2 s in the middle.
        loop.call_later(5, lambda: setattr(loop, "now", loop.now + 2.0))
        return await drive(load(rate=100), FakeServer(0.001, workers=1000))

    recorder = run(scenario())
    assert len(recorder.latency_ms) == recorder.calls
    slow = [ms for ms in recorder.latency_ms if ms > 100]
    assert 150 < len(slow) < 250  # those meant in these 2 s, though each took 1 ms by itself
    assert 1900 < max(recorder.latency_ms) <= 2001
    assert max(recorder.late_ms) > 1900  # and it is said that the generator was late


def test_late_deadlines_count_from_the_scheduled_time():
    async def scenario():
        loop = asyncio.get_running_loop()
        loop.call_later(5, lambda: setattr(loop, "now", loop.now + 2.0))
        left_s = []

        async def call(number: int, deadline: float) -> Outcome:
            left_s.append(deadline - loop.time())
            return Outcome(OK, result_pb2.Timing())

        await drive(load(rate=100, timeout_s=3.0), call)
        return left_s

    left_s = run(scenario())
    assert max(left_s) == pytest.approx(3.0)
    assert min(left_s) == pytest.approx(1.0, abs=0.1)


def test_overloaded_throughput_counts_answers_in_time():
    async def scenario():
        return await drive(load(rate=20), FakeServer(service_s=0.1))

    recorder = run(scenario())
    assert len(recorder.latency_ms) == recorder.calls > 150  # all are answered in the end
    assert recorder.answered == pytest.approx(100, abs=2)


def test_answers_after_their_deadline_are_not_in_time():
    async def scenario():
        slow = FakeServer(service_s=0.3, workers=1000)

        async def call(number: int, deadline: float) -> Outcome:
            return await slow(number, deadline + 100)  # as a frame's answer may come

        return await drive(load(concurrency=3, timeout_s=0.2), call)

    recorder = run(scenario())
    assert recorder.answered > 90
    assert (recorder.good, recorder.on_time) == (0, 0)


def test_errors_are_counted_by_code_and_are_no_answers():
    async def scenario():
        server = FakeServer()
        server.codes = itertools.cycle([OK, "RESOURCE_EXHAUSTED", "INTERNAL", DROPPED, OK])
        return await drive(load(concurrency=1, requests=50), server)

    recorder = run(scenario())
    assert recorder.errors == {"INTERNAL": 10, "RESOURCE_EXHAUSTED": 10}
    assert (recorder.calls, recorder.good, recorder.dropped) == (50, 20, 10)
    assert len(recorder.latency_ms) == 20


def test_deadline_counts_from_when_a_call_was_meant():
    async def scenario():
        return await drive(load(rate=20, timeout_s=1.0), FakeServer(service_s=0.1))

    recorder = run(scenario())
    assert recorder.errors["DEADLINE_EXCEEDED"] > 50
    assert max(recorder.latency_ms) <= 1000


def test_warm_up_is_not_counted():
    async def scenario():
        server = FakeServer(service_s=1.0, workers=4)
        asyncio.get_running_loop().call_later(5, setattr, server, "service_s", 0.1)
        return await drive(load(concurrency=4, warm_up_s=6.5), server)

    recorder = run(scenario())
    assert max(recorder.latency_ms) < 150
    assert recorder.calls == pytest.approx(400, abs=4)
    assert recorder.duration_s == 10.0


def test_closed_loop_keeps_that_many_calls_under_way():
    async def scenario():
        server = FakeServer(0.1, workers=100)
        recorder = await drive(load(concurrency=7), server)
        return recorder, server

    recorder, server = run(scenario())
    assert server.most == 7
    assert recorder.answered == pytest.approx(700, abs=7)
    assert sorted(server.numbers) == list(range(len(server.numbers)))


def test_open_loop_does_not_wait_for_answers():
    async def scenario():
        server = FakeServer(5.0, workers=1000)
        await drive(load(rate=50), server)
        return server.most

    assert run(scenario()) > 150


@pytest.mark.parametrize("how", [{"concurrency": 5}, {"rate": 100}])
def test_stops_after_so_many_calls(how):
    async def scenario():
        return await drive(load(**how, requests=37), FakeServer())

    recorder = run(scenario())
    assert (recorder.calls, len(recorder.latency_ms)) == (37, 37)
    assert 0 < recorder.duration_s < 5  # what was left of the time does not lower the rate


@pytest.mark.parametrize("how", [{"concurrency": 5}, {"rate": 0.01}])
def test_stop_ends_the_load_at_once(how):
    async def scenario():
        await drive(load(**how), FakeServer(), stop_after_s=2)
        return asyncio.get_running_loop().time()

    assert run(scenario()) == pytest.approx(2, abs=0.1)


def test_time_without_arrivals_counts_too():
    async def scenario():
        return await drive(load(rate=0.01), FakeServer())

    recorder = run(scenario())
    assert (recorder.calls, recorder.duration_s) == (0, 10.0)


def test_a_server_that_is_away_is_not_asked_in_a_tight_loop():
    async def scenario():
        async def refuse(number: int, deadline: float) -> Outcome:
            return Outcome("UNAVAILABLE")

        return await drive(load(concurrency=2, duration_s=5), refuse)

    assert run(scenario()).calls == pytest.approx(2 * 5 / PAUSE_WHILE_AWAY_S, abs=3)


def test_poisson_arrivals_are_seeded_and_have_their_mean():
    times = list(itertools.islice(poisson(50, seed=3), 20_000))
    assert times == list(itertools.islice(poisson(50, seed=3), 20_000))
    assert times != list(itertools.islice(poisson(50, seed=4), 20_000))
    gaps = np.diff([0.0, *times])
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential


def test_the_calls_of_several_processes_are_poisson():
    whole = Plan(load=Load(rate_per_s=100.0), processes=4, seed=5)
    until_s = 200.0
    arrivals = []
    for process in range(4):
        part = whole.part(process)
        times = poisson(part.load.rate_per_s, part.seed)
        arrivals += itertools.takewhile(lambda time_s: time_s < until_s, times)
    assert len(arrivals) == pytest.approx(100 * until_s, rel=0.03)
    gaps = np.diff(np.sort(arrivals))
    assert scipy.stats.kstest(gaps, "expon", args=(0, 1 / 100)).pvalue > 0.01
    # In disjoint intervals counts are independent, with a variance like their mean.
    counts, _ = np.histogram(arrivals, bins=2000, range=(0, until_s))
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1)
    assert abs(np.corrcoef(counts[:-1], counts[1:])[0, 1]) < 0.1


@pytest.mark.parametrize(
    "whole",
    [
        Plan(load=Load(concurrency=10), requests=101, server_pid=1, processes=4),
        Plan(load=Load(rate_per_s=50.0), requests=7, processes=4),
        Plan(load=Load(fps=25.0), shape="stream", streams=9, processes=4),
    ],
)
def test_parts_of_a_plan_add_up_to_it(whole):
    parts = [whole.part(process) for process in range(4)]
    assert len({part.seed for part in parts}) == 4
    assert {(part.processes, part.server_pid) for part in parts} == {(1, None)}
    if whole.load.concurrency is not None:
        assert [part.load.concurrency for part in parts] == [3, 3, 2, 2]
    if whole.requests is not None:
        assert sum(part.requests for part in parts) == whole.requests
    if whole.load.rate_per_s is not None:
        assert sum(part.load.rate_per_s for part in parts) == whole.load.rate_per_s
    if whole.shape == "stream":
        assert sum(part.streams for part in parts) == whole.streams
        assert {part.load.fps for part in parts} == {25.0}


def test_repeated_runs_have_arrival_times_of_their_own():
    plan = Plan(load=Load(rate_per_s=50.0), repeat=3)
    assert plan.repetition(0) == plan
    assert len({plan.repetition(number).seed for number in range(3)}) == 3


def test_paced_streams_send_their_frames_evenly_and_not_in_step():
    times = list(itertools.islice(paced(fps=10, streams=3, seed=0), 30))
    assert times == sorted(times)
    for stream in range(3):
        np.testing.assert_allclose(np.diff(times[stream::3]), 0.1)
    assert len({round(time % 0.1, 6) for time in times}) == 3


def test_paced_load_makes_the_calls_of_its_streams():
    async def scenario():
        plan = Plan(
            load=Load(fps=10), streams=3, shape="stream", duration_s=2.0, warm_up_s=0.0, seed=1
        )
        return await drive(plan, FakeServer(0.001))

    assert run(scenario()).calls == 60


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"load": {}}, "load"),
        ({"load": {"concurrency": 1, "rate_per_s": 2.0}}, "load"),
        ({"load": {"rate_per_s": 0.0}}, "load"),
        ({"duration_s": 0.0}, "duration_s"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"requests": 0}, "requests"),
        ({"load": {"fps": 10.0}}, "fps"),
        ({"streams": 2}, "streams"),
        ({"delivery": "latest"}, "delivery"),
        ({"shape": "upload", "raw": True}, "raw"),
        ({"servers": ()}, "server"),
        ({"processes": 0}, "processes"),
        ({"repeat": 0}, "repeat"),
        ({"load": {"concurrency": 3}, "processes": 4}, "must not exceed concurrency, which is 3"),
        ({"load": {"rate_per_s": 9.0}, "processes": 4, "requests": 3}, "must not exceed requests"),
        (
            {"load": {"fps": 9.0}, "shape": "stream", "processes": 4, "streams": 3},
            "must not exceed streams",
        ),
    ],
)
def test_plans_that_make_no_sense_are_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        Plan(load=Load(**wrong.pop("load", {"concurrency": 1})), **wrong)
