"""Description of a benchmark: its load, calls and duration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from resnet50_client._addresses import DEFAULT_SERVER
from resnet50_client._frames import Delivery

Shape: TypeAlias = Literal["unary", "upload", "stream"]
Operation: TypeAlias = Literal["classify", "embed"]
LoadKind: TypeAlias = Literal["closed", "poisson", "paced"]


@dataclass(frozen=True)
class Load:
    """Arrival of calls: one of `concurrency`, `rate_per_s` and `fps` is set.

    Attributes:
        concurrency: Closed loop: constant number of calls in flight; a call is made when another
            one completes, so a slow server gets fewer calls.
        rate_per_s: Open loop: calls per second at random times (Poisson), independent of the
            server.
        fps: Paced: each stream sends a frame every 1 / fps seconds, independent of the server.
        share: The load as a fraction of the measured capacity, in a sweep.
    """

    concurrency: int | None = None
    rate_per_s: float | None = None
    fps: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        given = [one for one in (self.concurrency, self.rate_per_s, self.fps) if one is not None]
        if len(given) != 1:
            raise ValueError(
                "load: set one of concurrency (closed loop), rate (open loop) and fps (streams);"
                f" {len(given)} are set"
            )
        if not given[0] > 0:
            raise ValueError(f"load: is {given[0]}, must be above 0")

    @property
    def kind(self) -> LoadKind:
        """Kind of the load."""
        if self.concurrency is not None:
            return "closed"
        return "poisson" if self.rate_per_s is not None else "paced"

    def offered_per_s(self, streams: int) -> float | None:
        """Return the calls per second; None if it depends on the server."""
        return self.rate_per_s if self.fps is None else streams * self.fps

    def describe(self, streams: int) -> str:
        """Return a short description."""
        if self.concurrency is not None:
            return f"{self.concurrency} in flight"
        if self.fps is not None:
            return f"{streams} x {self.fps:g} fps"
        assert self.rate_per_s is not None
        share = f"{self.share:.0%}: " if self.share is not None else ""
        rate = self.rate_per_s
        return share + (f"{rate:.0f}/s" if rate >= 100 else f"{rate:.3g}/s")


@dataclass(frozen=True)
class Plan:
    """Parameters of a benchmark, without connection options.

    Attributes:
        servers: Server addresses, used round-robin.
        load: Arrival of calls.
        shape: "unary", "upload" (client streaming) or "stream" (a call is a frame).
        operation: "classify" or "embed".
        variant: Name of the variant; None for the server's default.
        duration_s: Measured duration in seconds.
        warm_up_s: Warm-up before that in seconds.
        requests: Stop after this many measured calls; None for no limit.
        timeout_s: Timeout of a call in seconds from its intended time.
        channels: Connections per server.
        streams: Number of streams, distributed over the connections; for shape "stream".
        delivery: Delivery of frames; for shape "stream".
        files: Image files and folders; empty for generated images.
        raw: Send pixels of the model's input size instead of encoded images.
        generated: Number of distinct generated images.
        seed: Random seed of arrivals and generated images.
        server_pid: Local process whose CPU and memory are measured, with its descendants.
        processes: Number of processes that make the calls, each a part of them.
        repeat: Number of runs of each load.

    Raises:
        ValueError: A number is out of range, or two options conflict.
    """

    load: Load
    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    shape: Shape = "unary"
    operation: Operation = "classify"
    variant: str | None = None
    duration_s: float = 10.0
    warm_up_s: float = 2.0
    requests: int | None = None
    timeout_s: float = 30.0
    channels: int = 1
    streams: int = 1
    delivery: Delivery = "ordered"
    files: tuple[str, ...] = ()
    raw: bool = False
    generated: int = 16
    seed: int = 0
    server_pid: int | None = None
    processes: int = 1
    repeat: int = 1

    def __post_init__(self) -> None:
        if not self.servers:
            raise ValueError("server: pass at least one address")
        for name in ("duration_s", "timeout_s", "channels", "streams", "generated"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be above 0")
        for name in ("processes", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 1 or more")
        if not self.warm_up_s >= 0:
            raise ValueError(f"warm_up_s: is {self.warm_up_s}, must be 0 or more")
        if self.requests is not None and self.requests < 1:
            raise ValueError(f"requests: is {self.requests}, must be 1 or more")
        if self.shape != "stream":
            for name, given in (
                ("fps", self.load.fps is not None),
                ("streams", self.streams > 1),
                ("delivery", self.delivery != "ordered"),
            ):
                if given:
                    raise ValueError(f"{name}: requires shape stream, is {self.shape}")
        if self.shape == "upload" and self.raw:
            raise ValueError("raw: requires shape unary or stream; an upload is an encoded image")
        for name, number in (
            ("concurrency", self.load.concurrency),
            ("requests", self.requests),
            ("streams", self.streams if self.shape == "stream" else None),
        ):
            if number is not None and number < self.processes:
                raise ValueError(
                    f"processes: is {self.processes}, must not exceed {name}, which is {number},"
                    " because each process makes a part of the calls"
                )

    def under(self, load: Load) -> Plan:
        """Return the same plan with another load."""
        return replace(self, load=load)

    def repetition(self, number: int) -> Plan:
        """Return the plan of a repeated run, from 0: the first is this one, others differ in seed.

        With other arrival times the spread of the runs includes the chance in them.
        """
        return replace(self, seed=_derived_seed(self.seed, 0, number)) if number else self

    def part(self, process: int) -> Plan:
        """Return the plan of one of the processes, from 0: its part of the calls.

        Calls in flight, streams and requests are divided as evenly as possible. An open loop's rate
        is divided by the processes: their calls together are at random times again, because the
        sum of independent Poisson processes is one.
        """
        load = self.load
        if load.concurrency is not None:
            load = replace(load, concurrency=self._divided(load.concurrency, process))
        elif load.rate_per_s is not None:
            load = replace(load, rate_per_s=load.rate_per_s / self.processes)
        return replace(
            self,
            load=load,
            streams=self._divided(self.streams, process) if self.shape == "stream" else 1,
            requests=self._divided(self.requests, process) if self.requests is not None else None,
            seed=_derived_seed(self.seed, 1, process),
            server_pid=None,
            processes=1,
        )

    def _divided(self, number: int, process: int) -> int:
        return number // self.processes + (process < number % self.processes)

    def describe(self) -> str:
        """Return a short description of the calls."""
        calls = f"{self.operation}, {self.shape}"
        if self.shape == "stream":
            calls += f" ({self.streams} {self.delivery})"
        images = "raw frames" if self.raw else "encoded images"
        origin = "own" if self.files else "generated"
        servers = ", ".join(self.servers)
        described = f"{calls}, {origin} {images}, timeout {self.timeout_s:g} s, at {servers}"
        if self.processes > 1:
            described += f", from {self.processes} processes"
        return described + (f", {self.repeat} runs" if self.repeat > 1 else "")


def _derived_seed(seed: int, *path: int) -> int:
    """Return a seed whose random numbers are independent of those of other paths."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])
