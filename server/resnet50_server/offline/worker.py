"""A worker: images in, results out, on the code that computes images in a server."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from resnet50_bulk.source import ImageContent, Readable
from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.engines.devices import cuda_device_count, thread_initializer
from resnet50_server.errors import EngineFailed, InvalidRequest, ServingError
from resnet50_server.images.background import Background, parse_background
from resnet50_server.images.decode_guard import silence_decoders
from resnet50_server.images.limits import ImageLimits, check_length
from resnet50_server.images.pixel_budget import PixelBudget
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.decode_pool import DecodePool, decode_threads
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.inference.quotas import Limits
from resnet50_server.lifecycle.devices import Devices, cpu_plan
from resnet50_server.lifecycle.engine_builder import choose_device
from resnet50_server.lifecycle.load_errors import EXPECTED_ERRORS, error_text
from resnet50_server.lifecycle.loaded_variant import LoadedVariant, LoadProgress
from resnet50_server.lifecycle.loader import load_variant
from resnet50_server.runtime.cpus import cpus
from resnet50_server.runtime.fatal import DecodingHung, EngineHung, FatalError
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import VariantSpec, parse_variant

from .in_flight import InFlight
from .options import worker_settings

Outcome: TypeAlias = Result | Exception
"""An image's result, or why it has none: `OSError` for unreadable files, else a `ServingError`."""

Value = TypeVar("Value")

# Files are read by as many threads: a disk needs few, network file systems many.
READERS = 16
# How long other threads have to end after the main thread, if one never returns.
EXIT_GRACE_S = 2.0
# Counted for an image whose size is not known before it is read: a pipe, an address of a table.
UNKNOWN_BYTES = 4 * 2**20
# Errors of one image. Others are of the device or the variant, and end the work.
OF_IMAGE = (InvalidRequest, EngineFailed, OSError)


class WorkerFailed(Exception):
    """The variant cannot be loaded, or cannot compute any more: why, and what to do."""


