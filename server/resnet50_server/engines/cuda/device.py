"""One CUDA device, shared by the engines of all variants on it.

A batch crosses three streams, so that copies of one overlap the computing of another:

    copy in     pinned memory of the slot  ->  device memory of the slot
    compute     slot -> the graph's input, replay, the graph's output -> slot
    copy out    device memory of the slot  ->  pinned memory of the slot

Everything that graphs touch is touched on the compute stream alone, one batch after the other.
That is what lets all graphs of all variants share one memory pool: none runs beside another, and
what one has left behind is copied out before the next overwrites it. Slots belong to one batch
until it has been read, so nothing else needs ordering.
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

from .buffer_pool import Ring

# "Within a process, only one capture may be underway at a time" (torch's notes on CUDA semantics).
_CAPTURING = threading.Lock()
# A pool of streams of its own in torch, which hands out each of its 32 again after 32 more: that of
# priority 0 belongs to decoders and libraries, and none of them may get the stream that captures.
_PRIORITY = -1


@dataclass(frozen=True)
class Step:
    """What the device computes for one bucket of one variant.

    Attributes:
        pixels: uint8, flat, on the device; what `launch` reads.
        answers: uint8, flat, on the device; what `launch` writes.
        launch: Enqueues the computation on the current stream.
    """

    pixels: Tensor
    answers: Tensor
    launch: Callable[[], None]


class Slot:
    """What one batch in flight holds: its buffers on both sides, and marks on its way.

    Attributes:
        pixels: The pinned input as NumPy sees it: uint8, flat.
        answers: The pinned output: uint8, flat, on the CPU.
    """

    pixels: NDArray[np.uint8]

    def __init__(self) -> None:
        self.free()
        self.started, self.arrived, self.begun, self.computed = (_event() for _ in range(4))
        # Who waits sleeps, instead of taking a core from those who decode.
        self.done = _event(blocking=True)

    def allocate(self, pixel_bytes: int, answer_bytes: int) -> None:
        """Replace the buffers by new ones, on the current device; no batch holds the slot.

        All of them or none: where memory is short, the batches of other engines go on with the old.

        Raises:
            RuntimeError: There is no memory.
        """
        host_pixels = torch.empty(pixel_bytes, dtype=torch.uint8, pin_memory=True)
        answers = torch.empty(answer_bytes, dtype=torch.uint8, pin_memory=True)
        device_pixels = torch.empty(pixel_bytes, dtype=torch.uint8, device="cuda")
        device_answers = torch.empty(answer_bytes, dtype=torch.uint8, device="cuda")
        self.host_pixels, self.answers = host_pixels, answers
        self.device_pixels, self.device_answers = device_pixels, device_answers
        self.pixels = host_pixels.numpy()

    def free(self) -> None:
        """Give the buffers back; no batch holds the slot."""
        nothing = torch.empty(0, dtype=torch.uint8)
        self.host_pixels = self.answers = self.device_pixels = self.device_answers = nothing
        self.pixels = nothing.numpy()


class CudaDevice:
    """Streams, pinned slots and the graphs' memory of one device.

    All engines on a device share one of these; see the module's docstring. Safe to use from several
    threads.

    Args:
        index: Which device, as CUDA counts them.
        batches_in_flight: How many batches may be under way at once: one computes while others are
            prepared, copied or read.

    Attributes:
        device: What tensors and modules are moved to.
        building: Held by whoever builds an engine: compiling measures kernels with the device to
            itself, as far as other builders go.
    """

    def __init__(self, index: int = 0, batches_in_flight: int = 2) -> None:
        self.device = torch.device("cuda", index)
        self.building = threading.Lock()
        self._launching = threading.Lock()
        self._slot_bytes = (0, 0)
        self._engines = 0
        # None is reset before all are: see `leave`.
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool: Any = None  # an opaque token
        with torch.cuda.device(self.device):
            self._copy_in, self._compute, self._copy_out, self._capture = (
                _stream(_PRIORITY) for _ in range(4)
            )
            self._prepare = _stream()
            self._ring = Ring(Slot() for _ in range(batches_in_flight))

    def enter(self, pixel_bytes: int, answer_bytes: int) -> None:
        """Let an engine in: make each slot hold its largest batch.

        Waits until the batches in flight have been read, if slots have to grow.

        Args:
            pixel_bytes: Its largest input.
            answer_bytes: Its largest output.

        Raises:
            RuntimeError: There is no memory. The engine is not in then.
        """
        wanted = (max(pixel_bytes, self._slot_bytes[0]), max(answer_bytes, self._slot_bytes[1]))
        if wanted != self._slot_bytes:
            with self._ring.all() as slots, torch.cuda.device(self.device):
                for slot in slots:
                    slot.allocate(*wanted)
                # Nothing that was queued for memory which these had before touches them now.
                torch.cuda.current_stream().synchronize()
            self._slot_bytes = wanted
        self._engines += 1

    def idle(self) -> AbstractContextManager[object]:
        """Wait until all batches in flight have been read, and let none begin meanwhile."""
        return self._ring.all()

    def leave(self) -> None:
        """Let an engine out that will not launch again; the last one frees all memory.

        Graphs are not reset one by one: in torch 2.14 resetting one frees the cuBLAS workspace of
        the stream that it was captured on, which the others still use (pytorch#193402). Until the
        last engine leaves, a closed one's graphs stay; its weights do not.
        """
        self._engines -= 1
        with (
            self._ring.all() as slots,  # first, as in `run`
            self._launching,
            _CAPTURING,
            torch.cuda.device(self.device),
        ):
            if not self._engines:
                self._settle()
                for graph in self._graphs:
                    graph.reset()
                self._graphs.clear()
                # A pool that no graph uses any more must not be used again.
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

    def settle(self) -> None:
        """Wait until what this thread has queued on the device has been done."""
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().synchronize()

    def prepare(self, work: Callable[[], None]) -> None:
        """Run `work` beside what other engines compute: to compile it, and to choose kernels.

        On a stream of its own: libraries keep scratch memory per stream, and what captured graphs
        use of it must not be written by anything that runs beside them.
        """
        with torch.cuda.device(self.device), torch.cuda.stream(self._prepare):
            work()
            self._prepare.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture `work` as a graph; return what replays it on the current stream.

        No batch is launched meanwhile. `work` has been run by `prepare`, in this thread: cuDNN
        remembers per thread which kernels it has chosen.

        Raises:
            RuntimeError: It cannot be captured.
        """
        with (
            self._launching,
            _CAPTURING,
            torch.cuda.device(self.device),
            torch.cuda.stream(self._capture),  # restored also where `torch.cuda.graph` fails to
        ):
            # Replays under way use the same scratch memory as the run that warms up.
            self._compute.synchronize()
            work()
            self._capture.synchronize()
            graph = torch.cuda.CUDAGraph()
            self._graphs.append(graph)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Other threads may call cudaMalloc meanwhile: decoders, or a variant being loaded.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._capture, capture_error_mode="thread_local"
            ):
                work()
        return graph.replay

    def slot(self) -> AbstractContextManager[Slot]:
        """Hold a slot for a batch; waits while all are in flight."""
        return self._ring.one()

    def run(self, slot: Slot, step: Step, pixel_bytes: int, answer_bytes: int) -> float:
        """Bring a slot's pixels to the device, compute, and bring the answers back.

        Args:
            slot: Held by the caller, its `pixels` filled.
            step: What to compute.
            pixel_bytes: How many of the slot's first bytes are pixels.
            answer_bytes: How many of the first bytes of the step's answers are wanted.

        Returns:
            How long the device took, in seconds, by its own clock: copying in, computing and
            copying out, without what the batch waited for others in between.

        Raises:
            RuntimeError: CUDA failed; the slot may be used again nevertheless.
        """
        with self._given_back_idle():
            with self._launching, torch.cuda.device(self.device):
                self._enqueue(slot, step, pixel_bytes, answer_bytes)
            slot.done.synchronize()
        taken_ms: float = (
            slot.started.elapsed_time(slot.arrived)
            + slot.begun.elapsed_time(slot.computed)
            + slot.computed.elapsed_time(slot.done)
        )
        return taken_ms / 1000.0

    def _enqueue(self, slot: Slot, step: Step, pixel_bytes: int, answer_bytes: int) -> None:
        """Launch a batch on the three streams; waits for none of it."""
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
    def _given_back_idle(self) -> Iterator[None]:
        """After a failure, wait until nothing of the batch is still under way in its buffers."""
        try:
            yield
        except BaseException:
            # A device that is lost says so again.
            with contextlib.suppress(RuntimeError):
                self._settle()
            raise

    def _settle(self) -> None:
        """Wait for the three streams; not for the device, which must not be asked in a capture."""
        for stream in (self._copy_in, self._compute, self._copy_out):
            stream.synchronize()


def _stream(priority: int = 0) -> torch.cuda.Stream:
    """Return one of the current device's streams; a lower priority goes first."""
    return torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]


def _event(blocking: bool = False) -> torch.cuda.Event:
    """Return a mark on a stream; `blocking` if who waits for it should sleep."""
    event = torch.cuda.Event(enable_timing=True, blocking=blocking)  # type: ignore[no-untyped-call]
    return event
