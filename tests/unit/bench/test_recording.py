"""Results from the recordings of several processes."""

from __future__ import annotations

import pickle
from array import array
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from resnet50_bench.plan import Load, Plan
from resnet50_bench.recorder import Progress
from resnet50_bench.recording import Recording, run_of
from resnet50_bench.statistics import summary

PLAN = Plan(load=Load(concurrency=4), processes=2)


def recording(latencies_ms: np.ndarray, **fields) -> Recording:
    stage = array("f", (latencies_ms / 2).tolist())
    count = len(latencies_ms)
    made = Recording(
        duration_s=10.0,
        interrupted=False,
        calls=count + 2,
        answered=count,
        on_time=count,
        good=count,
        codes=Counter({"OK": count, "UNAVAILABLE": 2}),
        batch_sizes=Counter({1: count}),
        latency_ms=array("f", latencies_ms.tolist()),
        decode_ms=stage,
        queue_ms=stage,
        compute_ms=stage,
        total_ms=stage,
        late_ms=array("f"),
        loop_lag_ms=array("f", [0.1] * 1000),
        cpu_share=0.5,
    )
    return replace(made, **fields)


def test_quantiles_are_of_the_numbers_of_all_processes():
    fast, slow = np.linspace(1, 10, 2000), np.linspace(50, 100, 1000)
    run = run_of(PLAN, [recording(fast), recording(slow)], None)
    assert run.latency_ms == summary(np.concatenate([fast, slow]).astype(np.float32))
    assert run.stages_ms["server"].count == 3000
    assert run.stages_ms["outside"].p50 == pytest.approx(run.latency_ms.p50 / 2, rel=1e-5)
    assert sum(count for _, count in run.latency_histogram) == 3000
    assert (run.calls, run.answered, run.errors) == (3004, 3000, {"UNAVAILABLE": 4})
    assert run.good_share == 3000 / 3004
    assert (run.throughput_per_s, run.offered_per_s) == (300.0, pytest.approx(300.4))
    assert run.batch_sizes == {1: 3000}


def test_cpu_of_all_processes_is_added_and_the_busiest_is_known():
    calm, busy = recording(np.ones(9)), recording(np.ones(9), cpu_share=0.75)
    run = run_of(PLAN, [calm, busy], None)
    assert (run.generator.cpu_share, run.generator.busiest_share) == (1.25, 0.75)
    alone = run_of(replace(PLAN, processes=1), [calm], None)
    assert (alone.generator.cpu_share, alone.generator.busiest_share) == (0.5, None)


def test_a_process_that_was_done_early_keeps_its_rate():
    early = recording(np.ones(100), duration_s=5.0)
    run = run_of(PLAN, [early, recording(np.ones(100), interrupted=True)], None)
    assert (run.duration_s, run.throughput_per_s, run.interrupted) == (10.0, 30.0, True)


def test_a_process_without_calls_is_no_error():
    nothing = recording(np.empty(0), calls=0, codes=Counter(), duration_s=0.0)
    run = run_of(PLAN, [nothing, nothing], None)
    assert (run.calls, run.throughput_per_s, run.latency_ms.p50) == (0, 0.0, None)


def test_recordings_can_be_sent_to_another_process():
    made = recording(np.linspace(1, 10, 100))
    assert pickle.loads(pickle.dumps(made)) == made


def test_progress_of_processes_is_added():
    one = Progress(5, 2, 3, Counter({"INTERNAL": 1}), array("f", [1.0, 2.0]))
    other = Progress(4, 1, 3, Counter({"INTERNAL": 2, "UNKNOWN": 1}), array("f", [3.0]))
    both = one + other
    assert (both.calls, both.in_flight, both.answered) == (9, 3, 6)
    assert both.errors == {"INTERNAL": 3, "UNKNOWN": 1}
    assert list(both.newest_ms) == [1.0, 2.0, 3.0]
