"""`resnet50-server serve` with a fault in it, which a magenta or a marked image brings about; or
with a variant named "sick", which is loaded like any other and then answers NaN to everything.

    python tests/support/faulty_server.py FAULT serve OPTIONS

A hang is where a real one would be: in an engine thread, in a decode thread, in a callback of the
event loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import resnet50_server.cli.serve
import resnet50_server.inference.pipeline
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.cli.main import run
from resnet50_server.engines.stub_engines import TimedEngine
from resnet50_server.inference.pipeline import Pipeline
from resnet50_server.runtime.loop_watchdog import LoopWatchdog

# A decoder may be off by a little.
MAGENTA = np.array([255, 0, 255], dtype=np.uint8)
# Bytes behind a file's end are read by no decoder.
MARK = b"this one"


def hang_here() -> None:
    """Never return."""
    threading.Event().wait()


def is_bad(pixels: np.ndarray) -> bool:
    return bool(np.abs(pixels[0, 0].astype(int) - MAGENTA).max() < 16)


def is_marked(source: object) -> bool:
    return isinstance(source, bytes) and source.endswith(MARK)


def in_engine(fault: Callable[[], object]) -> None:
    """Have the timed engine meet a fault in a batch that holds such an image."""
    compute = TimedEngine.run

    def run(engine, images, *arguments):
        if any(is_bad(pixels) for pixels in images):
            fault()
        return compute(engine, images, *arguments)

    TimedEngine.run = run


# Modules whose names are replaced.
_pipeline: Any = resnet50_server.inference.pipeline
_serve: Any = resnet50_server.cli.serve


def in_decoder(fault: Callable[[], object]) -> None:
    decode = _pipeline.decode

    def decode_or_not(source, *arguments, **options):
        if is_marked(source):
            fault()
        return decode(source, *arguments, **options)

    _pipeline.decode = decode_or_not


def in_loop(fault: Callable[[], object], watchdog_s: float = 2.0) -> None:
    infer = Pipeline.infer

    def infer_or_not(pipeline, source, *arguments):
        if is_marked(source):
            fault()
        return infer(pipeline, source, *arguments)

    Pipeline.infer = infer_or_not
    _serve.LoopWatchdog = partial(LoopWatchdog, watchdog_s)


def in_stop(fault: Callable[[], None]) -> None:
    """Have the engine hang, and stopping the server as well, on the loop."""

    async def stop(_: object) -> None:
        await asyncio.Event().wait()

    in_engine(fault)
    _serve.Server.stop = stop
    resnet50_server.cli.serve.FAULT_STOP_S = 0.5


def write_to_stderr() -> None:
    """Write in the ways of Python itself and of libraries, more than a pipe of one page takes."""
    for number in range(50):
        warnings.warn_explicit(f"warning {number} " + "x" * 200, RuntimeWarning, __file__, number)
        print("printed", file=sys.stderr, flush=True)
    logging.getLogger(__name__).error("%d", "no number")  # reported by `Handler.handleError`


def fail() -> None:
    raise RuntimeError("as the test wants it")


def fail_once() -> None:
    if not failures:
        failures.append(None)
        fail()


failures: list[None] = []


def in_variant(name: str) -> None:
    """Make a variant answer NaN after it was loaded and checked."""
    add = Scheduler.add

    def add_sick(scheduler, named, engine, *arguments):
        if named == name:
            compute = engine.run

            def run(*batch):
                output = compute(*batch)
                nan = np.full_like(output.probabilities, np.nan)
                return output._replace(probabilities=nan)

            engine.run = run
        return add(scheduler, named, engine, *arguments)

    Scheduler.add = add_sick


FAULTS = {
    "variant-answers-nan": lambda: in_variant("sick"),
    "engine-hangs": lambda: in_engine(hang_here),
    "engine-and-stop-hang": lambda: in_stop(hang_here),
    "engine-fails": lambda: in_engine(fail),
    "engine-fails-once": lambda: in_engine(fail_once),
    "decoder-hangs": lambda: in_decoder(hang_here),
    "loop-hangs": lambda: in_loop(partial(time.sleep, 10**6)),
    "loop-writes-to-stderr": lambda: in_loop(write_to_stderr, watchdog_s=60.0),
    # PyDLL keeps the GIL while it calls.
    "gil-is-kept": lambda: in_loop(partial(ctypes.PyDLL(None).sleep, 10**6)),
}


def main() -> None:
    FAULTS[sys.argv.pop(1)]()
    run()


if __name__ == "__main__":
    main()
