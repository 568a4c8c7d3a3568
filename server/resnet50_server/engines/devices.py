"""CUDA devices and torch's threads; torch is imported by the calls, not with this module."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from resnet50_server.settings import Settings

if TYPE_CHECKING:
    from .cuda.device import CudaDevice


def cuda_device_count() -> int:
    """Return how many CUDA devices torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cuda_available() -> bool:
    """Return whether torch can use a CUDA device."""
    return cuda_device_count() > 0


def cuda_memory_bytes(device: str) -> int:
    """Return how much memory of a device is in use, by all processes.

    Args:
        device: "cuda:N".
    """
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free


def torch_version() -> str:
    """Return torch's version, for error messages."""
    import torch

    return str(torch.__version__)


@functools.cache
def cuda_device(name: str) -> CudaDevice:
    """Return the one object that all engines on a CUDA device share.

    Args:
        name: "cuda" or "cuda:N".
    """
    from .cuda.device import CudaDevice

    # One batch computes while the next one is stacked and copied.
    return CudaDevice(int(name.partition(":")[2] or 0), batches_in_flight=2)


def set_threads(count: int) -> None:
    """Make torch use `count` CPU threads for operations called from this thread.

    A thread takes over the number that any thread set last when it first uses torch, so that is
    triggered before the number is set.
    """
    import torch

    torch.get_num_threads()
    torch.set_num_threads(count)


def thread_initializer(count: int, settings: Settings) -> Callable[[], object]:
    """Return a function that sets torch's threads in a new thread; a no-op with a stub engine.

    Args:
        count: CPU threads of an operation.
        settings: For the engine.
    """
    return _do_nothing if settings.stub_engine else partial(set_threads, count)


def _do_nothing() -> None:
    pass
