"""How close the server comes to its policy: python -m benchmarks.batching [NAME]...

latency   open loop at 50% and 80% of a timed engine's capacity: p99 against the simulated policy's
overload  1.3 times the capacity, with deadlines: answers on time, and how soon refusals come
ahead     when to prepare a batch while another is computed (simulation only)
goodput   the batcher in virtual time, on devices whose batches last longer or shorter than
          expected, at 1.3 times their capacity: answers on time, and when the others are refused;
          with PYTHONPATH=CHECKOUT/server, another checkout's
recovery  the same batcher while a device is slower than usual, and after that: bursts of 12 images

The simulation (tests/support/simulation.py) gets the very arrival times that are sent. Latencies
count from the time at which a request should be sent, so that a generator that is late does not
hide anything.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from benchmarks.measures import parser_of
from benchmarks.overhead import undecoded
from benchmarks.process import cpu_s, server
from resnet50.v1 import inference_pb2
from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.queue import VariantQueue
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.context import RequestContext
from resnet50_server.errors import ServingError
from tests.support import virtual_time
from tests.support.simulation import Device, poisson, quantile, simulate
from tests.support.virtual_device import FakeEngine, Threads, image

DEVICE = Device(alpha_s=0.021, beta_s=0.00147, limit=32)
CHANNELS = 4
SECONDS = 12.0
LEAD_S = 1.0
SEEDS = 3
WITHIN_S = 13 * DEVICE.batch_s(1)
CLASSIFY = "/resnet50.v1.InferenceService/Classify"


# Devices that are overloaded in virtual time, and the time from arrival to deadline.
OVERLOADED = {
    "CPU, int8": (Device(0.011, 0.035, 32), 1.0),
    "CPU, fp32": (Device(0.004, 0.059, 32), 1.0),
    "CPU with AMX, fp32": (Device(0.005, 0.0225, 32), 1.0),
    "timed": (DEVICE, WITHIN_S),
}
SCATTER = 0.12
# Images at once, their deadline, and the time from one burst to the next.
BURST, BURST_WITHIN_S, PAUSE_S = 12, 2.0, 0.1
# Seconds of an image while the device is slow, and the power of the batch size that a batch costs.
SLOW_PHASES = {
    "3 times slower": (0.2, 1.0),
    "3 times slower, larger batches more so": (0.2, 1.3),
    "8 times slower": (0.5, 1.0),
}
USUAL_S = 0.06


@dataclass(frozen=True)
class Call:
    """One request, in seconds from the time at which it should be sent.

    Attributes:
        due: That time, from the start.
        sent: When it was sent.
        done: When it was over.
        code: How.
    """

    due: float
    sent: float
    done: float
    code: grpc.StatusCode


def timed() -> tuple[str, ...]:
    """Return the options of a server that sleeps as `DEVICE` computes."""
    return (
        *("--engine", "timed", "--max-batch-size", str(DEVICE.limit)),
        *("--timed-alpha-ms", str(DEVICE.alpha_s * 1e3)),
        *("--timed-beta-ms", str(DEVICE.beta_s * 1e3)),
    )


def request() -> bytes:
    """Return a request whose image only has to be cropped."""
    return inference_pb2.ClassifyRequest(image=undecoded()).SerializeToString()


async def send(
    address: str,
    arrivals: list[float],
    within_s: float | None,
    contents: Sequence[bytes] = (),
) -> list[Call]:
    """Send one request at each of the times; never wait for answers.

    Requests are bytes already and answers stay bytes: the generator shares the machine.

    Args:
        address: Of the server.
        arrivals: When to send, in seconds from the start, rising.
        within_s: Deadline of each, in seconds from then; None for none.
        contents: Requests, sent in turn; by default `request`.
    """
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
    methods = [channel.unary_unary(CLASSIFY) for channel in channels]
    contents, calls = contents or [request()], []
    await asyncio.gather(*(method(contents[0], wait_for_ready=True) for method in methods))
    start = time.perf_counter() + 0.1

    async def one(number: int, due: float) -> None:
        sent = time.perf_counter() - start
        timeout = None if within_s is None else due + within_s - sent
        try:
            await methods[number % CHANNELS](contents[number % len(contents)], timeout=timeout)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        calls.append(Call(due, sent - due, time.perf_counter() - start - due, code))

    tasks = []
    for number, due in enumerate(arrivals):
        if (left := start + due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()
    return calls


def measure_latency() -> None:
    """Compare the server's tail with the tail of its policy."""
    with server(*timed()) as (address, pid):
        for load in (0.5, 0.8):
            ratios = []
            for seed in range(SEEDS):
                rate = load * DEVICE.capacity
                arrivals = poisson(rate, int(rate * SECONDS), seed)
                before = cpu_s(pid)
                calls = asyncio.run(send(address, arrivals, None))
                used = (cpu_s(pid) - before) / SECONDS
                counted = [call for call in calls if call.due > LEAD_S]
                expected = simulate(DEVICE, arrivals)
                simulated = [
                    latency
                    for number, latency in expected.latency_s.items()
                    if arrivals[number] > LEAD_S
                ]
                row = []
                for q in (0.5, 0.99):
                    served = quantile([call.done for call in counted], q)
                    policy = quantile(simulated, q)
                    row.append(f"p{100 * q:.0f} {served * 1e3:.1f} / {policy * 1e3:.1f} ms")
                ratios.append(served / policy)
                failed = sum(call.code is not grpc.StatusCode.OK for call in calls)
                late = quantile([call.sent for call in counted], 0.99)
                print(
                    f"latency  load {load:.0%} seed {seed}: {len(calls)} calls, {failed} failed;"
                    f" served / simulated {', '.join(row)}: {ratios[-1]:.3f}; generator late by"
                    f" {late * 1e3:.1f} ms (p99), server CPU {used:.0%} of a core"
                )
            print(
                f"latency  load {load:.0%}: p99 ÷ simulated p99, median of {SEEDS} seeds"
                f" {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            )


def measure_overload() -> None:
    """Offer more than can be served; count what came in time, and how refusals came."""
    rate = 1.3 * DEVICE.capacity
    goodputs, prompt = [], []
    with server(*timed()) as (address, _):
        for seed in range(SEEDS):
            arrivals = poisson(rate, int(rate * SECONDS), seed)
            calls = asyncio.run(send(address, arrivals, WITHIN_S))
            counted = [call for call in calls if call.due > LEAD_S]
            good = [
                call
                for call in counted
                if call.code is grpc.StatusCode.OK and call.done <= WITHIN_S
            ]
            refused = [call for call in counted if call.code is not grpc.StatusCode.OK]
            late = len(counted) - len(good) - len(refused)
            goodputs.append(len(good) / (arrivals[-1] - LEAD_S) / DEVICE.capacity)
            took = [call.done - call.sent for call in refused]
            prompt.append(sum(one <= 0.010 for one in took) / len(took))
            passed = sum(call.done >= 0.95 * WITHIN_S for call in refused)
            expected = simulate(DEVICE, arrivals, [WITHIN_S] * len(arrivals))
            sim_good: float = sum(arrivals[n] > LEAD_S for n in expected.latency_s)
            sim_good /= (arrivals[-1] - LEAD_S) * DEVICE.capacity
            print(
                f"overload seed {seed}: {len(counted)} calls; on time {len(good)}"
                f" ({goodputs[-1]:.3f} of capacity; simulated {sim_good:.3f}), answered late"
                f" {late}, refused {len(refused)} of which when the deadline had come {passed};"
                f" a refusal takes p50 {quantile(took, 0.5) * 1e3:.1f} p90"
                f" {quantile(took, 0.9) * 1e3:.1f} p99 {quantile(took, 0.99) * 1e3:.1f} ms,"
                f" {prompt[-1]:.1%} within 10 ms; generator late by"
                f" {quantile([call.sent for call in counted], 0.99) * 1e3:.1f} ms (p99)"
            )
    print(
        f"overload 1.3: on time ÷ capacity, median of {SEEDS} seeds"
        f" {statistics.median(goodputs):.3f}; refusals within 10 ms"
        f" {statistics.median(prompt):.1%}"
    )


def compare_ahead() -> None:
    """Simulate a GPU whose batches are stacked and copied by the host meanwhile."""
    common: dict[str, Any] = {"alpha_s": 0.0005, "beta_s": 0.000075, "limit": 128}
    for prepare in (0.000005, 0.00002):
        for load in (0.05, 0.5, 0.8, 0.95, 1.2):
            row = []
            for ahead in ("never", "full", "prepared", "always"):
                device = Device(**common, prepare_alpha_s=1e-4, prepare_beta_s=prepare, ahead=ahead)
                arrivals = poisson(load * device.capacity, 20000, 0)
                played = simulate(device, arrivals)
                p50, p99 = (quantile(played.latency_s.values(), q) * 1e3 for q in (0.5, 0.99))
                throughput = len(arrivals) / played.end / device.capacity
                row.append(
                    f"{ahead} {p50:.2f} / {p99:.2f} ms"
                    if load < 1
                    else f"{ahead} {throughput:.1%} of capacity"
                )
            print(f"ahead    {prepare * 1e6:.0f} us an image, load {load:.0%}: {', '.join(row)}")


class UnsteadyThreads(Threads):
    """Computes a batch in as many virtual seconds as it should take, times a random factor."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._free = 0.0

    def submit_callback(self, call: Any, done: Any) -> None:
        """See `WorkerThreads.submit_callback`."""
        loop, (images, *_) = asyncio.get_running_loop(), call.args
        engine: FakeEngine = call.func.__self__
        took_s = (engine.alpha + engine.beta * len(images)) * math.exp(
            self._draw.gauss(0.0, SCATTER)
        )
        self._free = max(loop.time(), self._free) + took_s
        loop.call_at(self._free, done, replace(call(), compute_s=took_s), None)


async def overload(device: Device, within_s: float, seed: int) -> tuple[dict[str, int], float]:
    """Offer 1.3 times what a device can; return the outcomes, and the capacity."""
    loop, draw, size = asyncio.get_running_loop(), random.Random(seed), device.limit
    engine = FakeEngine(device.alpha_s, device.beta_s)
    scheduler = Scheduler(BatchPolicy(size, max_queue_size=10**6), UnsteadyThreads(draw))
    warm = [(images, device.batch_s(images)) for images in (1, 4)]
    queue = scheduler.add("v", engine, warm)
    became = dict.fromkeys(("on time", "late", "refused as they came", "refused later"), 0)
    arrivals = poisson(1.3 * device.capacity, 4000, seed)

    async def one(due: float) -> None:
        await asyncio.sleep(due - loop.time())
        try:
            answer = scheduler.submit(
                queue,
                image(0),
                top_k=1,
                with_embedding=False,
                context=RequestContext("", "", (), deadline=due + within_s),
            )
        except ServingError:
            became["refused as they came"] += 1
            return
        try:
            await answer
            became["on time" if loop.time() <= due + within_s else "late"] += 1
        except ServingError:
            became["refused later"] += 1

    await asyncio.gather(*map(one, arrivals))
    await scheduler.close()
    return became, arrivals[-1] * device.capacity


def measure_goodput() -> None:
    """Overload devices in virtual time."""
    for name, (device, within_s) in OVERLOADED.items():
        goodputs, total = [], dict[str, int]()
        for seed in range(SEEDS):
            became, capacity = virtual_time.run(overload(device, within_s, seed))
            goodputs.append(became["on time"] / capacity)
            total = {what: total.get(what, 0) + count for what, count in became.items()}
        refused = total["refused as they came"] + total["refused later"]
        print(
            f"goodput  {name}: on time ÷ capacity, median of {SEEDS} seeds"
            f" {statistics.median(goodputs):.3f}; late {total['late'] / sum(total.values()):.1%};"
            f" of the refusals, later than on arrival {total['refused later'] / refused:.0%}"
        )


class ChangingThreads(Threads):
    """Computes a batch in as many virtual seconds as the device takes now.

    Attributes:
        image_s: Seconds of an image alone.
        power: Of the batch size that a batch costs.
    """

    def __init__(self) -> None:
        self.image_s, self.power = USUAL_S, 1.0

    def submit_callback(self, call: Any, done: Any) -> None:
        """See `WorkerThreads.submit_callback`."""
        loop, (images, *_) = asyncio.get_running_loop(), call.args
        took_s = self.image_s * len(images) ** self.power
        loop.call_later(took_s, done, replace(call(), compute_s=took_s), None)


async def burst(scheduler: Scheduler, queue: VariantQueue) -> int:
    """Submit images at once; return how many are answered in time."""
    loop = asyncio.get_running_loop()
    due, answers = loop.time() + BURST_WITHIN_S, []
    context = RequestContext("", "", (), deadline=due)
    for number in range(BURST):
        try:
            answers.append(
                scheduler.submit(
                    queue, image(number), top_k=1, with_embedding=False, context=context
                )
            )
        except ServingError:
            continue
    in_time = 0
    for answer in answers:
        try:
            await answer
            in_time += loop.time() <= due
        except ServingError:
            continue
    return in_time


async def recover(image_s: float, power: float) -> list[int]:
    """Return how many of each burst are answered: one while the device is slow, six after that."""
    threads = ChangingThreads()
    scheduler = Scheduler(BatchPolicy(), threads)
    # So slow that only a batch of one was measured as the server started.
    queue = scheduler.add("v", FakeEngine(), [(1, image_s)])
    threads.image_s, threads.power = image_s, power
    answered = [await burst(scheduler, queue)]
    threads.image_s, threads.power = USUAL_S, 1.0
    for _ in range(6):
        await asyncio.sleep(PAUSE_S)
        answered.append(await burst(scheduler, queue))
    await scheduler.close()
    return answered


def measure_recovery() -> None:
    """Slow a device down in virtual time, and let it be as fast as usual again."""
    for name, (image_s, power) in SLOW_PHASES.items():
        slow, *after = virtual_time.run(recover(image_s, power))
        later = ", ".join(map(str, after))
        print(f"recovery {name}: {slow} of {BURST} in time; after that {later}")


def main() -> None:
    """Run what was asked for, or everything."""
    measures = {
        "latency": measure_latency,
        "overload": measure_overload,
        "ahead": compare_ahead,
        "goodput": measure_goodput,
        "recovery": measure_recovery,
    }
    for name in parser_of(__doc__, measures).parse_args().what or measures:
        measures[name]()


if __name__ == "__main__":
    main()
