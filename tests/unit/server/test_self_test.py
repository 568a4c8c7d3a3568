"""The comparison of a self-test's result with that of the loaded engine."""

from __future__ import annotations

import numpy as np
import pytest

from resnet50_server.batching.result import Result
from resnet50_server.lifecycle.self_test import Reference

PROBABILITIES = np.array([0.75, 0.25], dtype=np.float32)
EMBEDDING = np.array([3.0, 4.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("probabilities", "embedding", "passes"),
    [
        (PROBABILITIES, EMBEDDING, True),
        (PROBABILITIES[::-1], EMBEDDING, False),
        (PROBABILITIES, EMBEDDING[::-1], False),
        (PROBABILITIES * np.nan, EMBEDDING, False),
        (PROBABILITIES, EMBEDDING * np.nan, False),
    ],
)
def test_self_test_needs_both_outputs_to_be_as_before(probabilities, embedding, passes):
    reference = Reference(np.zeros((8, 8, 3), dtype=np.uint8), PROBABILITIES, EMBEDDING)
    result = Result(np.array([0, 1]), probabilities, embedding, 0.0, 0.0, 1)
    assert (reference.difference(result, "fp32") is None) == passes