class ImageWorker:
    """Computes images on this machine, without a server; a context manager.

    Decoding, its guards, transform, batches, retries and engine are a server's. While one batch
    computes, the images of the next one are read and decoded. With `device="auto"` all CUDA devices
    compute.

    Args:
        variant: As of --variants: a name from torchvision, "NAME=DIRECTORY" or "NAME=random:SEED";
            None for the first of RESNET50_VARIANTS, or IMAGENET1K_V2.
        background: Background of transparent pixels; None for the variant's.
        **options: Settings of `resnet50-server serve`, e.g. `device`, `max_batch_size`. They
            override environment variables, as flags do.

    Attributes:
        variant: The loaded variant, on its first device.

    Raises:
        ValueError: A setting or the background is wrong.
        WorkerFailed: The variant cannot be loaded.
    """

    def __init__(
        self, variant: str | None = None, *, background: str | None = None, **options: Any
    ) -> None:
        self._background = parsed_background(background)
        self._settings = settings = worker_settings(variant, options)
        self._limits = ImageLimits.of(settings)
        self._fault: FatalError | None = None
        self._loop = asyncio.new_event_loop()
        self._closing = ExitStack()
        # Not waited for by a program, or a Ray actor, that ends without `close`.
        thread = threading.Thread(target=self._loop.run_forever, name="offline", daemon=True)
        thread.start()
        self._closing.callback(self._loop.close)
        self._closing.callback(thread.join)
        self._closing.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        try:
            silence_decoders()
            self._variants = self._run(self._open())
        except EXPECTED_ERRORS as error:
            self.close()
            raise WorkerFailed(error_text(error)) from error
        except BaseException:
            self.close()
            raise
        self.variant = self._variants[0]
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._closing.callback(self._readers.shutdown)

    def __enter__(self) -> ImageWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines and end the threads."""
        self._closing.close()

    @property
    def window(self) -> int:
        """Images in flight: two batches for each engine, and one image for each decode thread."""
        settings, engines = self._settings, len(self._variants)
        if self.variant.built.device == "cpu":
            engines = cpu_plan(settings).instances
        return 2 * settings.max_batch_size * engines + self._decode_pool.threads

    def run(
        self,
        images: Iterable[tuple[str, ImageContent | Path]],
        *,
        top_k: int = 0,
        with_embedding: bool = True,
    ) -> Generator[tuple[str, Outcome], None, None]:
        """Yield the names and results of images, in the order in which they are computed.

        Args:
            images: Names and images; taken as there is room for them, in the caller's thread.
            top_k: Number of categories in each result; 0 for none.
            with_embedding: Whether the results have embeddings.

        Raises:
            WorkerFailed: The device is lost, or the variant does not compute any more.
        """
        infer = partial(self._infer, top_k=top_k, with_embedding=with_embedding)
        in_flight = InFlight(self._loop, infer)
        iterator = iter(images)
        waiting = next(iterator, None)
        try:
            while waiting is not None or in_flight.images:
                size = 0 if waiting is None else self._size(waiting[1])
                if waiting is not None and self._has_room(in_flight, size):
                    in_flight.start(*waiting, size)
                    waiting = next(iterator, None)
                    if not in_flight.any_ended():
                        continue
                for name, task in in_flight.ended():
                    yield name, self._outcome(task)
        finally:
            # Of a caller that takes no more results, or of a lost device.
            in_flight.wait()

    def _has_room(self, in_flight: InFlight, size: int) -> bool:
        """Return whether an image of so many bytes may be in flight too; one alone always may."""
        fits = in_flight.bytes + size <= self._settings.max_request_bytes
        return not in_flight.images or (fits and in_flight.images < self.window)

    def _outcome(self, task: asyncio.Task[Result]) -> Outcome:
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, OF_IMAGE) and self._fault is None:
            return error
        if isinstance(error, (ServingError, FatalError)):
            raise WorkerFailed(str(self._fault or error)) from error
        raise error

    async def _infer(
        self, name: str, image: ImageContent | Path, top_k: int, with_embedding: bool
    ) -> Result:
        if isinstance(image, OSError):
            raise image
        if isinstance(image, bytes):
            encoded = image
        else:
            read = partial(_read, image, self._limits)
            encoded = await self._loop.run_in_executor(self._readers, read)
        check_length(len(encoded), self._limits)
        variant = min(self._variants, key=_images_in_flight)
        task = InferenceTask(variant, top_k, with_embedding, background=self._background)
        # Logs name the image.
        context = RequestContext("offline", name, ())
        with variant.in_use():
            return await self._pipeline.infer(encoded, task, context)

    def _size(self, image: ImageContent | Path) -> int:
        """Return how many bytes an image will take while it is in flight."""
        if isinstance(image, bytes):
            return len(image)
        if isinstance(image, OSError):
            return 0
        if isinstance(image, (str, Path)):
            try:
                size = os.stat(image).st_size
            except OSError:
                return 0  # reading it will fail with the reason
        else:
            size = getattr(image, "size", None) or 0
        return min(size or UNKNOWN_BYTES, self._limits.max_bytes)

    async def _open(self) -> list[LoadedVariant]:
        """Load the variant on each device, and start the parts of a server that compute."""
        settings = self._settings
        devices = Devices(settings, self._fail)
        self._closing.callback(lambda: self._run(devices.close()))
        spec = await asyncio.to_thread(parse_variant, settings.variants[0])
        variants = [
            await load_variant(
                settings.model_copy(update={"device": device}), devices, spec, LoadProgress(), _keep
            )
            for device in await asyncio.to_thread(_devices, spec, settings)
        ]
        on_cpu = not settings.stub_engine and variants[0].built.device == "cpu"
        self._decode_pool = DecodePool(
            settings.decode_threads or decode_threads(cpus(), on_cpu),
            settings.decode_timeout_s,
            self._fail,
            initialize=thread_initializer(1, settings),
        )
        self._closing.callback(lambda: self._run(_closed(self._decode_pool)))
        self._pipeline = Pipeline(
            Admission(Limits()),
            self._decode_pool,
            self._limits,
            pixel_budget=PixelBudget(settings.max_decode_pixels or self._limits.max_pixels),
        )
        return variants

    def _fail(self, fault: FatalError) -> None:
        self._fault = fault
        if isinstance(fault, (EngineHung, DecodingHung)):
            threading.Thread(target=_end_process, name="end the process", daemon=True).start()

    def _submit(self, coroutine: Coroutine[Any, Any, Value]) -> Future[Value]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        return self._submit(coroutine).result()


def _end_process() -> None:
    """End the process after its main thread: Python would wait for threads that never return."""
    threading.main_thread().join()
    time.sleep(EXIT_GRACE_S)
    os._exit(1)


def _read(image: str | Path | Readable, limits: ImageLimits) -> bytes:
    """Read an image, at most one byte more than the limit."""
    if not isinstance(image, (str, Path)):
        return image.read(limits.max_bytes + 1)
    with open(image, "rb") as file:
        if size := os.fstat(file.fileno()).st_size:  # 0 for pipes
            check_length(size, limits)
        return file.read(limits.max_bytes + 1)


def _devices(spec: VariantSpec, settings: Settings) -> Sequence[str]:
    """Return the devices that compute: the one of the settings, or all CUDA devices."""
    if settings.stub_engine:
        return ["cpu"]
    device, _ = choose_device(spec, settings)
    if settings.device == "auto" and device != "cpu":
        return [f"cuda:{index}" for index in range(cuda_device_count())]
    return [device]


def parsed_background(text: str | None) -> Background | None:
    """Return a background; None for the variant's.

    Raises:
        ValueError: It is no background.
    """
    if text is None:
        return None
    try:
        return parse_background(text)
    except ValueError as error:
        raise ValueError(f"background: {error}") from error


def _images_in_flight(variant: LoadedVariant) -> int:
    return variant.requests


async def _keep(_: int) -> None:
    """Reserve memory for a variant: it has this process for itself."""


async def _closed(pool: DecodePool) -> None:
    pool.close()
