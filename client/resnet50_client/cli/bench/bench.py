"""A whole benchmark: the server is asked who it is, the images are made, the runs are run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial

from ...client import Client
from ...errors import UnavailableError
from ...profile import Profile
from ...results import Variant
from ...retries import RetryPolicy
from . import sweep as sweeps
from .calls import CLEAR_TEXT
from .machine import facts, machine, versions
from .pictures import images_of
from .plan import Plan
from .record import Record
from .result import Bench, Run
from .run import measure

Watch = Callable[[Plan, Record], None]


def served(plan: Plan, access: Profile = CLEAR_TEXT) -> Variant:
    """Ask every server of a plan for the variant; return what they say.

    Raises:
        Resnet50Error: One does not answer, does not serve the variant, or is not ready to.
        ValueError: An address is wrong, or the servers do not serve the same weights.
    """
    found = []
    for address in plan.servers:
        where = replace(access, server=(address,), timeout_s=plan.timeout_s).arguments()
        with Client(**where, retry=RetryPolicy(attempts=1)) as client:
            one = client.variant(plan.variant)
        if one.state != "ready":
            raise UnavailableError(
                f"{address}: {one.name} is {one.state}, and would be measured while it is not"
                f" ready; first run: resnet50 health --wait-s 600 --server {address}",
                code="UNAVAILABLE",
            )
        found.append(one)
    if len({(one.name, one.digest) for one in found}) > 1:
        named = ", ".join(
            f"{address}: {one.name}@{one.digest[:12]}"
            for address, one in zip(plan.servers, found, strict=True)
        )
        raise ValueError(f"server: these serve different weights, which are not one load: {named}")
    return found[0]


def bench(
    plan: Plan,
    sweep: Sequence[float] = (),
    stop: threading.Event | None = None,
    watch: Watch | None = None,
    access: Profile = CLEAR_TEXT,
) -> Bench:
    """Run a benchmark from start to end; blocks.

    Args:
        plan: What to do; its load is ignored by a sweep.
        sweep: Shares of the capacity, which is found first; none means the plan's load alone.
        stop: Ends it before its time, once set; what was measured until then is returned.
        watch: Is given the plan and the record of each run as it starts.
        access: Says how servers are spoken to; its addresses and deadline are the plan's.

    Raises:
        Resnet50Error: A server does not answer, or does not serve the variant.
        OSError: An image cannot be read.
        ValueError: An address, `server_pid` or an image is wrong.
    """
    stop = stop or threading.Event()
    variant = served(plan, access)
    images = images_of(plan, variant.transform.resize)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def run(one: Plan) -> Run:
        look_on = partial(watch, one) if watch is not None else None
        return measure(one, images, stop, look_on, access)

    runs, probes, capacity = [], [], None
    if sweep:
        probes = list(sweeps.probes(plan, run, stop))
        capacity = sweeps.capacity_of(probes)
        for load in sweeps.loads(capacity, sweep) if capacity else ():
            one = run(plan.under(load))
            if stop.is_set() and not one.calls:
                break
            runs.append(one)
            if stop.is_set():
                break
    else:
        runs.append(run(plan))
    return Bench(
        date=date,
        plan=plan if not runs else plan.under(runs[0].load),
        machine=machine(),
        versions=versions(),
        variant=facts(variant),
        runs=runs,
        capacity_per_s=capacity,
        probes=probes,
    )
