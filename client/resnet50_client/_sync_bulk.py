"""Bulk calls of the blocking client. `_async_bulk.py` has the asyncio ones.

Threads of a run read images ahead, and one sends calls and converts their responses; the caller's
thread iterates.
"""

from __future__ import annotations

import collections
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from ._batches import Batches
from ._bulk_images import BatchCall, BatchKind, BulkCall, BulkLimits, Outcome, is_broken
from ._bulk_source import BulkSource
from ._channels import Channels
from ._config import Connection
from ._retries import LONGEST_S
from ._sync_calls import Calls
from .errors import CallCancelledError, Resnet50Error
from .observers import Observation, Observers

Item = TypeVar("Item")
Result = TypeVar("Result")


class BulkResults(Iterator[Item], Generic[Item]):
    """Results of `classify_many` or `embed_many`: an iterator, and a context manager.

    The run starts with the first result that is asked for. It ends with the last one, with an
    error, or when it is closed, from any thread: calls in flight are cancelled then, and the source
    is closed. Several threads may iterate; each result goes to one of them.

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
        calls: Calls,
        connection: Connection,
        observers: Observers,
        kind: BatchKind[Any],
        images: Iterable[Any],
        limits: BulkLimits,
        keyed: bool,
        item: Callable[[Outcome[Any]], Item],
    ) -> None:
        source = BulkSource(images, keyed)
        self._run = _Run(calls, connection, observers, kind, source, limits)
        self._item = item
        # An iterator that is dropped ends its threads. Called once: until then it keeps the run,
        # and with an error of the run whose frames have this iterator, the iterator too.
        self._finalizer = weakref.finalize(self, self._run.close)
        self._finalizer.atexit = False

    def __iter__(self) -> BulkResults[Item]:
        return self

    def __next__(self) -> Item:
        try:
            outcome = self._run.next()
            if outcome is not None:
                return self._item(outcome)
        except BaseException:
            self._finalizer()
            raise
        raise StopIteration

    def close(self) -> None:
        """Cancel the run. A thread that waits for a result gets CallCancelledError."""
        self._finalizer()

    def __enter__(self) -> BulkResults[Item]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Run(Generic[Result]):
    """The threads of a bulk run.

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
        calls: Calls,
        connection: Connection,
        observers: Observers,
        kind: BatchKind[Result],
        source: BulkSource,
        limits: BulkLimits,
    ) -> None:
        self._calls = calls
        self._connection = connection
        self._observers = observers
        self._kind = kind
        self._source = source
        self._channels: Channels | None = None
        self._starting = threading.Lock()
        # Held while an image is taken from the source, and read if it cannot be read in parallel.
        self._taking = threading.Lock()
        # Guards the attributes below. Each condition is for one kind of thread: the one that sends,
        # those that read, and the caller's.
        # Reentrant: a garbage collection may close the run.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._ready = threading.Condition(self._lock)
        self._batches: Batches[Result] = Batches(limits)
        self._futures: dict[BatchCall, Any] = {}
        self._replies: collections.deque[tuple[BatchCall, BulkCall[Result], Observation, Any]] = (
            collections.deque()
        )
        self._closed = False
        self._is_over = False  # by itself, with the last result or an error
        self._process: int | None = None

    def next(self) -> Outcome[Result] | None:
        """Return the next outcome; None at the end.

        Raises:
            CallCancelledError: The run or its client was closed by another thread.
            BaseException: The error that ended the run.
        """
        if self._closed:
            return None
        with self._starting:
            self._start()
        failure = None
        with self._lock:
            while not self._closed:
                if (outcome := self._batches.take()) is not None:
                    self._room.notify_all()
                    return outcome
                if self._batches.finished:
                    self._is_over, failure = True, self._batches.failure
                    break
                self._ready.wait()
            else:
                if self._is_over:
                    return None
                raise CallCancelledError(
                    f"{self._connection}: the results were closed by another thread",
                    code="CANCELLED",
                )
        self.close()
        if failure is None:
            return None
        try:
            raise failure
        finally:
            del failure  # which its traceback would keep

    def close(self) -> None:
        """End the run: cancel its calls and close its source."""
        if self._process not in (None, os.getpid()):
            return  # in the child of a fork, which has none of the threads
        with self._lock:
            if self._closed:
                return
            self._closed = True
            futures, unread = list(self._futures.values()), list(self._replies)
            self._replies.clear()
            self._batches.clear()
            self._notify()
        for future in futures:
            future.cancel()
        for _, _, observation, _ in unread:
            observation.end(None, closed=True)
        self._source.close()

    def wake(self) -> None:
        """End the run with an error: the client was closed."""
        if self._process == os.getpid():
            self._fail(self._connection.closed())

    def _start(self) -> None:
        """Start the threads with the first call.

        Reading and sending have threads of their own: a source may wait for any time for its next
        image, while responses arrive and calls are sent again.
        """
        if self._process == os.getpid():
            return
        if self._process is not None:
            raise RuntimeError(
                "these results were begun before a fork; the child process needs a call of its own"
            )
        self._channels = self._calls.open(self._connection.timeout_s, lambda: self._closed)
        if self._closed:
            return
        self._process = os.getpid()
        self._channels.wake_at_close(self)
        if self._channels.closing.is_set():
            self.wake()
        for target in [self._drive, *[self._read_images] * self._source.readers]:
            threading.Thread(target=target, name="resnet50 bulk", daemon=True).start()

    def _notify(self) -> None:
        for condition in (self._work, self._room, self._ready):
            condition.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if not self._closed:
                self._batches.fail(error)
                self._notify()

    # Reading

    def _read_images(self) -> None:
        """Read images as there is room for them; runs in several threads."""
        try:
            while self._may_read():
                self._read_image()
        except BaseException as error:  # of the source; raised in the caller's thread
            with self._lock:
                if not self._closed:
                    self._batches.end(error)
                    self._notify()

    def _may_read(self) -> bool:
        with self._lock:
            while not self._batches.wants_image():
                if self._closed or self._batches.ended:
                    return False
                self._room.wait()
            if self._closed:
                return False
            self._batches.begin_read()
            return True

    def _read_image(self) -> None:
        with self._taking:
            entry = self._source.read()
            content = None
            if entry is not None and not entry.parallel:
                content = self._kind.read(entry.image)
        if entry is not None and content is None:
            content = self._kind.read(entry.image)
        with self._lock:
            if self._closed:
                return
            if entry is None:
                self._batches.end()
                self._notify()
                return
            assert content is not None  # since it was read
            if isinstance(content, Exception):
                self._batches.add_error(entry.index, entry.key, entry.image, content)
                self._ready.notify_all()
            else:
                self._batches.add(entry.index, entry.key, entry.image, content)
            self._work.notify_all()

    # Sending

    def _drive(self) -> None:
        """Send calls and convert their responses until the run ends; runs in a thread."""
        try:
            while self._drive_once():
                pass
        except BaseException as error:  # e.g. of a function that returns the token
            self._fail(error)

    def _drive_once(self) -> bool:
        with self._lock:
            while True:
                if self._closed or self._batches.finished:
                    self._notify()
                    return False
                if self._replies:
                    reply, call = self._replies.popleft(), None
                    break
                if (call := self._batches.next_call()) is not None:
                    self._room.notify_all()
                    break
                if self._batches.finished:  # images whose time is over were the last ones
                    continue
                self._work.wait(self._batches.wait_s())
        if call is not None:
            self._begin(call)
        else:
            self._end(*reply)
        return True

    def _begin(self, call: BatchCall) -> None:
        """Send a call."""
        assert self._channels is not None  # since `_start`
        made = self._kind.call(call.images)
        observation = self._observers.observe(made.method, self._connection.request_id)
        try:
            observation.start()
            stubs = self._channels.stubs()
            metadata = self._connection.metadata(observation.metadata)
            observation.attempt(made.length)
            timeout_s = call.timeout_s if call.timeout_s < LONGEST_S else None
            future = made.future(stubs, timeout=timeout_s, metadata=metadata)
        except BaseException as error:
            # gRPC raises ValueError if the channel is closed.
            closed = isinstance(error, ValueError) and self._channels.closing.is_set()
            final = self._connection.closed() if closed else error
            observation.end(final)
            raise final from error
        with self._lock:
            self._futures[call] = future
            cancelled = self._closed
        if cancelled:
            future.cancel()
        future.add_done_callback(lambda done: self._ended(call, made, observation, done))

    def _ended(
        self, call: BatchCall, made: BulkCall[Result], observation: Observation, future: Any
    ) -> None:
        """Hand a response over; runs in gRPC's thread."""
        with self._lock:
            self._futures.pop(call, None)
            closed = self._closed
            if not closed:
                self._replies.append((call, made, observation, future))
                self._work.notify_all()
        if closed:
            observation.end(None, closed=True)

    def _end(
        self, call: BatchCall, made: BulkCall[Result], observation: Observation, future: Any
    ) -> None:
        """Record the response of a call."""
        assert self._channels is not None  # since `_start`
        broke, results, size = False, None, 0
        error: Resnet50Error | None = None
        try:
            reply = future.result()
            results, size = made.result(reply), reply.ByteSize()
        except grpc.FutureCancelledError:
            error = self._connection.closed()
        except grpc.RpcError as failure:
            error = self._connection.error_of(failure)
            error.__cause__ = failure
            broke = is_broken(error, failure)
            self._channels.failed(error)
        except Resnet50Error as unreadable:
            error = unreadable
        except BaseException as failure:  # e.g. of an interceptor
            observation.end(failure)
            raise
        if self._channels.closing.is_set() and error is not None:
            error = self._connection.closed()
        observation.end(error)
        with self._lock:
            if self._closed:
                return
            if error is None and results is not None:
                self._batches.answered(call, results, size, observation.request_id)
            elif error is not None:
                self._batches.failed(call, error, broke)
            self._notify()
