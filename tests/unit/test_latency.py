from __future__ import annotations

import random

import pytest

from resnet50_server.latency import LatencyModel


def test_nothing_is_known_before_the_first_batch():
    assert LatencyModel().estimate_s(8, 32) == 0.0


def test_alpha_and_beta_are_recovered_from_noisy_batches():
    draw = random.Random(0)
    model = LatencyModel()
    for _ in range(500):
        size = draw.randint(1, 32)
        model.observe(size, (0.0021 + 0.000147 * size) * draw.uniform(0.95, 1.05))
    alpha, beta = model.coefficients
    assert alpha == pytest.approx(0.0021, rel=0.1)
    assert beta == pytest.approx(0.000147, rel=0.1)


def test_one_batch_size_gives_its_mean_and_no_slope():
    model = LatencyModel()
    for duration in (0.010, 0.012, 0.014):
        model.observe(4, duration)
    assert model.coefficients == (pytest.approx(0.012, rel=0.01), 0.0)


def test_a_slower_device_is_learned():
    model = LatencyModel(memory=50)
    for _ in range(200):
        model.observe(1, 0.010)
    for _ in range(200):
        model.observe(1, 0.020)
    assert model.estimate_s(1, 1) == pytest.approx(0.020, rel=0.05)


def test_estimate_counts_whole_batches():
    model = LatencyModel()
    model.observe(1, 0.003)
    model.observe(2, 0.004)
    assert model.estimate_s(5, 2) == pytest.approx(3 * 0.002 + 5 * 0.001)


def test_images_within_a_time_is_the_inverse_of_the_estimate():
    model = LatencyModel()
    assert model.images_within(0.001) > 1000  # nothing is known: nothing is ruled out
    model.observe(1, 0.003)
    model.observe(2, 0.004)
    assert [model.images_within(seconds) for seconds in (0.001, 0.0031, 0.0045)] == [0, 1, 2]
