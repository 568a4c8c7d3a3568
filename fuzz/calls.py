"""Any bytes as calls: through the boundary and the servicers of a real server, without gRPC.

A call is what gRPC would hand over: a method, and the messages that arrive. So nothing but our own
code, protobuf and the decoders stands between the bytes and the answer, and coverage leads to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import grpc

from resnet50.v1 import inference_pb2, variant_pb2
from resnet50_server import parts
from resnet50_server.inference.admission import Admission
from resnet50_server.server import Server
from resnet50_server.settings import Settings

SECRET = "fuzz-0123456789-fuzz-0123456789"
# Allowed codes of a wrong call; INTERNAL, UNKNOWN and the like are findings.
ALLOWED = {
    *(grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND),
    *(grpc.StatusCode.DATA_LOSS, grpc.StatusCode.FAILED_PRECONDITION),
}
# In the order of the contract, which only grows: a method's number stays.
METHODS = [
    f"/{service.full_name}/{method.name}"
    for service in (
        inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
        variant_pb2.DESCRIPTOR.services_by_name["VariantService"],
    )
    for method in service.methods
]
SETTLED_S = 10.0
SMALL = {
    "categories": ["cat", "dog", "bird"],
    "transform": {
        "resize": 36,
        "crop": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
}


def call_bytes(path: str, messages: list[bytes]) -> bytes:
    """Return a call as bytes: the method's number, and each message behind its length."""
    sent = b"".join(len(message).to_bytes(2, "big") + message for message in messages)
    return bytes([METHODS.index(path)]) + sent


def messages_of(content: bytes) -> list[bytes]:
    """Return the messages of a call's bytes; the last one may be shorter than it says."""
    messages, at = [], 1
    while at + 2 <= len(content):
        end = at + 2 + int.from_bytes(content[at : at + 2], "big")
        messages.append(content[at + 2 : end])
        at = end
    return messages


def write_folders(folder: Path) -> None:
    """Write a small variant, `tiny`, what could be loaded beside it, and a tokens file.

    Of the latter, `other` has no weights, which some engines do without, and `broken` is broken.
    """
    small = json.dumps(SMALL)
    for name, described in (("tiny", small), ("variants/other", small), ("variants/broken", "{")):
        (folder / name).mkdir(parents=True)
        (folder / name / "variant.json").write_text(described)
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    entry = f'[[token]]\nname = "fuzz"\nsha256 = "{digest}"\nscopes = ["infer", "admin"]\n'
    (folder / "tokens.toml").write_text(entry)


