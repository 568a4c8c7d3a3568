"""What a benchmark does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ...addresses import DEFAULT_SERVER
from ...frames import Delivery

Shape: TypeAlias = Literal["unary", "upload", "stream"]
Question: TypeAlias = Literal["classify", "embed"]
LoadKind: TypeAlias = Literal["closed", "poisson", "paced"]


@dataclass(frozen=True)
class Load:
    """When calls are made: one of `concurrency`, `rate_per_s` and `fps` is set.

    Attributes:
        concurrency: Closed loop: so many calls are under way at any time; a call is made when
            another one has ended, so a slow server is asked less.
        rate_per_s: Open loop: calls are made at random times (Poisson), so many a second whatever
            the server does.
        fps: Paced: each stream sends a frame every 1 / fps seconds, whatever the server does.
        share: The load in shares of a capacity that was found, if that is where it comes from.
    """

    concurrency: int | None = None
    rate_per_s: float | None = None
    fps: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        given = [one for one in (self.concurrency, self.rate_per_s, self.fps) if one is not None]
        if len(given) != 1:
            raise ValueError(
                "load: name one of concurrency (closed loop), rate (open loop) and fps (streams);"
                f" {len(given)} are given"
            )
        if not given[0] > 0:
            raise ValueError(f"load: is {given[0]}, must be above 0")

    @property
    def kind(self) -> LoadKind:
        """Which of the three it is."""
        if self.concurrency is not None:
            return "closed"
        return "poisson" if self.rate_per_s is not None else "paced"

    def offered_per_s(self, streams: int) -> float | None:
        """Return how many calls a second are made; None if the server decides that."""
        return self.rate_per_s if self.fps is None else streams * self.fps

    def describe(self, streams: int) -> str:
        """Return it in a few words."""
        if self.concurrency is not None:
            return f"{self.concurrency} under way"
        if self.fps is not None:
            return f"{streams} x {self.fps:g} fps"
        assert self.rate_per_s is not None
        share = f"{self.share:.0%}: " if self.share is not None else ""
        rate = self.rate_per_s
        return share + (f"{rate:.0f}/s" if rate >= 100 else f"{rate:.3g}/s")


@dataclass(frozen=True)
class Plan:
    """What a benchmark does, all but what it does it with.

    Attributes:
        servers: Addresses, as the other commands take them; calls are spread over them in turn.
        load: When calls are made.
        shape: Which RPCs: "unary", "upload" (client streaming) or "stream" (a call is a frame).
        question: "classify" or "embed".
        variant: Which weights answer; "" for the server's default.
        duration_s: How long is measured, in seconds.
        warm_up_s: How long load is made before that, in seconds.
        requests: Stop after so many measured calls; None for no such limit.
        timeout_s: Deadline of a call, in seconds, from the time it was meant to be made.
        channels: Connections to each server.
        streams: Streams, spread over the connections; for shape "stream".
        delivery: Of frames; for shape "stream".
        files: Image files and folders of them; none means generated pictures.
        raw: Send pixels of the model's size instead of encoded images.
        generated: How many different pictures are generated if there are no files.
        seed: Of the arrivals and of the generated pictures.
        server_pid: A local process whose CPU and memory are read, with its children.

    Raises:
        ValueError: A number is out of range, or two of them do not go together.
    """

    load: Load
    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    shape: Shape = "unary"
    question: Question = "classify"
    variant: str = ""
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

    def __post_init__(self) -> None:
        if not self.servers:
            raise ValueError("server: name at least one address")
        for name in ("duration_s", "timeout_s", "channels", "streams", "generated"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be above 0")
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
                    raise ValueError(f"{name}: goes with shape stream, not with {self.shape}")
        if self.shape == "upload" and self.raw:
            raise ValueError("raw: goes with shape unary or stream; an upload is an encoded image")

    def under(self, load: Load) -> Plan:
        """Return the same plan with another load."""
        return replace(self, load=load)

    def describe(self) -> str:
        """Return what is called, in a few words."""
        what = f"{self.question}, {self.shape}"
        if self.shape == "stream":
            what += f" ({self.streams} {self.delivery})"
        pictures = "raw frames" if self.raw else "encoded images"
        origin = "own" if self.files else "generated"
        where = ", ".join(self.servers)
        return f"{what}, {origin} {pictures}, deadline {self.timeout_s:g} s, at {where}"
