"""The check that an engine computes the weights that it was built from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resnet50_server.engines.reference_check import ReferenceOutput
from resnet50_server.engines.torch_engine import TorchEngine
from resnet50_server.errors import WeightsError
from resnet50_server.variants.network import build_network, read_weights
from resnet50_server.variants.spec import parse_variant
from tests.support.live_variants import put


def test_reference_check_finds_other_weights_in_any_precision(tmp_path):
    def engine_of(name: str, seed: int, precision: str = "fp32"):
        spec = parse_variant(f"{name}={put(tmp_path, name, seed)}")
        weights = read_weights(spec, Path(), download=False)
        network = build_network(spec, weights)
        device = torch.device("cpu")
        engine = TorchEngine(network, spec.transform, device, precision)
        return spec, ReferenceOutput.compute(spec, weights), engine

    spec, canary, engine = engine_of("one", 1)
    canary.check(engine, spec, "fp32")
    assert np.ptp(canary.probabilities) > 0.1  # a telling answer
    for precision in ("bf16", "fp16"):
        canary.check(engine_of("one", 1, precision)[2], spec, precision)
    for precision in ("fp32", "fp16", "bf16", "int8"):
        with pytest.raises(WeightsError, match="does not match these weights"):
            canary.check(engine_of("two", 2)[2], spec, precision)
