"""The best categories of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from resnet50_server.engines.topk import top_k_of


@pytest.mark.parametrize("top_k", [0, 1, 5, 37])
def test_ranking_is_that_of_a_full_sort(top_k):
    probabilities = np.random.default_rng(0).random((6, 37), dtype=np.float32)
    indices, values = top_k_of(probabilities, top_k)
    assert indices.dtype == np.int64 and values.dtype == np.float32
    assert (indices == np.argsort(-probabilities, axis=1)[:, :top_k]).all()
    assert (values == -np.sort(-probabilities, axis=1)[:, :top_k]).all()
