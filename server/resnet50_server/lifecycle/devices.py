"""What computes: a scheduler and its threads for each device."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.engines.cpu import Division
from resnet50_server.engines.devices import set_threads
from resnet50_server.events import ServerEvents
from resnet50_server.runtime.cpus import cpus
from resnet50_server.runtime.fatal import FatalError
from resnet50_server.runtime.worker_threads import WorkerThreads
from resnet50_server.settings import Settings

if TYPE_CHECKING:
    from resnet50_server.engines.cuda.device import CudaDevice

log = logging.getLogger(__name__)

# For engines to be closed when the server stops. All requests have been answered by then, or have
# had their time.
CLOSE_S = 5.0
LOOK_S = 0.005


def division(settings: Settings) -> Division:
    """Return how engines on the CPU divide the CPU budget."""
    return Division.divide(cpus(), settings.instances, settings.engine_threads)


@functools.cache
def cuda_device(name: str) -> CudaDevice:
    """Return the one object that all engines on a CUDA device share."""
    from resnet50_server.engines.cuda.device import CudaDevice

    # One batch computes while the next one is stacked and copied; see `Devices.get`.
    return CudaDevice(torch.device(name).index or 0, batches_in_flight=2)


class Devices:
    """One scheduler and its engine threads per device, made when a variant needs them.

    Args:
        settings: For the batch policy and thread counts.
        on_fatal: See `Scheduler`.
        events: Receive every batch.
    """

    def __init__(
        self,
        settings: Settings,
        on_fatal: Callable[[FatalError], None],
        events: ServerEvents | None = None,
    ) -> None:
        self._settings = settings
        self._on_fatal = on_fatal
        self._events = events
        self._schedulers: dict[str, Scheduler] = {}
        self._threads: dict[str, WorkerThreads] = {}

    def get(self, device: str) -> tuple[Scheduler, WorkerThreads]:
        """Return a device's scheduler and engine threads."""
        if device not in self._schedulers:
            settings = self._settings
            if device != "cpu":
                # One batch computes while the next one is stacked and copied. PyTorch's eager
                # mode has only one stream for both.
                workers, prefetch = 1, int(settings.engine != "torch")
                each = settings.engine_threads or cpus()
            else:
                divided = division(settings)
                workers, prefetch, each = divided.instances, 0, divided.each
                if settings.engine in ("null", "timed"):
                    workers = 1  # they simulate one device
            threads = WorkerThreads(
                workers + prefetch, f"engine-{device}", partial(set_threads, each)
            )
            policy = BatchPolicy(
                settings.max_batch_size,
                settings.max_queue_delay_ms,
                settings.max_queue_size,
                settings.max_queue_wait_s,
            )
            self._schedulers[device] = Scheduler(
                policy,
                threads,
                self._on_fatal,
                workers,
                prefetch,
                self._events,
                device,
                settings.engine_timeout_s,
            )
            self._threads[device] = threads
        return self._schedulers[device], self._threads[device]

    @property
    def schedulers(self) -> Mapping[str, Scheduler]:
        """The schedulers by their devices."""
        return self._schedulers

    async def close(self) -> None:
        """Stop schedulers and close engines; what takes longer than `CLOSE_S` is left as it is."""
        for scheduler in self._schedulers.values():
            await scheduler.close()
        # Whoever stops a server twice finds nothing left to close.
        all_threads, self._threads = self._threads, {}
        closing = [
            asyncio.create_task(_close_engines(device, scheduler), name=f"close {device}")
            for device in all_threads
            if not (scheduler := self._schedulers[device]).hung
        ]
        if closing:
            _, left = await asyncio.wait(closing, timeout=CLOSE_S)
            for task in left:
                log.warning(
                    "an engine was not closed (%s): it has not come back within %g s",
                    task.get_name(),
                    CLOSE_S,
                )
                task.cancel()
        for threads in all_threads.values():
            threads.close()


async def _close_engines(device: str, scheduler: Scheduler) -> None:
    """Close a device's engines once its last batches have ended."""
    while not scheduler.idle:
        await asyncio.sleep(LOOK_S)
    for engine in scheduler.engines:
        try:
            await asyncio.to_thread(engine.close)
        except Exception:
            log.exception("an engine on %s failed to close", device)
