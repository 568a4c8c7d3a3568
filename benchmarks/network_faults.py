"""Two servers in network namespaces, and the faults of their links: see `netfaults`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from benchmarks.expected import Checkpoint, Expected, large_pictures, make, pictures
from benchmarks.load import Question
from benchmarks.network import Network
from benchmarks.process import ServerProcess
from benchmarks.timeline import Timeline
from resnet50_client import Client

NAME, ONE, TWO, PORT = "mine", "one", "two", 50051
# Each image is computed once: the network is tried here, not the engine.
QUESTIONS = (
    Question("classify", {"top_k": 3, "min_probability": None, "include_embedding": True}),
    Question("embed", {"l2_normalize": True, "dtype": "float32"}),
)
SERVER = ("--engine", "torch", "--max-batch-size", "4", "--response-cache-bytes", str(2**26))


class Scene:
    """The network and its servers.

    Args:
        folder: For files.
        few: How many of the pictures are sent; None for all.
    """

    def __init__(self, folder: Path, few: int | None) -> None:
        self.network = Network([ONE, TWO], folder)
        self.shown, self.large = pictures()[:few], large_pictures()[:1]
        self.checkpoint: Checkpoint = make("A", folder / "A")
        self.expected = Expected([self.checkpoint], [*self.shown, *self.large])
        self.timeline = Timeline()
        self.timeline.starts("", NAME)
        self.timeline.starts(NAME, self.checkpoint.digest)
        self._folder = folder
        self._servers: dict[str, ServerProcess] = {}
        self._killed: set[str] = set()

    def _start(self, name: str) -> None:
        self._servers[name] = ServerProcess(
            *("--listen", f"{self.network.addresses[name]}:{PORT}", "--allow-plaintext"),
            *("--variants", f"{NAME}={self.checkpoint.folder}", "--log-level", "warning", *SERVER),
            log=self._folder / f"{name}.log",
            within=self.network.within(name),
        )

    def _ready(self, name: str) -> None:
        """Wait until a server answers, and have it compute what it will be asked."""
        self._servers[name].wait_until_ready()
        images = [picture.image for picture in [*self.shown, *self.large]]
        with Client(f"{self.network.addresses[name]}:{PORT}", timeout_s=240) as client:
            for question in QUESTIONS:
                for image in images:
                    getattr(client, question.method)(image, **question.options)

    def kill(self, name: str) -> None:
        """End a server without a word of its own; the kernel still resets its connections."""
        self._killed.add(name)
        self._servers[name].kill()

    def crashed(self) -> Iterator[str]:
        """Give what servers said last that have ended without being killed."""
        for name, server in self._servers.items():
            if not server.alive and name not in self._killed:
                yield f"server {name} has ended: {server.said_last()}"

    async def have_all(self) -> None:
        """Start the servers that do not run, and wait until they answer."""
        missing = [name for name in (ONE, TWO) if name not in self._servers or name in self._killed]
        for name in missing:
            self._start(name)
        await asyncio.gather(*(asyncio.to_thread(self._ready, name) for name in missing))
        self._killed.clear()


# The faults: each of server one's link, unless all are meant, for so many seconds


async def nothing(scene: Scene, seconds: float) -> None:
    """Have no fault: what the rest is compared with."""
    await asyncio.sleep(seconds)


async def loss(scene: Scene, seconds: float) -> None:
    """Lose one packet in twenty, both ways, on all links."""
    with scene.network.loss(5):
        await asyncio.sleep(seconds)


async def delay(scene: Scene, seconds: float) -> None:
    """Have each packet take 50 to 150 ms, both ways, and so overtake others."""
    with scene.network.delay(100, 50) as bridge:
        await asyncio.sleep(seconds)
    if not bridge.overtaken:
        raise RuntimeError(f"of {bridge.carried} packets none was overtaken")
    print(f"{bridge.carried} packets were delayed, {bridge.overtaken} overtaken", flush=True)


async def rate(scene: Scene, seconds: float, mbit: int = 2) -> None:
    """Let each link carry so many Mbit/s."""
    with scene.network.rate(mbit):
        await asyncio.sleep(seconds)


async def silence(scene: Scene, seconds: float) -> None:
    """Drop every packet silently."""
    with scene.network.silence(ONE):
        await asyncio.sleep(seconds)


async def unplug(scene: Scene, seconds: float) -> None:
    """Take the link down."""
    with scene.network.unplugged(ONE):
        await asyncio.sleep(seconds)


async def reset(scene: Scene, seconds: float) -> None:
    """Reset all connections, and refuse new ones."""
    with scene.network.reset(ONE):
        await asyncio.sleep(seconds)


async def kill(scene: Scene, seconds: float) -> None:
    """Kill the server, which stays away."""
    scene.kill(ONE)
    await asyncio.sleep(seconds)


async def vanish(scene: Scene, seconds: float) -> None:
    """Kill the server while its link is down, so that its connections stay open at the client."""
    with scene.network.unplugged(ONE):
        await asyncio.sleep(0.5)
        scene.kill(ONE)
        await asyncio.sleep(seconds)


async def move(scene: Scene, seconds: float) -> None:
    """Have a name stand for server two, server one's link silent; then the other way round."""
    with scene.network.names(moving=TWO, steady=TWO), scene.network.silence(ONE):
        await asyncio.sleep(seconds)
    with scene.network.silence(TWO):
        await asyncio.sleep(seconds)
