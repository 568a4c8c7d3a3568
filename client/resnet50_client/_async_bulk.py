"""Bulk calls of the asyncio client. `_sync_bulk.py` has the blocking ones.

Tasks of a run read images ahead, each call is a task, and the caller's task iterates.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from ._aio_status import CancelledCallError, keep_status, reply_of
from ._async_calls import AsyncCalls
from ._batches import Batches
from ._bulk_images import BatchCall, BatchKind, BulkCall, BulkLimits, ImageError, Outcome, is_broken
from ._bulk_source import AsyncBulkSource
from ._channels import Channels
from ._config import Connection
from ._preprocessed import ImageContent
from ._retries import LONGEST_S
from .errors import CallCancelledError, Resnet50Error
from .images import QUICK_BYTES, awaited, is_quickly_read
from .observers import Observation, Observers

# Of code of the application. It may await a future that was cancelled by something else: without
# its error the run would wait for that task forever.
_ERRORS = (Exception, asyncio.CancelledError)

Item = TypeVar("Item")
Result = TypeVar("Result")


class AsyncBulkResults(AsyncIterator[Item], Generic[Item]):
    """Results of `classify_many` or `embed_many`: an asynchronous iterator and context manager.

    The run starts when the first result is requested. It ends with the last one, with an
    error, or when it is closed: calls in flight are cancelled then, and the source is closed.
    Several tasks may iterate; each result goes to one of them. A task that is cancelled while it
    waits for a result ends the run.

    Args:
        calls: The client's calls.
        connection: Options of the connection.
        observers: The client's observers.
        kind: The calls to make.
        images: The images, or pairs (key, image).
        limits: Limits of the run.
        keyed: Whether the images have keys.
        item: Converts an outcome, or raises its error, which ends the run.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        connection: Connection,
        observers: Observers,
        kind: BatchKind[Any],
        images: Iterable[Any] | AsyncIterable[Any],
        limits: BulkLimits,
        keyed: bool,
        item: Callable[[Outcome[Any]], Item],
    ) -> None:
        source = AsyncBulkSource(images, keyed)
        self._run = _Run(calls, connection, observers, kind, source, limits)
        self._item = item
        # An iterator that is dropped ends its tasks. Detached at any other end: until then it keeps
        # the run, and with an error of the run whose frames have this iterator, the iterator too.
        self._finalizer = weakref.finalize(self, self._run.abandon)
        self._finalizer.atexit = False

    def __aiter__(self) -> AsyncBulkResults[Item]:
        return self

    async def __anext__(self) -> Item:
        try:
            outcome = await self._run.next()
            if outcome is not None:
                return self._item(outcome)
        except BaseException:
            await self.aclose()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the run. A task that waits for a result gets CallCancelledError."""
        self._finalizer.detach()
        await self._run.close()

    async def __aenter__(self) -> AsyncBulkResults[Item]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Run(Generic[Result]):
    """The tasks of a bulk run.

    Args:
        calls: The client's calls.
        connection: Options of the connection.
        observers: The client's observers.
        kind: The calls to make.
        source: The images.
        limits: Limits of the run.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        connection: Connection,
        observers: Observers,
        kind: BatchKind[Result],
        source: AsyncBulkSource,
        limits: BulkLimits,
    ) -> None:
        self._calls = calls
        self._connection = connection
        self._observers = observers
        self._kind = kind
        self._source = source
        self._batches: Batches[Result] = Batches(limits)
        self._channels: Channels | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Held while an image is taken from the source, and read if it cannot be read in parallel.
        self._taking = asyncio.Lock()
        # Set after each change; cleared by a task just before it waits.
        self._room = asyncio.Event()
        self._ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._is_over = False  # by itself, with the last result or an error

    async def next(self) -> Outcome[Result] | None:
        """Return the next outcome; None at the end.

        Raises:
            CallCancelledError: The run or its client was closed by another task.
            BaseException: The error that ended the run.
        """
        if self._closed:
            return None
        await self._start()
        while not self._closed:
            if (outcome := self._batches.take()) is not None:
                self._room.set()
                return outcome
            if self._batches.finished:
                break
            self._ready.clear()
            await self._ready.wait()
        else:
            if self._is_over:
                return None
            raise CallCancelledError(
                f"{self._connection}: the results were closed by another task", code="CANCELLED"
            )
        failure, self._is_over = self._batches.failure, True
        await self.close()
        if failure is None:
            return None
        try:
            raise failure
        finally:
            del failure  # which its traceback would keep

    async def close(self) -> None:
        """End the run: cancel its calls and close its source."""
        if not self._closed:
            await self._end(self._cancel())

    async def _end(self, tasks: set[asyncio.Task[None]]) -> None:
        """Close the source once the tasks that were cancelled no longer read it."""
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            await self._source.close()

    def abandon(self) -> None:
        """End a run without waiting for it; in any thread."""
        if self._closed or self._loop is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._close_soon)

    def _close_soon(self) -> None:
        if not self._closed:
            closing = asyncio.ensure_future(self._end(self._cancel()))
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)

    def _cancel(self) -> set[asyncio.Task[None]]:
        self._closed = True
        self._batches.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._ready.set()
        tasks = {task for task in self._tasks if task is not asyncio.current_task()}
        for task in tasks:
            task.cancel()
        return tasks

    async def _start(self) -> None:
        """Open the channels and start the tasks with the first call."""
        # Also checks the event loop.
        channels = await self._calls.open(self._connection.timeout_s, lambda: self._closed)
        if self._closed or self._channels is not None:
            return
        self._channels, self._loop = channels, asyncio.get_running_loop()
        self._task(self._watch(channels))
        for _ in range(self._source.readers):
            self._task(self._read_images())

    def _task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # Without the task the run would never end.
        if not (task.cancelled() or self._closed) and (error := task.exception()) is not None:
            self._batches.fail(error)
            self._pump()

    async def _watch(self, channels: Channels) -> None:
        """End the run when the client is closed."""
        await channels.closing.wait()
        self._batches.fail(self._connection.closed())
        self._pump()

    def _pump(self) -> None:
        """Start the calls that can be made now, and wake the tasks that wait."""
        if self._closed:
            return
        while (call := self._batches.next_call()) is not None:
            self._task(self._perform(call))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (wait_s := self._batches.wait_s()) is not None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._pump)
        self._ready.set()
        self._room.set()

    # Reading

    async def _read_images(self) -> None:
        """Read images as there is room for them; runs in several tasks."""
        while not self._batches.ended:
            if not self._batches.wants_image():
                self._room.clear()
                await self._room.wait()
                continue
            self._batches.begin_read()
            try:
                more = await self._read_image()
            except _ERRORS as error:  # of the source; raised in the caller's task
                if self._closed:
                    return
                self._batches.end(error)
                more = False
            self._pump()
            if not more:
                return

    async def _read_image(self) -> bool:
        async with self._taking:
            entry = await self._source.read()
            if self._closed:  # by the source
                return False
            if entry is None:
                self._batches.end()
                return False
            content = None
            if not entry.parallel:
                content = await self._content(entry.image)
        if content is None:
            content = await self._content(entry.image)
        if isinstance(content, Exception):
            self._batches.add_error(entry.index, entry.key, entry.image, content)
        else:
            self._batches.add(entry.index, entry.key, entry.image, content)
        return True

    async def _content(self, image: Any) -> ImageContent | ImageError:
        try:
            image = await awaited(image)
        except (Resnet50Error, OSError, TypeError) as error:
            return error
        if is_quickly_read(image):
            return self._kind.read(image)
        return await self._calls.in_thread(self._kind.read, image)

    # Sending

    async def _perform(self, call: BatchCall) -> None:
        """Make a call and record its response."""
        broke = False
        try:
            made = await self._build(call)
            request_id = self._connection.request_id
            with self._observers.observe(made.method, request_id) as observation:
                try:
                    reply = await self._reply(call, made, observation)
                except grpc.RpcError as failure:
                    error = self._connection.error_of(failure)
                    broke = is_broken(error, failure)
                    raise error from failure
                results, size = made.result(reply), reply.ByteSize()
        except Resnet50Error as error:
            if self._closed:
                return
            assert self._channels is not None  # since `_start`
            if self._channels.closing.is_set():
                error = self._connection.closed()
            self._channels.failed(error)
            self._batches.failed(call, error, broke)
        except _ERRORS as error:  # e.g. of a function that returns the token
            if self._closed:
                return
            self._batches.fail(error)
        else:
            if self._closed:
                return
            self._batches.answered(call, results, size, observation.request_id)
        self._pump()

    async def _build(self, call: BatchCall) -> BulkCall[Result]:
        if sum(image.content_bytes for image in call.images) <= QUICK_BYTES:
            return self._kind.call(call.images)
        return await self._calls.in_thread(self._kind.call, call.images)

    async def _reply(
        self, call: BatchCall, made: BulkCall[Result], observation: Observation
    ) -> Any:
        channels = self._channels
        assert channels is not None  # since `_start`
        stubs = channels.stubs()
        metadata = await self._connection.metadata_async(observation.metadata, call.timeout_s)
        observation.attempt(made.length)
        timeout_s = call.timeout_s if call.timeout_s < LONGEST_S else None
        try:
            attempt = made.start(stubs)(timeout=timeout_s, metadata=metadata)
            return await reply_of(keep_status(attempt))
        except CancelledCallError:
            if not channels.closing.is_set():
                raise asyncio.CancelledError from None
            raise self._connection.closed() from None
        except grpc.aio.UsageError as misuse:  # raised by gRPC if the channel is closed
            if not channels.closing.is_set():
                raise
            raise self._connection.closed() from misuse


# Abandoned runs that are being closed: the event loop keeps weak references only.
_closing: set[asyncio.Future[None]] = set()
