"""Autoscaling on Ray: load from metrics, and the number of replicas that it calls for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from resnet50_server.ray.load import BUSY, QUEUE_AGE, QueueAgePolicy, ServerLoad

METRICS = """\
# HELP resnet50_queue_age_seconds Age of the oldest image that waits for a batch.
# TYPE resnet50_queue_age_seconds gauge
resnet50_queue_age_seconds{{variant="a"}} {age}
resnet50_queue_age_seconds{{variant="b"}} 0.0
# TYPE resnet50_engine_busy_seconds_total counter
resnet50_engine_busy_seconds_total{{device="cuda:0"}} {busy}
resnet50_engine_busy_seconds_total{{device="cuda:1"}} {busy}
resnet50_engine_busy_seconds_created{{device="cuda:0"}} 1.7e9
"""


def test_load_is_the_oldest_image_and_the_busy_share():
    load = ServerLoad()
    assert load.of(METRICS.format(age=0.25, busy=10.0), 100.0) == {QUEUE_AGE: 0.25, BUSY: 0.0}
    assert load.of(METRICS.format(age=0.0, busy=11.0), 104.0) == {QUEUE_AGE: 0.0, BUSY: 0.25}


def test_restarted_server_is_not_less_than_idle():
    load = ServerLoad()
    load.of(METRICS.format(age=0, busy=10.0), 100.0)
    assert load.of(METRICS.format(age=0, busy=1.0), 101.0)[BUSY] == 0.0
    assert load.of(METRICS.format(age=0, busy=2.0), 102.0)[BUSY] == 1.0


def decided(running: int, target: int, ages: list[float], busy: list[float]) -> int:
    metrics = {
        QUEUE_AGE: {f"replica {n}": age for n, age in enumerate(ages)},
        BUSY: {f"replica {n}": share for n, share in enumerate(busy)},
    }
    context = SimpleNamespace(
        current_num_replicas=running, target_num_replicas=target, aggregated_metrics=metrics
    )
    return QueueAgePolicy(target_queue_age_s=0.1, min_busy_ratio=0.3)(context)[0]


@pytest.mark.parametrize(
    ("running", "ages", "busy", "expected"),
    [
        (1, [0.2], [1.0], 2),
        (4, [0.0, 0.0, 0.0, 0.2], [1.0] * 4, 6),
        (2, [0.05, 0.05], [0.9, 0.2], 2),
        (2, [0.0, 0.0], [0.2, 0.1], 1),
        (1, [0.0], [0.0], 1),
        # One replica has not reported yet.
        (3, [0.0, 0.0], [0.1, 0.1], 3),
    ],
)
def test_replicas_follow_queue_age_and_busy_share(running, ages, busy, expected):
    assert decided(running, running, ages, busy) == expected


def test_nothing_is_decided_while_replicas_start():
    assert decided(1, 3, [9.0], [1.0]) == 3


def test_nothing_is_decided_without_metrics():
    context = SimpleNamespace(
        current_num_replicas=2, target_num_replicas=2, aggregated_metrics=None
    )
    assert QueueAgePolicy(0.1, 0.3)(context)[0] == 2
