"""From pixels to outputs in one function of tensors, which can be compiled and captured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet50_server.images.transform import Transform
from resnet50_server.variants.network import Network


class Outputs(NamedTuple):
    """Outputs of the network for N images.

    Attributes:
        indices: int64 [N, k], the first k categories by falling probability.
        top: float32 [N, k], their probabilities.
        embeddings: float32 [N, D].
        probabilities: float32 [N, categories], of all categories.
    """

    indices: Tensor
    top: Tensor
    embeddings: Tensor
    probabilities: Tensor


class Forward(nn.Module):
    """Normalize, network, activation, top-k: the same steps as `TorchEngine.run`.

    It has no L2 normalization: each request of a batch decides whether its embedding is normalized,
    and 2048 multiplications cost less than another kernel.

    Args:
        network: In eval mode, on the device and in the precision that it will run in.
        transform: The variant's, for its normalization.
        top_k: Number of top categories.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, transform: Transform, top_k: int) -> None:
        super().__init__()
        self.network = network
        self.top_k = top_k
        weight: Tensor = network.model.conv1.weight
        self._dtype = weight.dtype
        for name, values in zip(("scale", "shift"), transform.affine(), strict=True):
            # float32 in every precision: the result is rounded once.
            tensor = torch.tensor(values, dtype=torch.float32, device=weight.device)
            self.register_buffer(name, tensor.view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Outputs:
        """Compute the outputs.

        Args:
            pixels: uint8 [N, H, W, 3], RGB.
        """
        # [N, H, W, 3] seen as [N, 3, H, W] is what channels_last means.
        images = torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)
        images = images.to(dtype=self._dtype, memory_format=torch.channels_last)
        pooled, logits = self.network(images)
        probabilities = self.network.probabilities(logits)
        top, indices = torch.topk(probabilities, self.top_k, dim=1)
        return Outputs(indices, top, pooled.float(), probabilities)
