"""A fixed image, and what PyTorch says of it: what an engine must say before it answers anybody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .engine.protocol import Engine
from .errors import WeightsError
from .variants.definition import Definition
from .variants.files import Weights
from .variants.network import build_model

# How many categories are compared.
TOP_K = 5


@dataclass(frozen=True)
class Tolerance:
    """How near an engine comes to float32 in PyTorch.

    Attributes:
        probability: The largest difference of a probability.
        cosine: The smallest cosine of the embeddings.
    """

    probability: float
    cosine: float


# Wrong or mixed-up weights show far above these; what rounds differently stays below (ADR 0016, by
# benchmarks/canary.py). torchvision's int8 is compared with itself in PyTorch, from which other
# runtimes differ by a level of 255 in each layer (ADR 0008).
TOLERANCES = {
    "fp32": Tolerance(1e-3, 0.9999),
    "fp16": Tolerance(0.1, 0.999),
    "bf16": Tolerance(0.3, 0.99),
    "int8": Tolerance(0.2, 0.95),
}


@dataclass(frozen=True)
class Canary:
    """What a variant's weights say of the fixed image, computed by torchvision's own network.

    Attributes:
        image: uint8 [crop, crop, 3], RGB.
        probabilities: float32 [categories].
        embedding: float32 [2048].
    """

    image: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]

    @classmethod
    def of(cls, definition: Definition, weights: Weights) -> Canary:
        """Compute it; blocks for about as long as one image takes in eager PyTorch.

        Raises:
            WeightsError: The weights do not fit, or the answer is not made of numbers.
        """
        image = fixed_image(definition.transform.crop)
        model = build_model(definition, weights)
        pooled: list[Tensor] = []
        model.avgpool.register_forward_hook(lambda *call: pooled.append(call[2].dequantize()))
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1)
            for values in (definition.transform.mean, definition.transform.std)
        )
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0
        with torch.inference_mode():
            logits = model((pixels - mean) / std)
        probabilities = torch.softmax(logits, dim=1)[0].numpy()
        embedding = pooled[0].flatten().numpy()
        if not (np.isfinite(probabilities).all() and np.isfinite(embedding).all()):
            raise WeightsError(
                f"{definition.name}: in float32, PyTorch's answer to a fixed image is not made of"
                " numbers: the weights are broken"
            )
        return cls(image, probabilities, embedding)

    def check(self, engine: Engine, definition: Definition, precision: str) -> None:
        """Compare an engine's answer; blocks, on an engine thread.

        Args:
            engine: Warmed up.
            definition: What it computes.
            precision: "fp32", "fp16", "bf16", or "int8" if the weights are.

        Raises:
            WeightsError: It is another one; says by how much.
        """
        difference, cosine = self.compare(engine)
        tolerance = TOLERANCES[precision]
        if not (difference <= tolerance.probability and cosine >= tolerance.cosine):
            raise WeightsError(
                f"{definition.name}: the engine does not compute these weights: for a fixed image"
                f" its probabilities differ from PyTorch's by {difference:.2e} (at most"
                f" {tolerance.probability:g} is allowed in {precision}) and the cosine of the"
                f" embeddings is {cosine:.6f} (at least {tolerance.cosine:g}); delete the graphs in"
                " cache_dir if there are any, or use --engine torch"
            )

    def compare(self, engine: Engine) -> tuple[float, float]:
        """Return by how much a probability differs at most, and the cosine of the embeddings.

        Args:
            engine: Warmed up; blocks, on an engine thread.
        """
        output = engine.run([self.image], min(TOP_K, len(self.probabilities)), True)
        assert output.embeddings is not None  # asked for
        vector = output.embeddings[0]
        expected = self.probabilities[output.indices[0]]
        difference = float(np.abs(output.probabilities[0] - expected).max())
        # What it puts first is the first one, or as good as that.
        difference = max(difference, float(self.probabilities.max() - expected[0]))
        lengths = float(np.linalg.norm(vector) * np.linalg.norm(self.embedding))
        # A network whose embedding is zero has no direction to compare.
        return difference, float(vector @ self.embedding) / lengths if lengths else 1.0


def fixed_image(crop: int) -> NDArray[np.uint8]:
    """Return the image: soft colours with a little noise, as photos have; uint8 [crop, crop, 3]."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    soft = np.asarray(colours.resize((crop, crop), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = soft + random.integers(-12, 13, soft.shape, dtype=np.int16)
    return noisy.clip(0, 255).astype(np.uint8)
