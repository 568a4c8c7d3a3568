"""A scheduler and engine threads for each device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.engines.devices import thread_initializer
from resnet50_server.events import ServerEvents
from resnet50_server.runtime.cpus import CpuPlan, cpus
from resnet50_server.runtime.fatal import FatalError
from resnet50_server.runtime.worker_threads import WorkerThreads
from resnet50_server.settings import Settings

log = logging.getLogger(__name__)

# Time limit for closing the engines when the server stops.
CLOSE_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.005


def cpu_plan(settings: Settings) -> CpuPlan:
    """Return how CPU engines divide the CPU budget into instances and threads."""
    return CpuPlan.divide(cpus(), settings.instances, settings.engine_threads)


class Devices:
    """One scheduler with its engine threads per device, created when a variant needs them.

    Args:
        settings: Batch policy and thread counts.
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
                # One batch computes while the next one is stacked and copied; PyTorch's eager mode
                # has one stream for both.
                workers, prefetch = 1, int(settings.engine != "torch")
                each = settings.engine_threads or cpus()
            else:
                plan = cpu_plan(settings)
                workers, prefetch, each = plan.instances, 0, plan.threads
                if settings.stub_engine:
                    workers = 1  # they simulate one device
            initialize = thread_initializer(each, settings)
            threads = WorkerThreads(workers + prefetch, f"engine-{device}", initialize)
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
        """The schedulers by device."""
        return self._schedulers

    async def close(self) -> None:
        """Stop schedulers and close engines, within `CLOSE_TIMEOUT_S`."""
        for scheduler in self._schedulers.values():
            await scheduler.close()
        # A second call has nothing left to close.
        all_threads, self._threads = self._threads, {}
        closing = [
            asyncio.create_task(_close_engines(device, scheduler), name=f"close {device}")
            for device in all_threads
            if not (scheduler := self._schedulers[device]).hung
        ]
        if closing:
            _, left = await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_S)
            for task in left:
                log.warning(
                    "an engine was not closed (%s): it did not return within %g s",
                    task.get_name(),
                    CLOSE_TIMEOUT_S,
                )
                task.cancel()
        for threads in all_threads.values():
            threads.close()


async def _close_engines(device: str, scheduler: Scheduler) -> None:
    """Close a device's engines once its last batches have returned."""
    while not scheduler.idle:
        await asyncio.sleep(POLL_INTERVAL_S)
    for engine in [queue.engine for queue in scheduler.queues]:
        try:
            await asyncio.to_thread(engine.close)
        except Exception:
            log.exception("an engine on %s failed to close", device)
