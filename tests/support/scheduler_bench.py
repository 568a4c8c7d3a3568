"""A scheduler with one variant on a virtual device."""

from __future__ import annotations

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from tests.support.virtual_device import FakeEngine, VirtualThreads, context, image


class Bench:
    def __init__(
        self,
        policy: BatchPolicy | None = None,
        workers: int = 1,
        prefetch: int = 0,
        **engine: float,
    ) -> None:
        self.device = VirtualThreads(workers)
        self.scheduler = Scheduler(
            policy or BatchPolicy(), self.device, self.on_broken, workers, prefetch
        )
        self.engine = FakeEngine(**engine)
        self.queue = self.scheduler.add("v", self.engine)
        self.broken: list[BaseException] = []

    def on_broken(self, error: BaseException) -> None:
        self.broken.append(error)

    def submit(
        self, number: int, *, queue=None, accepted=False, top_k=1, with_embedding=False, **request
    ):
        return self.scheduler.submit(
            self.queue if queue is None else queue,
            image(number),
            top_k=top_k,
            with_embedding=with_embedding,
            context=context(**request),
            accepted=accepted,
        )

    def accept(self, *, decode_s=0.0, **request):
        return self.scheduler.accept(self.queue, context(**request), decode_s)
