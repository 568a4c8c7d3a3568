"""The blocking client. `aio.py` holds its asyncio twin; a test keeps the two alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc

from resnet50.v1 import variant_pb2

from . import messages
from .connection import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_S,
    HEALTH_POLL_S,
    Connection,
    RetryPolicy,
    channel_options,
    target,
)
from .errors import DeadlineExceededError, UnavailableError, error_of
from .images import ImageInput
from .results import Classification, Embedding, Variant
from .stubs import Stubs


class Client:
    """Calls a ResNet50 server, or several equal ones in turn.

    May be used from many threads at once. Make it after a fork, not before.

    Args:
        server: "host:port" (all addresses behind the name are used, in turn), "unix:PATH", or a
            list of "host:port" to balance over.
        timeout_s: How long a call may take, in seconds, retries included; `math.inf` for no limit.
        retry: When a failed call is made again.

    Raises:
        ValueError: An argument is wrong.
        OSError: A host name of a list cannot be looked up.
    """

    def __init__(
        self,
        server: str | Sequence[str] = DEFAULT_SERVER,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._connection = Connection.to(server, timeout_s, retry)
        self._stubs = Stubs(
            grpc.insecure_channel(
                target(self._connection.addresses), channel_options(self._connection.retry)
            )
        )
        self._closed = False

    def classify(
        self,
        image: ImageInput,
        *,
        variant: str = "",
        top_k: int = 0,
        min_probability: float | None = None,
        include_embedding: bool = False,
        pixel_format: str | None = None,
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
            timeout_s: In seconds; None for the client's default, `math.inf` for no limit.

        Raises:
            InvalidImageError: The image cannot be read, or is over a limit.
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
            OSError: The image's file cannot be read.
        """
        request = messages.classify_request(
            image, variant, top_k, min_probability, include_embedding, pixel_format
        )
        return messages.classification(
            self._call(self._stubs.inference.Classify, request, timeout_s)
        )

    def embed(
        self,
        image: ImageInput,
        *,
        variant: str = "",
        l2_normalize: bool = False,
        dtype: str = "float32",
        pixel_format: str | None = None,
        timeout_s: float | None = None,
    ) -> Embedding:
        """Return an image's vector.

        Args:
            image: As for `classify`.
            variant: As for `classify`.
            l2_normalize: Scale the vector to length 1, so that a dot product is the cosine.
            dtype: "float32", or "float16" for half the bytes and about 3 significant digits.
            pixel_format: As for `classify`.
            timeout_s: As for `classify`.

        Raises:
            InvalidImageError: The image cannot be read, or is over a limit.
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
            OSError: The image's file cannot be read.
        """
        request = messages.embed_request(image, variant, l2_normalize, dtype, pixel_format)
        return messages.embedding(self._call(self._stubs.inference.Embed, request, timeout_s))

    def variants(self, *, timeout_s: float | None = None) -> list[Variant]:
        """Return all variants of the server, its default first, without their categories.

        Args:
            timeout_s: As for `classify`.

        Raises:
            Resnet50Error: See `resnet50_client.errors`.
        """
        request = variant_pb2.ListVariantsRequest()
        reply = self._call(self._stubs.variants.ListVariants, request, timeout_s)
        return [messages.variant(one) for one in reply.variants]

    def variant(self, name: str = "", *, timeout_s: float | None = None) -> Variant:
        """Return one variant, with its categories.

        Args:
            name: Its name or alias; "" for the server's default.
            timeout_s: As for `classify`.

        Raises:
            VariantNotFoundError: The server does not serve it.
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
        """
        request = variant_pb2.GetVariantRequest(name=name)
        return messages.variant(
            self._call(self._stubs.variants.GetVariant, request, timeout_s).variant
        )

    def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """Return a service's health: "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN" or "UNKNOWN".

        Args:
            service: Its full name, e.g. "resnet50.v1.InferenceService"; "" for the whole server.
            timeout_s: As for `classify`.

        Raises:
            Resnet50Error: See `resnet50_client.errors`.
        """
        status: str = self._call(self._stubs.check, service, timeout_s)
        return status

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as a server has loaded its variants and takes requests.

        Args:
            timeout_s: How long to wait, in seconds.

        Raises:
            DeadlineExceededError: None was ready in time; says what was seen last.
            Resnet50Error: Another of its kinds, if the server cannot be asked for its health.
        """
        attempts = self._connection.attempts(timeout_s)
        seen = "no connection"
        while not attempts.over():
            try:
                seen = self._call(self._stubs.check, "", attempts.left_s(), wait_for_ready=True)
            except UnavailableError as error:
                seen = error.message
            except DeadlineExceededError:
                break
            if seen == "SERVING":
                return
            time.sleep(HEALTH_POLL_S)
        raise self._connection.not_ready(timeout_s, seen)

    def close(self) -> None:
        """Close the connection; calls that are under way end with CallCancelledError."""
        self._closed = True
        self._stubs.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._connection)!r})"

    def _call(
        self,
        method: Callable[..., Any],
        request: object,
        timeout_s: float | None,
        wait_for_ready: bool | None = None,
    ) -> Any:
        """Make one call, again after overload if the policy says so; failures become ours."""
        if self._closed:
            raise RuntimeError(f"{self!r} is closed; make a new one")
        attempts = self._connection.attempts(timeout_s)
        while True:
            try:
                return method(
                    request, timeout=attempts.grpc_timeout(), wait_for_ready=wait_for_ready
                )
            except grpc.RpcError as failure:
                error = error_of(failure, str(self._connection))
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    raise error from failure
            time.sleep(pause_s)