class Calls:
    """A server whose servicers are called without gRPC."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._places: list[Admission] = []
        self._folder = tempfile.TemporaryDirectory(prefix="resnet50-fuzz-")
        folder = Path(self._folder.name)
        write_folders(folder)
        settings = Settings(
            listen=["127.0.0.1:0"],
            variants=[f"{name}={folder / 'tiny'}" for name in ("tiny", "second")],
            variants_dir=folder / "variants",
            weights_dir=folder,
            download=False,
            tokens_file=folder / "tokens.toml",
            engine="timed",
            timed_alpha_ms=0.0,
            timed_beta_ms=0.0,
            decode_threads=1,
            response_cache_bytes=2**22,
            max_image_pixels=2**18,
            drain_timeout_s=0.1,
        )
        with self._watched():
            self.server = Server(settings)
            self._loop.run_until_complete(self.server.start())

    def close(self) -> None:
        """Stop the server."""
        self._loop.run_until_complete(self.server.stop())
        self._loop.close()
        self._folder.cleanup()

    def make(self, content: bytes) -> str | None:
        """Make a call; return what is wrong with how it was answered, or None."""
        messages = messages_of(content)
        # A call of one message without any waits for 50 ms, until it is known who has left.
        if not messages or content[0] >= len(METHODS):
            return None
        return self._loop.run_until_complete(self._make(METHODS[content[0]], messages))

    async def _make(self, path: str, messages: list[bytes]) -> str | None:
        handler = self._handler(path)
        context = _Context(messages, handler.request_deserializer)
        answer = handler.stream_stream or handler.stream_unary
        try:
            replied = await answer(context.requests(), context)
            if replied is not None:
                context.written.append(replied)
        except grpc.aio.AbortError:
            pass
        complaint = _complaint(path, context, handler.response_serializer)
        try:
            await asyncio.wait_for(self._settled(), SETTLED_S)
        except asyncio.TimeoutError:
            return f"{path}: something of the call is still inside: {self._inside()}"
        return complaint

    def _handler(self, path: str) -> Any:
        details = mock.Mock(method=path, invocation_metadata=())
        # The first, as gRPC takes it: behind the others is one that refuses unknown methods.
        found = next(one for handlers in self._handlers if (one := handlers.service(details)))
        return found

    async def _settled(self) -> None:
        while any(self._inside()):
            await asyncio.sleep(0)

    def _inside(self) -> list[int]:
        """Return how much is inside: requests, bytes, streams."""
        counts = [(places.requests, places.bytes, places.streams) for places in self._places]
        return [sum(count) for count in zip(*counts, strict=True)]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Remember the methods and the admissions of the server that is made meanwhile."""
        make_server, make_admission = grpc.aio.server, Admission

        def server(*arguments: Any, **options: Any) -> grpc.aio.Server:
            made = make_server(*arguments, **options)
            add = made.add_generic_rpc_handlers

            def remember(handlers: Any) -> None:
                self._handlers.extend(handlers)
                add(handlers)

            setattr(made, "add_generic_rpc_handlers", remember)  # noqa: B010
            return made

        def admission(*arguments: Any, **options: Any) -> Admission:
            self._places.append(make_admission(*arguments, **options))
            return self._places[-1]

        with (
            mock.patch.object(grpc.aio, "server", server),
            mock.patch.object(parts, "Admission", admission),
        ):
            yield


class _Context:
    """Context of a call, as gRPC passes it.

    Args:
        messages: That arrive.
        parse: Makes a request of one.
    """

    def __init__(self, messages: list[bytes], parse: Callable[[bytes], Any]) -> None:
        self._arriving = iter(messages)
        self._parse = parse
        self.written: list[Any] = []
        self.code = grpc.StatusCode.OK
        self.text = ""

    async def requests(self) -> AsyncIterator[Any]:
        """Give the requests."""
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    async def read(self) -> Any:
        """Return the next request, or EOF."""
        message = next(self._arriving, None)
        return grpc.aio.EOF if message is None else self._parse(message)

    async def write(self, reply: Any) -> None:
        """Take a reply."""
        self.written.append(reply)

    async def abort(self, code: grpc.StatusCode, text: str, trailing: Any = ()) -> None:
        """End the call."""
        self.code, self.text = code, text
        raise grpc.aio.AbortError

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what says who calls."""
        return (("authorization", f"Bearer {SECRET}"),)

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Take what goes with the status."""

    def peer(self) -> str:
        """Return where the call comes from."""
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, Any]:
        """Return what TLS knows."""
        return {}

    def time_remaining(self) -> float | None:
        """Return the deadline: none."""
        return None


def _complaint(
    path: str, context: _Context, serialize: Callable[[Any], bytes] | None
) -> str | None:
    """Return what is wrong with an answer, or None."""
    if context.code not in ALLOWED:
        return f"{path}: {context.code.name}: {context.text}"
    if context.code is not grpc.StatusCode.OK and ":" not in context.text:
        return f"{path}: {context.code.name} names no field: {context.text!r}"
    numbers = {code.value[0] for code in ALLOWED}
    for reply in context.written:
        if serialize is None:  # it is bytes
            continue
        serialize(reply)
        error = getattr(reply, "error", None)
        if error is not None and error.code not in numbers:
            return f"{path}: frame {reply.frame_id}: {error.code}: {error.message}"
    return None
