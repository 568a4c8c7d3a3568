"""Reference check: before it serves, an engine must match PyTorch's output for fixed images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet50_server.errors import WeightsError
from resnet50_server.variants.checkpoints import Weights
from resnet50_server.variants.spec import VariantSpec

from .base import Engine

# Number of categories that are compared.
TOP_K = 5


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference of an engine's output from float32 in PyTorch.

    Attributes:
        probability: Largest difference of a probability.
        cosine: Smallest cosine of the embeddings.
    """

    probability: float
    cosine: float


# Wrong or mixed-up weights differ by far more, rounding by less (ADR 0016, by
# benchmarks/canary.py). torchvision's int8 weights are compared with themselves in PyTorch; other
# runtimes differ from it by one level of 255 in each layer (ADR 0008).
TOLERANCES = {
    "fp32": Tolerance(1e-3, 0.9999),
    "fp16": Tolerance(0.1, 0.999),
    "bf16": Tolerance(0.3, 0.99),
    "int8": Tolerance(0.2, 0.95),
}


@dataclass(frozen=True)
class ReferenceOutput:
    """Output of a variant's weights for fixed images, computed by torchvision's own network.

    Attributes:
        images: One or two of uint8 [height, width, 3], RGB.
        probabilities: float32 [images, categories]; categories are 0 without a classification head.
        embeddings: float32 [images, 2048].
    """

    images: list[NDArray[np.uint8]]
    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32]

    @classmethod
    def compute(cls, spec: VariantSpec, weights: Weights, batches: bool = True) -> ReferenceOutput:
        """Compute it. Blocks for about as long as the images take in eager PyTorch.

        Args:
            spec: The variant.
            weights: Its weights.
            batches: Whether batches of several images will be checked; else there is one image.

        Raises:
            WeightsError: The weights do not fit, or the output contains NaN or infinity.
        """
        # Not at the top: stub engines run without torch.
        import torch

        from resnet50_server.variants.network import build_model

        image = fixed_image(spec.transform.input_size)
        images = [image]
        if batches:
            # The second one is upside down, so that mixed-up rows of a batch are detected.
            images.append(np.ascontiguousarray(image[::-1]))
        model = build_model(spec, weights)
        pooled: list[torch.Tensor] = []
        model.avgpool.register_forward_hook(lambda *call: pooled.append(call[2].dequantize()))
        transform = spec.transform
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std)
        )
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0
        # As in training, where engines have both within their weights.
        pixels = pixels * transform.input_range[1]
        if transform.channel_order == "BGR":
            pixels = pixels.flip(1)
        with torch.inference_mode():
            logits = model((pixels - mean) / std)
        sigmoid = spec.activation == "sigmoid"
        probabilities = (logits.sigmoid() if sigmoid else logits.softmax(dim=1)).numpy()
        embeddings = pooled[0].flatten(1).numpy()
        if not (np.isfinite(probabilities).all() and np.isfinite(embeddings).all()):
            raise WeightsError(
                f"{spec.name}: PyTorch's float32 output for a fixed image contains NaN or infinity:"
                " the weights are broken"
            )
        return cls(images, probabilities, embeddings)

    def check(self, engine: Engine, spec: VariantSpec, precision: str) -> None:
        """Compare an engine's output at each batch size. Blocks; runs on an engine thread.

        Args:
            engine: Warmed up.
            spec: The variant that it computes.
            precision: "fp32", "fp16", "bf16", or "int8" if the weights are.

        Raises:
            WeightsError: The output differs; says by how much.
        """
        tolerance = TOLERANCES[precision]
        for size in engine.sizes or (1,):
            difference, cosine = self.compare(engine, size)
            if difference <= tolerance.probability and cosine >= tolerance.cosine:
                continue
            raise WeightsError(
                f"{spec.name}: the engine's output does not match these weights: for fixed images"
                f" in a batch of {size} its probabilities differ from PyTorch's by"
                f" {difference:.2e} (at most {tolerance.probability:g} is allowed in {precision})"
                f" and the cosine of the embeddings is {cosine:.6f} (at least"
                f" {tolerance.cosine:g}); delete the graphs in graph_cache_dir if there are any, or"
                " use --engine torch"
            )

    def compare(self, engine: Engine, size: int = 1) -> tuple[float, float]:
        """Return the largest difference of a probability and the smallest cosine of embeddings.

        Args:
            engine: Warmed up. Blocks; runs on an engine thread.
            size: Batch size; its rows have the images in turn.
        """
        rows = [row % len(self.images) for row in range(size)]
        top_k = min(TOP_K, self.probabilities.shape[1])
        output = engine.run([self.images[row] for row in rows], top_k, True)
        assert output.embeddings is not None  # requested
        probabilities, embeddings = self.probabilities[rows], self.embeddings[rows]
        difference = 0.0
        if top_k:  # else there is no classification head
            expected = np.take_along_axis(probabilities, output.indices, axis=1)
            # The engine's top category must be PyTorch's, or have nearly the same probability.
            behind = (probabilities.max(axis=1) - expected[:, 0]).max()
            difference = max(np.abs(output.probabilities - expected).max(), behind)
        lengths = np.linalg.norm(output.embeddings, axis=1) * np.linalg.norm(embeddings, axis=1)
        products = (output.embeddings * embeddings).sum(axis=1)
        # Embeddings of zero have no direction to compare.
        cosines = np.divide(products, lengths, out=np.ones_like(products), where=lengths != 0)
        return float(difference), float(cosines.min())


def fixed_image(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return soft colours with a little noise, as photos have; uint8 [height, width, 3]."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    soft = np.asarray(colours.resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = soft + random.integers(-12, 13, soft.shape, dtype=np.int16)
    return noisy.clip(0, 255).astype(np.uint8)
