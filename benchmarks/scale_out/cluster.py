"""A discrete-event simulation of clients, name resolution and replicas with batching.

Every replica computes one batch at a time, takes as many images as wait, up to the size that its
policy allows for the deadline, and refuses a call that it cannot answer in time. Clients know the
replicas that they have resolved, and resolve again when a connection ends.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.scale_out.costs import Costs

# gRPC ends connections at their maximum age, give or take a tenth.
JITTER = 0.1
# The SDK's minimum time between two lookups of a name.
LOOKUP_S = 1.0


@dataclass(eq=False)
class Replica:
    """One server.

    Attributes:
        number: In order of their start.
        ready_at: When its address came into DNS.
        waiting: Calls that wait: when they were sent, and their clients.
        calls: Calls in progress.
        busy_until: When its batch ends.
        withdrawn: When its address left DNS; infinite while it is there.
    """

    number: int
    ready_at: float = 0.0
    waiting: deque[tuple[float, Client]] = field(default_factory=deque)
    calls: int = 0
    busy_until: float = 0.0
    withdrawn: float = math.inf


@dataclass(eq=False)
class Client:
    """One client, with a connection to each replica that it knows.

    Attributes:
        known: The replicas, in the order of its round robin.
        next: Index of the next one.
        ends: When each connection ends.
        looked_up: When it has resolved the name.
        waits: Whether it will resolve the name again as soon as it may.
    """

    known: list[Replica] = field(default_factory=list)
    next: int = 0
    ends: dict[Replica, float] = field(default_factory=dict)
    looked_up: float = -math.inf
    waits: bool = False


@dataclass
class Record:
    """Calls that have ended.

    Attributes:
        sent: When each was sent.
        took_s: Its latency; NaN if it was refused.
        replica: Number of its replica.
    """

    sent: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    replica: list[int] = field(default_factory=list)


Choice = Callable[["Cluster", Client], Replica]


class Cluster:
    """Replicas and clients.

    Args:
        costs: Measured values.
        replicas: Number of replicas at the start.
        clients: Number of clients.
        choose: How a call finds its replica.
        deadline_s: Deadline of calls.
        age_s: Maximum age of connections; infinite for none.
        seed: Of everything that is random.
    """

    def __init__(
        self,
        costs: Costs,
        replicas: int,
        clients: int,
        choose: Choice,
        deadline_s: float = 1.0,
        age_s: float = math.inf,
        seed: int = 0,
    ) -> None:
        self.now = 0.0
        self.costs, self.age_s, self.deadline_s = costs, age_s, deadline_s
        self.draw = random.Random(seed)
        self.record = Record()
        self.replicas = [Replica(number) for number in range(replicas)]
        self.clients = [Client() for _ in range(clients)]
        self.least: list[
            tuple[int, float, int]
        ] = []  # calls, a random number, index of the replica
        self._choose = choose
        self._limit = costs.device.size(deadline_s)
        self._events: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._count = 0
        self._closed_loop = False
        for replica in self.replicas:
            self.changed(replica)
        for client in self.clients:
            self._resolve(client)

    # Events

    def at(self, time: float, do: Callable[..., object], *arguments: object) -> None:
        """Schedule an event."""
        self._count += 1
        heapq.heappush(self._events, (time, self._count, do, arguments))

    def run(self, seconds: float) -> Record:
        """Run until a time; return the calls."""
        events = self._events
        while events and events[0][0] <= seconds:
            self.now, _, do, arguments = heapq.heappop(events)
            do(*arguments)
        return self.record

    # Load

    def open_loop(self, rate: float) -> None:
        """Have calls come at random (Poisson), each from a random client."""
        self.send(self.draw.choice(self.clients))
        self.at(self.now + self.draw.expovariate(rate), self.open_loop, rate)

    def closed_loop(self, callers: int) -> None:
        """Have callers that make their next call when the last one has ended."""
        self._closed_loop = True
        for number in range(callers):
            self.send(self.clients[number % len(self.clients)])

    def send(self, client: Client) -> None:
        """Make a call."""
        replica = self._choose(self, client)
        device, limit = self.costs.device, self._limit
        ahead = len(replica.waiting)
        full, rest = divmod(ahead, limit)
        starts = max(self.now, replica.busy_until) + full * device.batch_s(limit)
        images = limit if full else rest + 1  # later calls fill a batch that has to wait
        if starts + device.batch_s(images) + self.costs.around_s > self.now + self.deadline_s:
            self._end(replica, self.now, math.nan, client)
            return
        replica.waiting.append((self.now, client))
        replica.calls += 1
        self.changed(replica)
        if replica.busy_until <= self.now:
            self._compute(replica)

    def _compute(self, replica: Replica) -> None:
        batch = [replica.waiting.popleft() for _ in range(min(self._limit, len(replica.waiting)))]
        replica.busy_until = self.now + self.costs.device.batch_s(len(batch))
        self.at(replica.busy_until, self._answer, replica, batch)

    def _answer(self, replica: Replica, batch: list[tuple[float, Client]]) -> None:
        for sent, client in batch:
            replica.calls -= 1
            self._end(replica, sent, self.now - sent + self.costs.around_s, client)
        self.changed(replica)
        if replica.waiting and replica.busy_until <= self.now:
            self._compute(replica)

    def _end(self, replica: Replica, sent: float, took_s: float, client: Client) -> None:
        self.record.sent.append(sent)
        self.record.took_s.append(took_s)
        self.record.replica.append(replica.number)
        if self._closed_loop:
            self.at(self.now + self.costs.around_s, self.send, client)

    def changed(self, replica: Replica) -> None:
        """Note how many calls a replica has, for `least_of_all`."""
        heapq.heappush(self.least, (replica.calls, self.draw.random(), replica.number))

    # Replicas

    def add(self) -> Replica:
        """Add a replica that is ready now."""
        replica = Replica(len(self.replicas), ready_at=self.now)
        self.replicas.append(replica)
        self.changed(replica)
        return replica

    def remove(self, replica: Replica) -> None:
        """Remove a replica's address, and stop it later."""
        replica.withdrawn = self.now
        self.at(self.now + self.costs.pre_stop_s, self._stop, replica)

    def _stop(self, replica: Replica) -> None:
        """End a replica's connections: it refuses calls, which the SDK retries elsewhere."""
        for client in self.clients:
            if replica in client.known:
                self._forget(client, replica)
                self._resolve(client)

    # Clients

    def _resolve(self, client: Client) -> None:
        """Resolve the name, at once or as soon as the SDK allows it."""
        if self.now < (due := client.looked_up + LOOKUP_S):
            if not client.waits:
                client.waits = True
                self.at(due, self._resolve, client)
            return
        client.looked_up, client.waits = self.now, False
        seen = max(0.0, self.now - self.draw.uniform(0, self.costs.ttl_s))
        ready = [one for one in self.replicas if one.ready_at <= seen < one.withdrawn]
        for replica in [one for one in client.known if one not in ready]:
            self._forget(client, replica)
        for replica in ready:
            if replica not in client.ends:
                client.known.append(replica)
                self._connect(client, replica)
        if self.now == 0.0:
            # Connections of clients that have run for a while: of any age.
            self.draw.shuffle(client.known)
            for replica in client.known:
                self._connect(client, replica, self.draw.random())

    def _connect(self, client: Client, replica: Replica, share: float = 1.0) -> None:
        ends = client.ends[replica] = self.now + share * self.age_s * self.draw.uniform(
            1 - JITTER, 1 + JITTER
        )
        if math.isfinite(ends):
            self.at(ends, self._expire, client, replica, ends)

    def _expire(self, client: Client, replica: Replica, ends: float) -> None:
        if client.ends.get(replica) == ends:
            self._connect(client, replica)
            self._resolve(client)

    def _forget(self, client: Client, replica: Replica) -> None:
        client.known.remove(replica)
        client.ends.pop(replica, None)


# How a call finds its replica


def round_robin(cluster: Cluster, client: Client) -> Replica:
    """Choose the next replica that the client knows, as the SDK does."""
    client.next = (client.next + 1) % len(client.known)
    return client.known[client.next]


def fewer_of_two(cluster: Cluster, client: Client) -> Replica:
    """Choose the one of two replicas with fewer calls, as a single Envoy does."""
    one, two = cluster.draw.choice(cluster.replicas), cluster.draw.choice(cluster.replicas)
    return one if one.calls <= two.calls else two


def least_of_all(cluster: Cluster, client: Client) -> Replica:
    """Choose the replica with the fewest calls, as a single HAProxy does."""
    while True:
        calls, _, number = cluster.least[0]
        if cluster.replicas[number].calls == calls:
            return cluster.replicas[number]
        heapq.heappop(cluster.least)
