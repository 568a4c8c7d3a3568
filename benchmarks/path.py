"""The path of one request through the server, counted: python -m benchmarks.path.

A unary Classify and a frame of an open stream, each a JPEG, in a server in this process: modules of
the server, the deepest nesting of its coroutines, and the objects of its own classes, coroutines,
futures and tasks that are made. Counted by a profile hook, the least of some requests, since timers
may add to one. For an older server, put its folder first: PYTHONPATH=OLD/server.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import grpc
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc

PACKAGE = "resnet50_server"
REQUESTS = 20
LOOP_OBJECTS = ("create_future", "create_task")
SUSPENDABLE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Recorder:
    """A profile hook for all threads of the server.

    Attributes:
        modules: Modules of the server in which a function was called.
        awaiting: Those of them that wait: modules with a coroutine.
        depth: The most of its coroutines that awaited one another.
        made: Objects by their kind.
    """

    def __init__(self) -> None:
        self._recording = False
        self._kept: dict[int, Any] = {}  # as long as it is here, its id is its own
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.modules: set[str] = set()
        self.awaiting: set[str] = set()
        self.depth = 0
        self.made: Counter[str] = Counter()

    async def record(self, request: Callable[[], Awaitable[object]]) -> None:
        """Make a request and record it."""
        self.reset()
        self._recording = True
        try:
            await request()
        finally:
            self._recording = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """See a call."""
        if not self._recording or event != "call":
            return
        code, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        if module.startswith("namedtuple_") and _is_ours(frame.f_back):
            self._count(f"instances: {module.removeprefix('namedtuple_')}", frame)
        elif code.co_name in LOOP_OBJECTS and _is_ours(frame.f_back):
            self._count("futures and tasks", frame)
        if not module.startswith(PACKAGE):
            return
        self.modules.add(module.removeprefix(f"{PACKAGE}."))
        if code.co_flags & SUSPENDABLE:
            self._count("coroutines", frame)
            self.awaiting.add(module.removeprefix(f"{PACKAGE}."))
            self.depth = max(self.depth, _nesting(frame))
        if code.co_name == "__init__":
            made = frame.f_locals[code.co_varnames[0]]
            self._count(f"instances: {type(made).__name__}", made)

    def _count(self, kind: str, made: object) -> None:
        if id(made) not in self._kept:
            self._kept[id(made)] = made
            self.made[kind] += 1


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith(PACKAGE)


def _nesting(frame: FrameType | None) -> int:
    depth = 0
    while frame is not None:
        depth += bool(_is_ours(frame) and frame.f_code.co_flags & SUSPENDABLE)
        frame = frame.f_back
    return depth


def started() -> Any:
    """Return a server that is not started; its module had another name once."""
    try:
        server = importlib.import_module(f"{PACKAGE}.server")
    except ImportError:
        server = importlib.import_module(f"{PACKAGE}.app")
    settings = importlib.import_module(f"{PACKAGE}.settings").Settings(
        listen=["127.0.0.1:0"],
        variants=["IMAGENET1K_V2"],
        engine="timed",
        timed_alpha_ms=0.0,
        timed_beta_ms=0.0,
    )
    return server.Server(settings)


async def measure(recorder: Recorder, what: str, request: Callable[[], Awaitable[object]]) -> None:
    """Make requests, and print the one that crossed least."""
    found: list[tuple[int, set[str], set[str], int, Counter[str]]] = []
    for _ in range(REQUESTS):
        await recorder.record(request)
        await asyncio.sleep(0.05)  # what follows a request is none of the next one
        total = sum(recorder.made.values())
        found.append((total, recorder.modules, recorder.awaiting, recorder.depth, recorder.made))
    total, modules, awaiting, depth, made = min(found, key=lambda each: (len(each[1]), each[0]))
    instances = {
        kind.removeprefix("instances: "): count
        for kind, count in sorted(made.items())
        if kind.startswith("instances: ")
    }
    print(f"{what}: {len(modules)} modules, {depth} coroutines deep, {total} objects")
    print(f"  modules: {', '.join(sorted(modules))}")
    print(f"  with coroutines: {', '.join(sorted(awaiting))}")
    print(f"  coroutines: {made['coroutines']}; futures and tasks: {made['futures and tasks']}")
    listed = (f"{name} {count}" if count > 1 else name for name, count in instances.items())
    print(f"  instances: {', '.join(listed)}")


async def main() -> None:
    """Run both."""
    recorder = Recorder()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((320, 240)).save(file, "JPEG")
    image = image_pb2.Image(encoded=file.getvalue())
    server = started()
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = inference_pb2.ClassifyRequest(image=image)
            await measure(recorder, "unary Classify", lambda: stub.Classify(request))
            stream = stub.ClassifyStream()
            config = inference_pb2.ClassifyStreamConfig()
            await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
            sent = 0

            async def frame() -> None:
                nonlocal sent
                sent += 1
                frame = inference_pb2.Frame(frame_id=sent, image=image)
                await stream.write(inference_pb2.ClassifyStreamRequest(frame=frame))
                assert (await stream.read()).HasField("classification")

            await measure(recorder, "frame", frame)
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
    finally:
        sys.setprofile(None)
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
