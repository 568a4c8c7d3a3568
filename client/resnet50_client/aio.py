"""The asyncio client. `client.py` holds its blocking twin; a test keeps the two alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar, get_args

from . import calls, messages
from .arguments import check_choice, check_images
from .async_stream import AsyncStream
from .async_variants import AsyncVariants
from .connection import HEALTH_POLLS, Priority
from .errors import DeadlineExceededError, UnavailableError, VariantNotFoundError
from .frames import DEFAULT_WINDOW, Delivery, Errors, FrameAnswer, StreamKind, StreamLimits
from .images import ImageInput, is_quickly_read
from .results import Classification, Embedding
from .retries import Backoff

Options = TypeVar("Options")
Result = TypeVar("Result")


class AsyncClient(AsyncVariants):
    """Calls a ResNet50 server, or several equal ones in turn.

    May be used by many tasks at once, all on the event loop of its first call.

    Args and errors: see `BaseClient`.
    """

    async def classify(
        self,
        image: ImageInput,
        *,
        variant: str = "",
        top_k: int = 0,
        min_probability: float | None = None,
        include_embedding: bool = False,
        pixel_format: str | None = None,
        caller_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Classification:
        """Say what an image shows.

        Args:
            image: A path, bytes, a binary file, a PIL image, a numpy array or a torch tensor; see
                `ImageInput`.
            variant: Which weights answer, e.g. "IMAGENET1K_V2"; "" for the server's default.
            top_k: How many categories come back; 0 for 5, or all of a variant that has fewer.
            min_probability: Leave out categories below it, 0 to 1.
            include_embedding: Also return the image's vector; it costs no second forward pass.
            pixel_format: Layout of an array: "RGB", "BGR", "RGBA", "GRAY", "NV12", "I420".
            caller_key: For whom, where the server has a traffic split; None for the client's.
            timeout_s: In seconds; None for the client's default, `math.inf` for no limit.

        Raises:
            InvalidImageError: The image cannot be read, or is over a limit.
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
            OSError: The image's file cannot be read.
        """
        options = messages.classify_options(variant, top_k, min_probability, include_embedding)
        call = await _made(calls.classify_call, image, pixel_format, options)
        return await self._call(call, timeout_s, caller_key)

    async def embed(
        self,
        image: ImageInput,
        *,
        variant: str = "",
        l2_normalize: bool = False,
        dtype: str = "float32",
        pixel_format: str | None = None,
        caller_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Embedding:
        """Return an image's vector.

        Args:
            image: As for `classify`.
            variant: As for `classify`.
            l2_normalize: Scale the vector to length 1, so that a dot product is the cosine.
            dtype: "float32", or "float16" for half the bytes and about 3 significant digits.
            pixel_format: As for `classify`.
            caller_key: As for `classify`.
            timeout_s: As for `classify`.

        Raises:
            InvalidImageError: The image cannot be read, or is over a limit.
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
            OSError: The image's file cannot be read.
        """
        options = messages.embed_options(variant, l2_normalize, dtype)
        call = await _made(calls.embed_call, image, pixel_format, options)
        return await self._call(call, timeout_s, caller_key)

    def classify_stream(
        self,
        frames: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        delivery: Delivery = "ordered",
        variant: str = "",
        top_k: int = 0,
        min_probability: float | None = None,
        include_embedding: bool = False,
        pixel_format: str | None = None,
        window: int = DEFAULT_WINDOW,
        resume_s: float | None = None,
        idle_timeout_s: float | None = None,
        frame_timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
    ) -> AsyncGenerator[FrameAnswer[Classification], None]:
        """Say what frames show, over one stream: each frame is answered once.

        Frames are read one at a time, and only while fewer than `window` are unanswered. A frame
        that is bad is answered with its error, and the stream goes on. If the server goes away, the
        unanswered frames are sent again to the next one that can be reached; a frame under which
        each connection breaks, four times, is answered with UnavailableError. Closing the iterator
        cancels the stream. Its end, for any reason, closes `frames` if that is a generator, or
        makes an iterator that can be closed.

        Args:
            frames: Images as for `classify`, e.g. of a camera; may be endless.
            delivery: "ordered": every frame is computed, answers come in order, the source is held
                back if it is too fast. "latest": a newer frame takes the place of one that waits,
                which is answered as dropped; answers come as soon as they are known.
            variant: As for `classify`.
            top_k: As for `classify`.
            min_probability: As for `classify`.
            include_embedding: As for `classify`.
            pixel_format: As for `classify`.
            window: How many frames may be on their way; the server has a limit of its own.
            resume_s: How long to go on without an answer from any server, in seconds, counted from
                the first failure; None for the client's `timeout_s`, 0 to give up at once.
            idle_timeout_s: How long a server may have frames and answer none, in seconds; after it
                the stream is resumed, as if that server had gone away. None for the client's
                `timeout_s`, `math.inf` for no limit.
            frame_timeout_s: How long a frame may wait for its answer, in seconds, from when it is
                read from the source; it is answered with DeadlineExceededError then, and the stream
                goes on. None for no limit.
            priority: "interactive" or "bulk"; None for the client's.
            caller_key: As for `classify`; the whole stream is answered by the same weights.

        Raises:
            TypeError: One image was given where many are expected.
            Resnet50Error: The stream cannot go on; see `resnet50_client.errors`.
        """
        check_images("frames", frames, pixel_format, asynchronous=True)
        kind = messages.classify_stream(
            delivery, variant, top_k, min_probability, include_embedding, pixel_format, window
        )
        limits = self._connection.stream_limits(window, resume_s, idle_timeout_s, frame_timeout_s)
        return self._stream(kind, frames, limits, priority, caller_key)

    def embed_stream(
        self,
        frames: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        delivery: Delivery = "ordered",
        variant: str = "",
        l2_normalize: bool = False,
        dtype: str = "float32",
        pixel_format: str | None = None,
        window: int = DEFAULT_WINDOW,
        resume_s: float | None = None,
        idle_timeout_s: float | None = None,
        frame_timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
    ) -> AsyncGenerator[FrameAnswer[Embedding], None]:
        """Return the vectors of frames, over one stream; otherwise as `classify_stream`.

        Args:
            frames: Images as for `classify`; may be endless.
            delivery: As for `classify_stream`.
            variant: As for `classify`.
            l2_normalize: As for `embed`.
            dtype: As for `embed`.
            pixel_format: As for `classify`.
            window: As for `classify_stream`.
            resume_s: As for `classify_stream`.
            idle_timeout_s: As for `classify_stream`.
            frame_timeout_s: As for `classify_stream`.
            priority: As for `classify_stream`.
            caller_key: As for `classify_stream`.

        Raises:
            TypeError: One image was given where many are expected.
            Resnet50Error: The stream cannot go on; see `resnet50_client.errors`.
        """
        check_images("frames", frames, pixel_format, asynchronous=True)
        kind = messages.embed_stream(delivery, variant, l2_normalize, dtype, pixel_format, window)
        limits = self._connection.stream_limits(window, resume_s, idle_timeout_s, frame_timeout_s)
        return self._stream(kind, frames, limits, priority, caller_key)

    def classify_many(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        variant: str = "",
        top_k: int = 0,
        min_probability: float | None = None,
        include_embedding: bool = False,
        pixel_format: str | None = None,
        errors: Errors = "return",
        window: int = DEFAULT_WINDOW,
        resume_s: float | None = None,
        idle_timeout_s: float | None = None,
        frame_timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
    ) -> AsyncGenerator[Classification | Exception, None]:
        """Say what many images show: the results in the images' order, over one stream.

        Args:
            images: As for `classify`; read one at a time, so there may be any number.
            variant: As for `classify`.
            top_k: As for `classify`.
            min_probability: As for `classify`.
            include_embedding: As for `classify`.
            pixel_format: As for `classify`.
            errors: "return" gives an image's error in its result's place; "raise" raises it.
            window: As for `classify_stream`.
            resume_s: As for `classify_stream`.
            idle_timeout_s: As for `classify_stream`.
            frame_timeout_s: As for `classify_stream`.
            priority: As for `classify_stream`.
            caller_key: As for `classify_stream`.

        Raises:
            TypeError: One image was given where many are expected.
            Resnet50Error: The stream cannot go on; see `resnet50_client.errors`.
        """
        check_images("images", images, pixel_format, asynchronous=True)
        check_choice("errors", errors, get_args(Errors))
        answers = self.classify_stream(
            images,
            variant=variant,
            top_k=top_k,
            min_probability=min_probability,
            include_embedding=include_embedding,
            pixel_format=pixel_format,
            window=window,
            resume_s=resume_s,
            idle_timeout_s=idle_timeout_s,
            frame_timeout_s=frame_timeout_s,
            priority=priority,
            caller_key=caller_key,
        )
        return _in_place(answers, errors)

    def embed_many(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        variant: str = "",
        l2_normalize: bool = False,
        dtype: str = "float32",
        pixel_format: str | None = None,
        errors: Errors = "return",
        window: int = DEFAULT_WINDOW,
        resume_s: float | None = None,
        idle_timeout_s: float | None = None,
        frame_timeout_s: float | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
    ) -> AsyncGenerator[Embedding | Exception, None]:
        """Return the vectors of many images in the images' order, over one stream.

        Args:
            images: As for `classify`; read one at a time, so there may be any number.
            variant: As for `classify`.
            l2_normalize: As for `embed`.
            dtype: As for `embed`.
            pixel_format: As for `classify`.
            errors: As for `classify_many`.
            window: As for `classify_stream`.
            resume_s: As for `classify_stream`.
            idle_timeout_s: As for `classify_stream`.
            frame_timeout_s: As for `classify_stream`.
            priority: As for `classify_stream`.
            caller_key: As for `classify_stream`.

        Raises:
            TypeError: One image was given where many are expected.
            Resnet50Error: The stream cannot go on; see `resnet50_client.errors`.
        """
        check_images("images", images, pixel_format, asynchronous=True)
        check_choice("errors", errors, get_args(Errors))
        answers = self.embed_stream(
            images,
            variant=variant,
            l2_normalize=l2_normalize,
            dtype=dtype,
            pixel_format=pixel_format,
            window=window,
            resume_s=resume_s,
            idle_timeout_s=idle_timeout_s,
            frame_timeout_s=frame_timeout_s,
            priority=priority,
            caller_key=caller_key,
        )
        return _in_place(answers, errors)

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """Return a service's health: "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN" or "UNKNOWN".

        Args:
            service: Its full name, e.g. "resnet50.v1.InferenceService"; "" for the whole server.
            timeout_s: As for `classify`.

        Raises:
            Resnet50Error: See `resnet50_client.errors`.
        """
        try:
            return await self._call(calls.health_call(service), timeout_s)
        except VariantNotFoundError:  # NOT_FOUND, which is about a service here
            return "SERVICE_UNKNOWN"

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as a server has loaded its variants and takes requests.

        Args:
            timeout_s: How long to wait, in seconds.

        Raises:
            DeadlineExceededError: None was ready in time; says what was seen last.
            Resnet50Error: Another of its kinds, if the server cannot be asked for its health.
        """
        self._check_open()
        attempts = self._connection.attempts(timeout_s)
        connection, pauses = replace(self._connection, retry=HEALTH_POLLS), Backoff(HEALTH_POLLS)
        call, seen = calls.health_call(""), "no connection"
        channels = await self._open(attempts.left_s())
        with self._observers.observe(call.method) as observation:
            while not attempts.over():
                poll = connection.attempts(attempts.left_s())
                try:
                    seen = call.result(
                        await self._reply(channels, connection, call, poll, observation)
                    )
                except UnavailableError as error:
                    seen = error.message
                except DeadlineExceededError:
                    break
                if seen == "SERVING":
                    return
                await asyncio.sleep(min(pauses.next_s(), attempts.left_s()))
            raise self._connection.not_ready(timeout_s, seen)

    def _stream(
        self,
        kind: StreamKind[Result],
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        limits: StreamLimits,
        priority: Priority | None,
        caller_key: str | None,
    ) -> AsyncGenerator[FrameAnswer[Result], None]:
        self._check_open()
        connection = self._connection.of(priority, caller_key)
        observation = self._observers.observe(calls.full_name(kind.method))
        stream = AsyncStream(self._open, connection, observation, kind, images, limits)
        return stream.answers()


async def _in_place(
    answers: AsyncGenerator[FrameAnswer[Result], None], errors: Errors
) -> AsyncGenerator[Result | Exception, None]:
    """Give results, and errors in the place of those that failed."""
    async with aclosing(answers):
        async for answer in answers:
            yield answer.outcome(errors)


async def _made(
    make: Callable[[ImageInput, str | None, Options], calls.SingleCall[Result]],
    image: ImageInput,
    pixel_format: str | None,
    options: Options,
) -> calls.SingleCall[Result]:
    """Make a call, in a thread if its image has to be read from somewhere, or is large."""
    if is_quickly_read(image):
        return make(image, pixel_format, options)
    return await asyncio.to_thread(make, image, pixel_format, options)
