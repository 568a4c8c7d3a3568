"""A whole benchmark: query the servers' variant, prepare images, run the loads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial

from resnet50.v1 import image_pb2
from resnet50_client._client import Client
from resnet50_client._profiles import Profile
from resnet50_client._retries import RetryPolicy
from resnet50_client.errors import UnavailableError
from resnet50_client.types import Transform, Variant

from . import sweep as sweeps
from .calls import PLAINTEXT
from .environment import machine, variant_info, versions
from .plan import Plan
from .processes import LoadProcesses
from .recorder import Progress
from .result import Bench
from .run import Run
from .runner import OnStart, measure
from .sample_images import images_of

OnRun = Callable[[Plan, Callable[[], Progress]], None]
Measure = Callable[[Plan, threading.Event, OnStart | None], Run]


def served(plan: Plan, access: Profile = PLAINTEXT) -> Variant:
    """Return the variant of a plan, after checking that all its servers have the same.

    Raises:
        Resnet50Error: A server is unreachable, lacks the variant, or it is not ready.
        ValueError: An address is invalid, or the servers have different weights.
    """
    variants = []
    for address in plan.servers:
        where = replace(access, server=(address,), timeout_s=plan.timeout_s).arguments()
        with Client(**where, retry=RetryPolicy(attempts=1)) as client:
            variant = client.get_variant(plan.variant)
        if variant.state != "ready":
            raise UnavailableError(
                f"{address}: {variant.name} is {variant.state}, not ready;"
                f" first run: resnet50 health --wait-s 600 --server {address}",
                code="UNAVAILABLE",
            )
        variants.append(variant)
    if len({(variant.name, variant.digest) for variant in variants}) > 1:
        named = ", ".join(
            f"{address}: {variant.name}@{(variant.digest or '-')[:12]}"
            for address, variant in zip(plan.servers, variants, strict=True)
        )
        raise ValueError(f"server: all servers of a benchmark need the same weights: {named}")
    return variants[0]


def bench(
    plan: Plan,
    sweep: Sequence[float] = (),
    stop: threading.Event | None = None,
    on_run: OnRun | None = None,
    access: Profile = PLAINTEXT,
) -> Bench:
    """Run a benchmark from start to end; blocks.

    Args:
        plan: The benchmark; a sweep ignores its load.
        sweep: Loads as fractions of the capacity, which is measured first; empty for the plan's
            load only.
        stop: Ends the benchmark early when set; the results so far are returned.
        on_run: Called at the start of each run with its plan, and a function that returns its
            progress.
        access: Connection options; addresses and timeout are the plan's.

    Raises:
        Resnet50Error: A server is unreachable, or lacks the variant.
        OSError: An image cannot be read.
        ChildProcessError: A process of the load generator has ended.
        ValueError: An address, `server_pid` or an image is invalid.
    """
    stop = stop or threading.Event()
    variant = served(plan, access)
    images = images_of(plan, _frame_size(variant.transform))
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")

    runs: list[Run] = []
    probes: list[Run] = []
    capacity = None
    with _load_generator(plan, images, access) as measured:

        def run(one: Plan) -> Run:
            on_start = partial(on_run, one) if on_run is not None else None
            return measured(one, stop, on_start)

        loads = [plan.load]
        if sweep:
            probes = list(sweeps.probes(plan, run, stop))
            capacity = sweeps.capacity_of(probes)
            loads = sweeps.loads(capacity, sweep) if capacity else []
        # Each load once, then all again: a drift of the machine shows in the spread.
        for number in range(plan.repeat):
            for load in loads:
                if stop.is_set() and (runs or probes):
                    break
                one = run(plan.repetition(number).under(load))
                if one.calls or not stop.is_set() or not (runs or probes):
                    runs.append(one)
    return Bench(
        date=date,
        plan=plan if not runs else plan.under(runs[0].load),
        machine=machine(),
        versions=versions(),
        variant=variant_info(variant),
        runs=runs,
        capacity_per_s=capacity,
        probes=probes,
    )


@contextmanager
def _load_generator(
    plan: Plan, images: Sequence[image_pb2.Image], access: Profile
) -> Iterator[Measure]:
    """Return a function that runs a load, in this process or in as many as the plan has."""
    if plan.processes == 1:

        def measured(one: Plan, stop: threading.Event, on_start: OnStart | None) -> Run:
            return measure(one, images, stop, on_start, access)

        yield measured
        return
    with LoadProcesses(plan.processes, images, access) as processes:
        yield processes.measure


def _frame_size(transform: Transform) -> tuple[int, int]:
    """Return height and width of a raw frame that the server only copies."""
    side = transform.resize or transform.resize_longer_side
    return transform.resize_to or ((side, side) if side else transform.input_size)
