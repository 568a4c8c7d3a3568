"""Benchmarks that never ran, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from resnet50_bench.plan import Load, Plan
from resnet50_bench.resource_usage import ServerUsage
from resnet50_bench.result import Bench
from resnet50_bench.run import STAGES, GeneratorUsage, Run
from resnet50_bench.statistics import curve, histogram, summary


def a_run(load: Load | None = None, scale: float = 1.0, **fields: Any) -> Run:
    latencies: Any = np.random.default_rng(0).exponential(10 * scale, 2000)
    run = Run(
        load=load or Load(concurrency=4),
        duration_s=10.0,
        interrupted=False,
        calls=2010,
        offered_per_s=201.0,
        throughput_per_s=200.0,
        goodput_per_s=199.0,
        good_share=0.99,
        errors={"UNAVAILABLE": 10},
        dropped=0,
        latency_ms=summary(latencies),
        latency_curve=curve(latencies),
        latency_histogram=histogram(latencies),
        stages_ms={
            stage: summary(latencies * share)
            for stage, share in zip(STAGES, (0.2, 0.1, 0.5, 0.9, 0.1), strict=True)
        },
        batch_sizes={1: 500, 4: 1000, 16: 500},
        mean_batch_size=2.6,
        generator=GeneratorUsage(0.25, summary([0.1] * 1000), summary([])),
        server=ServerUsage(1, 2, 1.5, 7.5, 300.0),
        warnings=[],
    )
    return replace(run, **fields)


def a_bench(*runs: Run, **fields: Any) -> Bench:
    bench = Bench(
        date="2026-01-02T03:04:05+00:00",
        plan=Plan(load=Load(concurrency=4)),
        machine={"cpu": "Some CPU", "cores": 2, "memory_gib": 4.0, "system": "Linux"},
        versions={"resnet50-serving": "0.1.0", "grpcio": "1.72.1"},
        variant={
            "name": "IMAGENET1K_V2",
            "digest": "0" * 64,
            "engine": "null",
            "device": "cpu",
            "precision": "fp32",
            "trained": True,
        },
        runs=list(runs) or [a_run()],
    )
    return replace(bench, **fields)


def a_sweep(capacity_per_s: float = 200.0, scale: float = 1.0) -> Bench:
    shares = (0.1, 0.7, 1.3)
    runs = [
        a_run(
            Load(rate_per_s=share * capacity_per_s, share=share),
            scale * (1 + 10 * share),
            offered_per_s=share * capacity_per_s,
        )
        for share in shares
    ]
    return a_bench(*runs, capacity_per_s=capacity_per_s, probes=[a_run()])
