from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from resnet50_server.batching.latency import CLIP, CLIP_AFTER, RECENT, JitterMargin, LatencyModel


def test_model_is_unknown_before_the_first_batch():
    assert LatencyModel().estimate_s(8, 32) == 0.0


def test_alpha_and_beta_are_recovered_from_noisy_batches():
    draw = random.Random(0)
    model = LatencyModel()
    for _ in range(500):
        size = draw.randint(1, 32)
        model.observe(size, (0.0021 + 0.000147 * size) * draw.uniform(0.95, 1.05))
    alpha, beta = model.alpha_s, model.beta_s
    assert alpha == pytest.approx(0.0021, rel=0.1)
    assert beta == pytest.approx(0.000147, rel=0.1)


def learned(
    alpha_s: float, beta_s: float, padded: Callable[[int], int] = lambda images: images
) -> LatencyModel:
    model = LatencyModel(padded)
    for size in (1, 8, 16, 32):
        model.observe(size, alpha_s + beta_s * padded(size))
    return model


def test_batches_fit_the_time_at_acceptable_efficiency():
    model = learned(0.010, 0.010)
    assert model.size(32, 10.0) == 32
    assert model.size(32, 0.2505) == 24  # t(24) is 250 ms
    # 14 take 150 ms: 93 images a second, where batches of 32 give 97.
    assert model.size(32, 0.01) == model.size(32, 0.0) == model.size(32, -1.0) == 14
    assert learned(0.0, 0.010).size(32, 0.0) == 1
    assert learned(0.010, 0.0).size(32, 0.001) == 31


def test_batch_size_fills_the_computed_padding():
    model = learned(0.010, 0.010, padded=lambda images: 8 * -(-images // 8))
    assert model.size(32, 0.205) == 24
    assert model.size(20, 0.205) == 20


def test_size_grows_from_the_largest_measured_batch():
    model = LatencyModel()
    model.observe(1, 0.2)
    assert model.size(32, 0.5) == 2  # 32 may take 32 times as long
    assert model.size(32, 6.4) == 32
    model.observe(2, 0.2)
    assert model.size(32, 0.5) == 4
    assert model.size(3, 0.2) == 3


def test_unknown_latency_does_not_limit_batches():
    assert LatencyModel().size(32, 0.001) == LatencyModel().size(32, -1.0) == 32


def test_one_batch_size_gives_its_mean_and_no_slope():
    model = LatencyModel()
    for duration in (0.010, 0.012, 0.014):
        model.observe(4, duration)
    assert (model.alpha_s, model.beta_s) == (pytest.approx(0.012, rel=0.01), 0.0)


def test_a_slower_device_is_learned():
    model = LatencyModel(memory=50)
    for _ in range(200):
        model.observe(1, 0.010)
    for _ in range(200):
        model.observe(1, 0.020)
    assert model.estimate_s(1, 1) == pytest.approx(0.020, rel=0.05)


def test_faster_batches_never_raise_an_estimate():
    model = LatencyModel()
    model.observe(1, 0.2)
    model.observe(4, 0.8)
    for _ in range(20):
        before_s = model.batch_s(1), model.batch_s(12)
        model.observe(2, 0.12)
        assert (model.batch_s(1), model.batch_s(12)) <= before_s
    assert model.alpha_s >= 0.0


@pytest.mark.parametrize(("steady", "expected_s"), [(True, 0.06), (False, 0.6)])
def test_fast_batches_end_a_slow_phase_of_steady_devices(steady, expected_s):
    model = LatencyModel(steady=steady)
    for _ in range(300):
        model.observe(1, 0.6)
    for _ in range(4):
        model.observe(1, 0.06)
    assert model.batch_s(1) == pytest.approx(expected_s, rel=0.5)


def test_shortest_duration_is_that_of_recent_batches():
    model = LatencyModel()
    assert model.shortest_s == 0.0
    for duration_s in (0.01, 0.03, 0.02):
        model.observe(4, duration_s)
    assert model.shortest_s == 0.01
    for _ in range(RECENT):
        model.observe(4, 0.05)
    assert model.shortest_s == 0.05


def test_estimate_counts_whole_batches():
    model = LatencyModel()
    model.observe(1, 0.003)
    model.observe(2, 0.004)
    assert model.estimate_s(5, 2) == pytest.approx(3 * 0.002 + 5 * 0.001)


def test_a_batch_counts_as_the_size_that_the_device_computes():
    model = LatencyModel(padded=lambda images: 8 if images > 1 else 1)
    model.observe(1, 0.003)
    model.observe(5, 0.010)  # of 8, really
    assert model.beta_s == pytest.approx(0.001)
    assert model.batch_s(2) == model.batch_s(8) == pytest.approx(0.010)
    assert model.estimate_s(9, 8) == pytest.approx(0.013)


def test_a_stall_counts_as_a_few_times_the_expected():
    model = LatencyModel()
    for _ in range(int(CLIP_AFTER) + 2):
        model.observe(1, 0.010)
    model.observe(1, 100.0)
    assert 0.010 < model.batch_s(1) < 0.010 * (1 + CLIP / CLIP_AFTER)


def test_unseen_batch_size_is_extrapolated_linearly():
    model = LatencyModel()
    for _ in range(100):
        model.observe(1, 0.060)
    model.observe(32, 32 * 0.060)  # a CPU, where a batch saves nothing
    assert model.batch_s(32) == pytest.approx(32 * 0.060, rel=0.01)


def test_slope_is_kept_while_all_batches_have_one_size():
    model = LatencyModel(memory=50)
    for _ in range(10):
        model.observe(1, 0.003)
        model.observe(32, 0.034)
    for _ in range(5000):
        model.observe(32, 0.034)
    assert model.batch_s(1) == pytest.approx(0.003, rel=0.1)


def test_jitter_margin_follows_recent_latency():
    margin = JitterMargin()
    draw = random.Random(0)
    for _ in range(100):
        margin.observe(draw.uniform(0.000, 0.010))
    assert 0.010 <= margin.seconds < 0.025
    for _ in range(100):
        margin.observe(0.001)
    assert margin.seconds == pytest.approx(0.001, rel=0.05)
    for _ in range(100):
        margin.observe(-0.005)
    assert margin.seconds == 0.0


def test_early_answers_never_widen_the_margin():
    margin = JitterMargin()
    margin.observe(1.0)
    for _ in range(20):
        before_s = margin.seconds
        margin.observe(-5.0)
        assert margin.seconds <= before_s
    assert margin.seconds == 0.0
