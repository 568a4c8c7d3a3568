"""The network that all peers serve; it runs in their environments, which have no package of ours.

The environment variable NETWORK is a state dict of ResNet50, or "stub": constant probabilities at
no cost. THREADS is the number of PyTorch's threads.
"""

from __future__ import annotations

import io
import os
from typing import Any

import torch
from limits import MAX_BATCH_SIZE, TOP_K
from PIL import Image
from torchvision.models import ResNet50_Weights, resnet50


class Network:
    """ResNet50 with torchvision's transform, as an application would write it."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["THREADS"]))
        self._transform = ResNet50_Weights.IMAGENET1K_V2.transforms()
        self._model = None
        if os.environ["NETWORK"] != "stub":
            self._model = resnet50(weights=None)
            self._model.load_state_dict(torch.load(os.environ["NETWORK"], weights_only=True))
            # The layout that PyTorch recommends for convolutions on CPUs.
            self._model.eval().to(memory_format=torch.channels_last)
        self.predict([torch.zeros(3, 224, 224)] * MAX_BATCH_SIZE)  # warms up

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Return the transformed image, float32 [3, 224, 224]."""
        transformed: torch.Tensor = self._transform(Image.open(io.BytesIO(encoded)).convert("RGB"))
        return transformed

    def predict(self, images: list[torch.Tensor]) -> list[dict[str, Any]]:
        """Return the five most probable categories of each image, as one batch."""
        with torch.inference_mode():
            if self._model is None:
                logits = -torch.arange(1000.0).repeat(len(images), 1)
            else:
                batch = torch.stack(images).contiguous(memory_format=torch.channels_last)
                logits = self._model(batch)
            probabilities, indices = logits.softmax(dim=1).topk(TOP_K)
        return [
            {"indices": some, "probabilities": each}
            for some, each in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]
