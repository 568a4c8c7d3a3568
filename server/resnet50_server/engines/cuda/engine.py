"""The CUDA engine: compiled, one captured graph per batch size, copies that overlap compute."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet50_server.engines.base import BatchOutput
from resnet50_server.engines.torch_engine import DTYPES
from resnet50_server.images.transform import Transform
from resnet50_server.variants.network import Network

from .buckets import Buckets
from .device import CudaDevice, GraphBinding
from .forward import Forward, Outputs
from .output_layout import OutputLayout

log = logging.getLogger(__name__)

# Top categories computed in the graph; more are sorted on the CPU.
CAPTURED_TOP_K = 16
# Dynamo counts what it compiles per code object: here each bucket of each variant.
_COMPILE_LIMITS: dict[str, Any] = {"recompile_limit": 1024, "accumulated_recompile_limit": 4096}


class CudaEngine:
    """One variant on a CUDA device that it may share with others.

    The network is converted to the precision, compiled and captured: for each bucket one CUDA graph
    that normalizes, runs the network, and writes softmax, top-k and embeddings to one buffer.
    Building takes tens of seconds per bucket if the compiler's cache is empty. Other engines on the
    device continue meanwhile, except during each capture.

    If the compiler fails, PyTorch's own kernels are captured; if capturing fails, they are launched
    one by one. Both are logged.

    Args:
        network: Float, in eval mode, its BatchNorms folded; moved to the device.
        transform: The variant's.
        device: Shared by all engines on it.
        precision: "fp32" (no TF32), "fp16" or "bf16".
        max_batch_size: The largest batch.
        buckets: Batch sizes to prepare instead of the powers of two.
        compile_network: Whether to compile what is captured, with inductor.
        capture: Whether to capture graphs.

    Attributes:
        compiled: Whether the network was compiled.
        captured: Whether it was captured.
        sizes: The buckets, each with a graph of its own.

    Raises:
        ValueError: The network is quantized, or the precision is none of the three.
    """

    def __init__(
        self,
        network: Network,
        transform: Transform,
        device: CudaDevice,
        precision: str,
        max_batch_size: int,
        *,
        buckets: Iterable[int] | None = None,
        compile_network: bool = True,
        capture: bool = True,
    ) -> None:
        if network.quantized or precision not in DTYPES:
            raise ValueError(
                f"precision: {'int8' if network.quantized else precision} does not run on CUDA;"
                f" use one of {', '.join(DTYPES)}"
            )
        head = network.model.fc
        self.buckets = Buckets(max_batch_size, buckets)
        self.sizes = tuple(self.buckets.sizes)
        self._input_size = transform.input_size
        self._layouts = {
            size: OutputLayout(
                size,
                min(CAPTURED_TOP_K, head.out_features),
                head.in_features,
                head.out_features,
            )
            for size in self.buckets.sizes
        }
        self._device = device
        # Compiled code is called while it is captured and never again: calling it from several
        # threads is not known to be safe.
        self.compiled, self.captured = compile_network and capture, capture
        self._closing = threading.Lock()
        self._closed = False
        with device.build_lock:
            _set_kernel_choice()
            device.register(
                self._pixel_bytes(self.buckets.largest),
                self._layouts[self.buckets.largest].nbytes,
            )
            try:
                self._build(network, transform, DTYPES[precision])
            except BaseException:
                device.unregister()
                raise

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Compute a batch; see `Engine.run`. Safe from several threads at once.

        Raises:
            ValueError: There are more images than `max_batch_size`, or of another size.
            RuntimeError: CUDA failed.
        """
        count = len(images)
        bucket = self.padded(count)
        layout = self._layouts[bucket]
        pixel_bytes = self._pixel_bytes(count)
        answer_bytes = layout.prefix_bytes(with_embeddings, top_k > layout.top_k)
        with self._device.slot() as slot:
            # The bucket's other rows keep pixels of an earlier batch; their outputs are ignored.
            pixels = slot.pixels[:pixel_bytes].reshape(count, *self._input_size, 3)
            np.stack(images, out=pixels)
            compute_s = self._device.run(slot, self._steps[bucket], pixel_bytes, answer_bytes)
            indices, probabilities, embeddings = layout.copy_out(
                slot.answers, count, top_k, with_embeddings
            )
        return BatchOutput(indices, probabilities, embeddings, compute_s)

    def padded(self, images: int) -> int:
        """Return the bucket that a batch of `images` is computed in."""
        return self.buckets.bucket_for(images)

    def close(self) -> None:
        """Free the weights at once, and the graphs with the last engine of the device.

        Waits for batches in flight, and while another engine of the device is being built.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
        with self._device.build_lock:
            with self._device.idle():
                self._steps.clear()
                del self._forward, self._compiled, self._pixels, self._answers
            self._device.unregister()

    def _build(self, network: Network, transform: Transform, dtype: torch.dtype) -> None:
        network = network.requires_grad_(False).to(device=self._device.device, dtype=dtype)
        network = network.to(memory_format=torch.channels_last)
        largest = self._layouts[self.buckets.largest]
        self._forward = Forward(network, transform, largest.top_k)
        self._device.sync()
        self._pixels = self._device.zeros(self._pixel_bytes(largest.rows))
        self._answers = self._device.zeros(largest.nbytes)
        self._compiled: Callable[[Tensor], Outputs] = self._forward
        if self.compiled:
            self._compiled = compiled(self._forward)
        self._steps: dict[int, GraphBinding] = {}
        # The largest first: the other graphs reuse its memory.
        for size in reversed(self.buckets.sizes):
            self._steps[size] = GraphBinding(self._pixels, self._answers, self._launcher(size))
        if not self.captured:
            # The same for all sizes, so that warm-up measures the way that requests are computed.
            for size in self.buckets.sizes:
                launch = self._work(size, self._forward)
                self._steps[size] = GraphBinding(self._pixels, self._answers, launch)

    def _launcher(self, size: int) -> Callable[[], None]:
        """Return the function that launches a batch of `size`, a captured graph's if possible."""
        self._prepare(size)
        if self.captured:
            try:
                return self._device.capture(self._work(size, self._compiled))
            except torch.OutOfMemoryError:
                raise  # kernels launched one by one need as much memory
            except RuntimeError:
                self.captured = self.compiled = False
                log.warning(
                    "a batch of %d cannot be captured as a CUDA graph; kernels are launched one by"
                    " one instead, which is slower for small batches",
                    size,
                    exc_info=True,
                )
        return self._work(size, self._forward)

    def _prepare(self, size: int) -> None:
        """Compile for batches of `size`; fall back to PyTorch's own kernels if that fails."""
        if self.compiled:
            try:
                with _compile_limits():
                    self._device.prepare(self._work(size, self._compiled))
                return
            except Exception:  # of the compiler, the C compiler or Triton, of any class
                self.compiled = False
                self._compiled = self._forward
                log.warning(
                    "the network cannot be compiled; it runs in PyTorch's own kernels instead,"
                    " which are slower. Is there a C compiler, and Triton?",
                    exc_info=True,
                )
        self._device.prepare(self._work(size, self._forward))

    def _work(self, size: int, forward: Callable[[Tensor], Outputs]) -> Callable[[], None]:
        """Return the function that computes a batch of `size` in this engine's buffers."""
        pixels = self._pixels[: self._pixel_bytes(size)].view(size, *self._input_size, 3)
        views = self._layouts[size].tensor_views(self._answers)
        return functools.partial(_compute, forward, pixels, views)

    def _pixel_bytes(self, images: int) -> int:
        return images * math.prod(self._input_size) * 3


def compiled(forward: Forward) -> Callable[[Tensor], Outputs]:
    """Return `forward`, which is compiled for each batch size at its first call.

    Without inductor's own CUDA graphs, which belong to the thread that made them. As one graph of
    operations or not at all, so that no graph break goes unnoticed.
    """
    function: Callable[[Tensor], Outputs] = torch.compile(
        forward, fullgraph=True, dynamic=False, options={"triton.cudagraphs": False}
    )
    return function


@torch.inference_mode()
def _compute(forward: Callable[[Tensor], Outputs], pixels: Tensor, views: Outputs) -> None:
    """Compute the outputs and copy them to `views`."""
    for view, output in zip(views, forward(pixels), strict=True):
        view.copy_(output)


def _set_kernel_choice() -> None:
    """Let cuDNN benchmark its kernels once per size; keep full fp32 precision."""
    torch.backends.cudnn.benchmark = True
    # Convolutions would otherwise round fp32 to TF32's 10 bits; fp16 is the option for that.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _compile_limits() -> contextlib.AbstractContextManager[None]:
    patched: contextlib.AbstractContextManager[None] = torch._dynamo.config.patch(_COMPILE_LIMITS)
    return patched
