"""One CUDA device, shared by the engines of all variants on it.

A batch crosses three streams, so that copies of one overlap the computing of another:

    copy in     pinned memory of the slot  ->  device memory of the slot
    compute     slot -> the graph's input, replay, the graph's output -> slot
    copy out    device memory of the slot  ->  pinned memory of the slot

Memory of graphs is used on the compute stream alone, one batch after the other. So all graphs of
all variants can share one memory pool: no two run concurrently, and the outputs of one are copied
before the next overwrites them. A slot belongs to one batch until its outputs have been read, so
nothing else needs ordering.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .buffer_pool import BufferPool

# "Within a process, only one capture may be underway at a time" (torch's notes on CUDA semantics).
_CAPTURING = threading.Lock()
# torch has a pool of 32 streams per priority and hands them out in turn. Libraries use that of
# priority 0, and must not get the stream that captures.
_PRIORITY = -1


@dataclass(frozen=True)
class GraphBinding:
    """The computation of one bucket of one variant, bound to its buffers.

    Attributes:
        pixels: Input of `launch`: uint8, flat, on the device.
        answers: Output of `launch`: uint8, flat, on the device.
        launch: Enqueues the computation on the current stream.
    """

    pixels: Tensor
    answers: Tensor
    launch: Callable[[], None]


class Slot:
    """Buffers of one batch in flight, on the host and on the device, and its events.

    Attributes:
        pixels: The pinned input as a NumPy array: uint8, flat.
        answers: The pinned output: uint8, flat, on the CPU.
    """

    pixels: NDArray[np.uint8]

    def __init__(self) -> None:
        self.free()
        self.started, self.arrived, self.begun, self.computed = (new_event() for _ in range(4))
        # A waiting thread sleeps, and leaves its CPU to decoding.
        self.done = new_event(blocking=True)

    def allocate(self, pixel_bytes: int, answer_bytes: int) -> None:
        """Replace the buffers by new ones, on the current device; no batch uses the slot.

        All of them or none: if memory is short, the batches of other engines keep the old ones.

        Raises:
            RuntimeError: Out of memory.
        """
        host_pixels = torch.empty(pixel_bytes, dtype=torch.uint8, pin_memory=True)
        answers = torch.empty(answer_bytes, dtype=torch.uint8, pin_memory=True)
        device_pixels = torch.empty(pixel_bytes, dtype=torch.uint8, device="cuda")
        device_answers = torch.empty(answer_bytes, dtype=torch.uint8, device="cuda")
        self.host_pixels, self.answers = host_pixels, answers
        self.device_pixels, self.device_answers = device_pixels, device_answers
        self.pixels = host_pixels.numpy()

    def free(self) -> None:
        """Free the buffers; no batch uses the slot."""
        nothing = torch.empty(0, dtype=torch.uint8)
        self.host_pixels = self.answers = self.device_pixels = self.device_answers = nothing
        self.pixels = nothing.numpy()


class CudaDevice:
    """Streams, pinned slots and the graphs' memory of one device.

    All engines on a device share one object; see the module's docstring. Thread-safe.

    Args:
        index: CUDA's index of the device.
        batches_in_flight: Maximum batches in flight: one computes while others are prepared, copied
            or read.

    Attributes:
        device: Device for tensors and modules.
        build_lock: Held while an engine is built: compiling benchmarks kernels, which other builds
            would disturb.
    """

    def __init__(self, index: int = 0, batches_in_flight: int = 2) -> None:
        self.device = torch.device("cuda", index)
        self.build_lock = threading.Lock()
        self._launching = threading.Lock()
        self._slot_bytes = (0, 0)
        self._engines = 0
        # Reset all together: see `unregister`.
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool: Any = None  # an opaque token
        with torch.cuda.device(self.device):
            self._copy_in, self._compute, self._copy_out, self._capture = (
                _stream(_PRIORITY) for _ in range(4)
            )
            self._prepare = _stream()
            self._slots = BufferPool(Slot() for _ in range(batches_in_flight))

    def register(self, pixel_bytes: int, answer_bytes: int) -> None:
        """Register an engine: make each slot large enough for its largest batch.

        If slots have to grow, it waits until the batches in flight have been read.

        Args:
            pixel_bytes: Size of its largest input.
            answer_bytes: Size of its largest output.

        Raises:
            RuntimeError: Out of memory. The engine is not registered.
        """
        wanted = (max(pixel_bytes, self._slot_bytes[0]), max(answer_bytes, self._slot_bytes[1]))
        if wanted != self._slot_bytes:
            with self._slots.acquire_all() as slots, torch.cuda.device(self.device):
                for slot in slots:
                    slot.allocate(*wanted)
                # Work queued for the previous owners of this memory is finished.
                torch.cuda.current_stream().synchronize()
            self._slot_bytes = wanted
        self._engines += 1

    def idle(self) -> AbstractContextManager[object]:
        """Wait until all batches in flight have been read; none starts within the block."""
        return self._slots.acquire_all()

    def unregister(self) -> None:
        """Unregister an engine, which launches nothing more; the last one frees all memory.

        Graphs are not reset one by one: in torch 2.14 resetting one frees the cuBLAS workspace of
        the stream that it was captured on, which the others still use (pytorch#193402). So graphs
        of a closed engine stay until the last engine is unregistered; its weights do not.
        """
        self._engines -= 1
        with (
            self._slots.acquire_all() as slots,  # first, as in `run`
            self._launching,
            _CAPTURING,
            torch.cuda.device(self.device),
        ):
            if not self._engines:
                self._sync()
                for graph in self._graphs:
                    graph.reset()
                self._graphs.clear()
                # A pool without graphs must not be used again.
                self._pool = None
                for slot in slots:
                    slot.free()
                self._slot_bytes = (0, 0)
            torch.cuda.empty_cache()

    def zeros(self, nbytes: int) -> Tensor:
        """Return uint8 [nbytes] of zeros on the device, ready for every stream."""
        with torch.cuda.device(self.device):
            tensor = torch.zeros(nbytes, dtype=torch.uint8, device=self.device)
            torch.cuda.current_stream().synchronize()
        return tensor

    def sync(self) -> None:
        """Wait until the device has finished the work that this thread queued."""
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().synchronize()

    def prepare(self, work: Callable[[], None]) -> None:
        """Run `work` while other engines compute, to compile it and to choose kernels.

        It has its own stream: libraries have scratch memory per stream, and that of captured graphs
        must not be written by concurrent work.
        """
        with torch.cuda.device(self.device), torch.cuda.stream(self._prepare):
            work()
            self._prepare.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture `work` as a graph; return a function that replays it on the current stream.

        No batch is launched during the capture. `work` must have been run by `prepare` in this
        thread, since cuDNN's choice of kernels is per thread.

        Raises:
            RuntimeError: It cannot be captured.
        """
        with (
            self._launching,
            _CAPTURING,
            torch.cuda.device(self.device),
            torch.cuda.stream(self._capture),  # restored also where `torch.cuda.graph` fails to
        ):
            # Replays in flight use the same scratch memory as the warm-up run.
            self._compute.synchronize()
            work()
            self._capture.synchronize()
            graph = torch.cuda.CUDAGraph()
            self._graphs.append(graph)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Other threads may call cudaMalloc meanwhile, for a variant that is being loaded.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._capture, capture_error_mode="thread_local"
            ):
                work()
        return graph.replay

    def slot(self) -> AbstractContextManager[Slot]:
        """Acquire a slot for a batch, waiting while all are in use."""
        return self._slots.acquire()

    def run(self, slot: Slot, step: GraphBinding, pixel_bytes: int, answer_bytes: int) -> float:
        """Copy a slot's pixels to the device, compute, and copy the outputs back.

        Args:
            slot: Acquired by the caller, with its `pixels` filled.
            step: The computation.
            pixel_bytes: Length of the pixels at the start of the slot.
            answer_bytes: Length of the outputs to copy from the start of the step's.

        Returns:
            The device's own time in seconds: copy in, compute and copy out, without waiting for
            other batches in between.

        Raises:
            RuntimeError: CUDA failed; the slot can be used again.
        """
        with self._idle_after_failure():
            with self._launching, torch.cuda.device(self.device):
                self._enqueue(slot, step, pixel_bytes, answer_bytes)
            slot.done.synchronize()
        taken_ms: float = (
            slot.started.elapsed_time(slot.arrived)
            + slot.begun.elapsed_time(slot.computed)
            + slot.computed.elapsed_time(slot.done)
        )
        return taken_ms / 1000.0

    def _enqueue(self, slot: Slot, step: GraphBinding, pixel_bytes: int, answer_bytes: int) -> None:
        """Launch a batch on the three streams without waiting for it."""
        with torch.cuda.stream(self._copy_in):
            slot.started.record()
            slot.device_pixels[:pixel_bytes].copy_(
                slot.host_pixels[:pixel_bytes], non_blocking=True
            )
            slot.arrived.record()
        with torch.cuda.stream(self._compute):
            slot.arrived.wait()
            slot.begun.record()
            step.pixels[:pixel_bytes].copy_(slot.device_pixels[:pixel_bytes])
            step.launch()
            slot.device_answers[:answer_bytes].copy_(step.answers[:answer_bytes])
            slot.computed.record()
        with torch.cuda.stream(self._copy_out):
            slot.computed.wait()
            slot.answers[:answer_bytes].copy_(slot.device_answers[:answer_bytes], non_blocking=True)
            slot.done.record()

    @contextmanager
    def _idle_after_failure(self) -> Iterator[None]:
        """After a failure, wait until the batch no longer uses its buffers."""
        try:
            yield
        except BaseException:
            # A lost device raises again.
            with contextlib.suppress(RuntimeError):
                self._sync()
            raise

    def _sync(self) -> None:
        """Wait for the three streams; not for the device, which is not allowed during a capture."""
        for stream in (self._copy_in, self._compute, self._copy_out):
            stream.synchronize()


def _stream(priority: int = 0) -> torch.cuda.Stream:
    """Return a stream of the current device; lower numbers have higher priority."""
    return torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]


def new_event(blocking: bool = False) -> torch.cuda.Event:
    """Return an event; with `blocking`, a thread that waits for it sleeps."""
    event = torch.cuda.Event(enable_timing=True, blocking=blocking)  # type: ignore[no-untyped-call]
    return event
