"""The path of one request through the server, counted: python -m benchmarks.path.

A unary Classify and a frame of an open stream, each a JPEG, then raw pixels that only have to be
cropped, in a server in this process: modules of the server, the deepest nesting of its coroutines,
the objects of its own classes, coroutines, futures and tasks that are made, and the calls of
functions, in Python and in C, that the server makes (those that gRPC and asyncio make do not
count). Counted by a profile hook, the least of some requests, since timers may add to one. For an
older server, put its folder first: PYTHONPATH=OLD/server. --functions lists the calls.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import io
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import grpc
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc

PACKAGE = "resnet50_server"
REQUESTS = 20
SIDE = 232  # what the default variant resizes the shorter side to
LOOP_OBJECTS = ("create_future", "create_task")
SUSPENDABLE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Recorder:
    """A profile hook for all threads of the server.

    Attributes:
        modules: Modules of the server in which a function was called.
        awaiting: Those of them that wait: modules with a coroutine.
        depth: The most of its coroutines that awaited one another.
        made: Objects by their kind.
        called: Calls by the names of the functions.
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
        self.called: Counter[str] = Counter()

    async def record(self, request: Callable[[], Awaitable[object]]) -> None:
        """Make a request and record it."""
        self.reset()
        self._recording = True
        try:
            await request()
        finally:
            self._recording = False

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        """See a call."""
        if not self._recording or event not in ("call", "c_call"):
            return
        if event == "c_call":
            if _is_of_us(frame):
                self.called[getattr(called, "__qualname__", str(called))] += 1
            return
        code, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        if _is_ours(frame) or _is_of_us(frame.f_back):
            function = getattr(code, "co_qualname", code.co_name)  # from Python 3.11 on
            self.called[f"{module.removeprefix(f'{PACKAGE}.')}.{function}"] += 1
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


def _is_of_us(frame: FrameType | None) -> bool:
    """Return whether a function is the server's, or a library's that the server has called."""
    while frame is not None:
        if _is_ours(frame):
            return True
        if str(frame.f_globals.get("__name__", "")).startswith("asyncio"):
            return False  # uvloop does in C what asyncio does in Python
        frame = frame.f_back
    return False


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


async def measure(
    recorder: Recorder, name: str, request: Callable[[], Awaitable[object]], functions: bool
) -> None:
    """Make requests, and print the one with the fewest calls."""
    found: list[tuple[int, set[str], set[str], int, Counter[str], Counter[str]]] = []
    for _ in range(REQUESTS):
        await recorder.record(request)
        await asyncio.sleep(0.05)  # what follows a request is none of the next one
        calls = sum(recorder.called.values())
        seen = recorder.modules, recorder.awaiting, recorder.depth
        found.append((calls, *seen, recorder.made, recorder.called))
    calls, modules, awaiting, depth, made, called = min(found, key=lambda each: each[0])
    instances = {
        kind.removeprefix("instances: "): count
        for kind, count in sorted(made.items())
        if kind.startswith("instances: ")
    }
    print(
        f"{name}: {len(modules)} modules, {depth} coroutines deep, {sum(made.values())} objects,"
        f" {calls} calls"
    )
    print(f"  modules: {', '.join(sorted(modules))}")
    print(f"  with coroutines: {', '.join(sorted(awaiting))}")
    print(f"  coroutines: {made['coroutines']}; futures and tasks: {made['futures and tasks']}")
    listed = (f"{kind} {count}" if count > 1 else kind for kind, count in instances.items())
    print(f"  instances: {', '.join(listed)}")
    for function, count in sorted(called.items()) if functions else ():
        print(f"  {count:3} {function}")


def images() -> dict[str, image_pb2.Image]:
    """Return the two images by their names."""
    picture = Image.linear_gradient("L").convert("RGB")
    file = io.BytesIO()
    picture.resize((320, 240)).save(file, "JPEG")
    raw = image_pb2.RawImage(
        width=SIDE,
        height=SIDE,
        pixel_format=image_pb2.PIXEL_FORMAT_RGB,
        pixels=picture.resize((SIDE, SIDE)).tobytes(),
    )
    return {"JPEG": image_pb2.Image(encoded=file.getvalue()), "raw": image_pb2.Image(raw=raw)}


async def main(functions: bool) -> None:
    """Run all."""
    recorder = Recorder()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    server = started()
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            for kind, image in images().items():
                request = inference_pb2.ClassifyRequest(image=image)
                call = partial(stub.Classify, request)
                await measure(recorder, f"unary Classify, {kind}", call, functions)
                stream = stub.ClassifyStream()
                config = inference_pb2.ClassifyStreamConfig()
                await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
                frame = partial(send_frame, stream, image, itertools.count(1))
                await measure(recorder, f"frame, {kind}", frame, functions)
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF
    finally:
        sys.setprofile(None)
        await server.stop()


async def send_frame(stream: Any, image: image_pb2.Image, numbers: Iterator[int]) -> None:
    """Send a frame of an open stream and wait for its response."""
    frame = inference_pb2.Frame(frame_id=next(numbers), image=image)
    await stream.write(inference_pb2.ClassifyStreamRequest(frame=frame))
    assert (await stream.read()).HasField("classification")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--functions", action="store_true", help="list the calls by function")
    asyncio.run(main(parser.parse_args().functions))
