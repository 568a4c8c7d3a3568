"""A `CudaDevice` without CUDA: the same interface, everything computed at once on the CPU.

It stands in for streams, events and pinned memory only: buffers, buckets, layouts and the captured
function are the real ones. It cannot show the order of work on a device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from resnet50_server.engines.cuda.buffer_pool import BufferPool
from resnet50_server.engines.cuda.device import CudaDevice, GraphBinding


class HostSlot:
    def allocate(self, pixel_bytes: int, answer_bytes: int) -> None:
        self.host_pixels = torch.zeros(pixel_bytes, dtype=torch.uint8)
        self.answers = torch.zeros(answer_bytes, dtype=torch.uint8)
        self.pixels = self.host_pixels.numpy()


class HostDevice(CudaDevice):
    """A device whose captured functions are called again; `captures` and `prepared` count."""

    def __init__(self, batches_in_flight: int = 2) -> None:
        self.device = torch.device("cpu")
        self.build_lock = threading.Lock()
        self.launching = threading.Lock()
        self.engines, self.captures, self.prepared, self.launches = 0, 0, 0, 0
        self.capture_error: BaseException | None = None
        self._slot_bytes = (0, 0)
        self.slots = [HostSlot() for _ in range(batches_in_flight)]
        self._slots = BufferPool(self.slots)  # type: ignore[arg-type]

    def register(self, pixel_bytes: int, answer_bytes: int) -> None:
        self.engines += 1
        self._slot_bytes = (
            max(pixel_bytes, self._slot_bytes[0]),
            max(answer_bytes, self._slot_bytes[1]),
        )
        with self._slots.acquire_all() as slots:
            for slot in slots:
                slot.allocate(*self._slot_bytes)

    def unregister(self) -> None:
        self.engines -= 1

    def zeros(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def sync(self) -> None: ...

    def prepare(self, work: Callable[[], None]) -> None:
        self.prepared += 1
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.capture_error is not None:
            raise self.capture_error
        self.captures += 1
        return work

    def run(self, slot: Any, step: GraphBinding, pixel_bytes: int, answer_bytes: int) -> float:
        started = time.perf_counter()
        with self.launching:
            step.pixels[:pixel_bytes].copy_(slot.host_pixels[:pixel_bytes])
            step.launch()
            self.launches += 1
            slot.answers.fill_(0xFF)  # what is not copied is not a number
            slot.answers[:answer_bytes].copy_(step.answers[:answer_bytes])
        return time.perf_counter() - started
