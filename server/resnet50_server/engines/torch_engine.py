"""The engine that runs the network in PyTorch, on the CPU or on CUDA."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from resnet50_server.images.transform import Transform
from resnet50_server.variants.network import Network

from .base import BatchOutput

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine:
    """Normalize, forward, activation, top-k, in eager PyTorch with channels_last memory.

    Args:
        network: In eval mode, on the CPU; moved to the device.
        transform: The variant's, for its normalization.
        device: Device to compute on, such as "cuda:0".
        precision: "fp32", "fp16" or "bf16"; "int8" for networks that are quantized already.
    """

    sizes: tuple[int, ...] = ()

    def __init__(
        self,
        network: Network,
        transform: Transform,
        device: torch.device | str,
        precision: str,
    ) -> None:
        self._device = device = torch.device(device)
        self._dtype = DTYPES.get(precision, torch.float32)
        if precision == "fp32" and device.type == "cuda":
            # cuDNN would otherwise round to TF32's 10 bits; fp16 is the option for that.
            torch.backends.cudnn.allow_tf32 = False
        if network.quantized:
            self._network = network
        else:
            self._network = network.to(device=device, dtype=self._dtype)
            self._network = self._network.to(memory_format=torch.channels_last)
        self._scale, self._shift = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
            for values in transform.affine()
        )

    @torch.inference_mode()
    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Compute a batch; see `Engine.run`."""
        started = time.perf_counter()
        batch = torch.from_numpy(np.stack(images)).to(self._device)
        # [N, H, W, 3] seen as [N, 3, H, W] is what channels_last means.
        pixels = torch.addcmul(self._shift, batch.permute(0, 3, 1, 2).float(), self._scale)
        pixels = pixels.to(dtype=self._dtype, memory_format=torch.channels_last)
        embeddings, logits = self._network(pixels)
        count = len(images)
        indices = np.empty((count, 0), dtype=np.int64)
        probabilities = np.empty((count, 0), dtype=np.float32)
        if top_k:
            top = self._network.probabilities(logits).topk(top_k, dim=1)
            indices, probabilities = top.indices.cpu().numpy(), top.values.cpu().numpy()
        vectors = embeddings.float().cpu().numpy() if with_embeddings else None
        # The copies to the CPU waited for the device.
        return BatchOutput(indices, probabilities, vectors, time.perf_counter() - started)

    def padded(self, images: int) -> int:
        """Return `images`: eager PyTorch takes any size."""
        return images

    def close(self) -> None:
        """Free the weights."""
        del self._network
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
