"""A variant in memory, with what uses it, and the progress of a load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from resnet50_server.batching.queue import VariantQueue
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.errors import ServingError
from resnet50_server.runtime.worker_threads import WorkerThreads
from resnet50_server.variants.spec import VariantSpec

from .engine_builder import BuiltEngine

if TYPE_CHECKING:
    from .self_test import Reference

Stage: TypeAlias = Literal["waiting", "reading", "evicting", "building", "warming_up", "verifying"]


@dataclass
class LoadProgress:
    """Progress of one load.

    Attributes:
        stage: See `LoadingStage` in the API.
        started: On the clock of `time.monotonic`.
    """

    stage: Stage = "waiting"
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.started


@dataclass(eq=False)
class LoadedVariant:
    """A variant in memory.

    Attributes:
        spec: Its name, transform and categories.
        built: Its engine, with what is reported about it.
        queue: Its pending requests.
        scheduler: Dispatches its batches.
        threads: Run its engine.
        reference: The engine's output for a fixed image; None if unknown.
        requests: Images pending or computing, frames included.
        uploads: Uploads that are still arriving.
        retired: Whether lookup no longer returns it.
        leaked: Whether its memory could not be freed: its engine did not return from a batch, or
            could not be closed.
        replaced_by: The variant loaded under its name after it; None if there is none.
        last_used: Time of the last request or frame, on the clock of `time.monotonic`.
        streams: End its open streams; see `add_stream`.
    """

    spec: VariantSpec
    built: BuiltEngine
    queue: VariantQueue
    scheduler: Scheduler
    threads: WorkerThreads
    reference: Reference | None = None
    requests: int = 0
    uploads: int = 0
    retired: bool = False
    leaked: bool = False
    replaced_by: LoadedVariant | None = None
    last_used: float = field(default_factory=time.monotonic)
    streams: set[Callable[[ServingError], None]] = field(default_factory=set)

    def acquire(self) -> None:
        """Count an image until `release`."""
        self.requests += 1
        self.last_used = time.monotonic()

    def release(self) -> None:
        """End what `acquire` began."""
        self.requests -= 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count an image while the `with` block runs."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Count an upload while its image arrives."""
        self.uploads += 1
        self.last_used = time.monotonic()
        try:
            yield
        finally:
            self.uploads -= 1

    def add_stream(self, stop: Callable[[ServingError], None]) -> None:
        """Register an open stream until `remove_stream`.

        Args:
            stop: Ends the stream after its frames in flight, with the given error.
        """
        self.streams.add(stop)

    def remove_stream(self, stop: Callable[[ServingError], None]) -> None:
        """Unregister a stream that has ended or has switched to another variant."""
        self.streams.discard(stop)

    def stop_streams(self, reason: ServingError) -> None:
        """End all open streams after their frames in flight."""
        for stop in self.streams:
            stop(reason)

    def require_health(self) -> None:
        """Reject a request while the variant is out of service.

        Raises:
            VariantUnhealthy: It is out of service.
        """
        if self.queue.health.problem is not None:
            raise self.queue.unhealthy_error()

    def latest(self) -> LoadedVariant:
        """Return the variant now loaded under its name: itself unless it was replaced."""
        variant = self
        while variant.replaced_by is not None:
            variant = variant.replaced_by
        return variant

    @property
    def busy(self) -> bool:
        """True while it has images, or uploads that no replacement can take over."""
        return bool(self.requests or (self.uploads and self.replaced_by is None))

    @property
    def space(self) -> str:
        """The vector space of its embeddings; see `Embedding.space` in the API."""
        # Embeddings of int8 weights quantized here are close to the float ones, but not the same.
        suffix = "-int8" if self.built.quantization else ""
        return f"{self.spec.name}@{self.built.digest[:12]}{suffix}"
