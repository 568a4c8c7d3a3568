"""The engine for CUDA: compiled, one captured graph per batch size, copies beside computing."""

from __future__ import annotations

import contextlib
import functools
import logging
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
from .device import CudaDevice, Step
from .forward import Answers, Forward
from .output_layout import AnswerLayout

log = logging.getLogger(__name__)

# Sorted out within the graph; whoever wants more gets them sorted on the CPU.
CAPTURED_TOP_K = 16
# Dynamo counts what it compiles per code object: here each bucket of each variant.
_COMPILE_LIMITS: dict[str, Any] = {"recompile_limit": 1024, "accumulated_recompile_limit": 4096}


class CudaEngine:
    """One variant on a CUDA device that it may share with others.

    A network of another precision, compiled and captured: for each bucket one CUDA graph that
    normalises, runs the network, and leaves softmax, top-k and embeddings in one run of bytes.
    Building takes a while, tens of seconds a bucket where nothing is in the compiler's cache, and
    leaves what other engines on the device compute alone, but for the moment of each capture.

    Where the compiler fails, PyTorch's own kernels are captured; where capturing fails, they are
    launched one by one. Both are logged.

    Args:
        network: Float, in eval mode, its BatchNorms folded; moved to the device.
        transform: The variant's.
        device: The device's one object, shared by all its engines.
        precision: "fp32" (no TF32), "fp16" or "bf16".
        max_batch_size: The largest batch.
        buckets: Batch sizes to prepare instead of the powers of two.
        compile_network: Whether to compile what is captured, with inductor.
        capture: Whether to capture graphs.

    Attributes:
        compiled: Whether what runs was compiled.
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
        self._crop = transform.crop
        self._layouts = {
            size: AnswerLayout(
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
        with device.building:
            _set_kernel_choice()
            device.enter(
                self._pixel_bytes(self.buckets.largest),
                self._layouts[self.buckets.largest].nbytes,
            )
            try:
                self._build(network, transform, DTYPES[precision])
            except BaseException:
                device.leave()
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
        answer_bytes = layout.bytes_of(with_embeddings, top_k > layout.top_k)
        with self._device.slot() as slot:
            # The bucket's other rows are left as they are: pixels of any earlier batch, whose
            # answers are copied home beside the wanted ones, and read by nobody.
            pixels = slot.pixels[:pixel_bytes].reshape(count, self._crop, self._crop, 3)
            np.stack(images, out=pixels)
            compute_s = self._device.run(slot, self._steps[bucket], pixel_bytes, answer_bytes)
            indices, probabilities, embeddings = layout.read(
                slot.answers, count, top_k, with_embeddings
            )
        return BatchOutput(indices, probabilities, embeddings, compute_s)

    def padded(self, images: int) -> int:
        """Return the bucket that a batch of `images` is computed in."""
        return self.buckets.holding(images)

    def close(self) -> None:
        """Give the memory back: the weights' at once, the graphs' with the device's last engine.

        Waits for batches in flight, and while another engine of the device is being built.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
        with self._device.building:
            with self._device.idle():
                self._steps.clear()
                del self._forward, self._compiled, self._pixels, self._answers
            self._device.leave()

    def _build(self, network: Network, transform: Transform, dtype: torch.dtype) -> None:
        network = network.requires_grad_(False).to(device=self._device.device, dtype=dtype)
        network = network.to(memory_format=torch.channels_last)
        largest = self._layouts[self.buckets.largest]
        self._forward = Forward(network, transform, largest.top_k)
        self._device.settle()
        self._pixels = self._device.zeros(self._pixel_bytes(largest.rows))
        self._answers = self._device.zeros(largest.nbytes)
        self._compiled: Callable[[Tensor], Answers] = self._forward
        if self.compiled:
            self._compiled = compiled(self._forward)
        self._steps: dict[int, Step] = {}
        # The largest first: what its graph has used and left is room for all the others.
        for size in reversed(self.buckets.sizes):
            self._steps[size] = Step(self._pixels, self._answers, self._launcher(size))
        if not self.captured:
            # One way for all sizes, so that what was measured says what is served.
            for size in self.buckets.sizes:
                launch = self._work(size, self._forward)
                self._steps[size] = Step(self._pixels, self._answers, launch)

    def _launcher(self, size: int) -> Callable[[], None]:
        """Return what launches a batch of `size`: a graph's replay, if that works."""
        self._prepare(size)
        if self.captured:
            try:
                return self._device.capture(self._work(size, self._compiled))
            except torch.OutOfMemoryError:
                raise  # one by one, kernels would need as much
            except RuntimeError:
                self.captured = self.compiled = False
                log.warning(
                    "a batch of %d cannot be captured as a CUDA graph; kernels are launched one by"
                    " one instead, which small batches are slower for",
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
            except Exception:  # the compiler's, the C compiler's, Triton's: of any class
                self.compiled = False
                self._compiled = self._forward
                log.warning(
                    "the network cannot be compiled; it runs in PyTorch's own kernels instead,"
                    " which are slower. Is there a C compiler, and Triton?",
                    exc_info=True,
                )
        self._device.prepare(self._work(size, self._forward))

    def _work(self, size: int, forward: Callable[[Tensor], Answers]) -> Callable[[], None]:
        """Return what computes a batch of `size`, from and to this engine's buffers."""
        pixels = self._pixels[: self._pixel_bytes(size)].view(size, self._crop, self._crop, 3)
        places = self._layouts[size].views(self._answers)
        return functools.partial(_compute, forward, pixels, places)

    def _pixel_bytes(self, images: int) -> int:
        return images * self._crop * self._crop * 3


def compiled(forward: Forward) -> Callable[[Tensor], Answers]:
    """Return `forward`, to be compiled for each size of batch that it is called with.

    Without inductor's own CUDA graphs, which belong to the thread that made them; as one graph of
    operations or not at all, so that nothing is lost unnoticed.
    """
    function: Callable[[Tensor], Answers] = torch.compile(
        forward, fullgraph=True, dynamic=False, options={"triton.cudagraphs": False}
    )
    return function


@torch.inference_mode()
def _compute(forward: Callable[[Tensor], Answers], pixels: Tensor, places: Answers) -> None:
    """Compute answers and leave them in `places`."""
    for place, answer in zip(places, forward(pixels), strict=True):
        place.copy_(answer)


def _set_kernel_choice() -> None:
    """Let cuDNN measure which of its kernels is fastest, once per size; keep fp32 whole."""
    torch.backends.cudnn.benchmark = True
    # Convolutions would otherwise round fp32 to TF32's 10 bits; who wants that asks for fp16.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _compile_limits() -> contextlib.AbstractContextManager[None]:
    patched: contextlib.AbstractContextManager[None] = torch._dynamo.config.patch(_COMPILE_LIMITS)
    return patched
