"""Run by `make demo`: start a server, call it with real images, show its answers, stop it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from choice import choose_variant
from rich import box
from rich.console import Console
from rich.table import Table

from resnet50_client import AsyncClient, Client, ImageInput


class Sample(NamedTuple):
    """A real image, and what it shows."""

    name: str
    image: ImageInput
    shows: str


class Row(NamedTuple):
    """One call and its answer."""

    client: str
    call: str
    image: str
    answer: str
    ms: float
    server_ms: float
    batch_size: int


def samples(variant: str) -> list[Sample]:
    """Return real images that the variant can know."""
    if variant == "digits":
        from digits import CATEGORIES, digits

        data = digits()
        return [
            Sample(f"held-out digit {number}", data.held_out[number], CATEGORIES[label])
            for number, label in enumerate(data.held_out_labels[:6])
        ]
    photos = resources.files("sklearn.datasets.images")
    return [
        Sample("china.jpg", Path(str(photos / "china.jpg")), "a Chinese temple"),
        Sample("flower.jpg", Path(str(photos / "flower.jpg")), "a dahlia"),
    ]


@contextmanager
def server(spec: str) -> Iterator[str]:
    """Run `resnet50-server serve` on a free port; give its address; stop it with SIGTERM."""
    command = ["resnet50-server", "serve", "--listen", "127.0.0.1:0", "--variants", spec]
    print("$ " + " ".join(command))
    process = subprocess.Popen(
        [sys.executable, "-m", "resnet50_server", *command[1:]], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None  # a pipe, as asked for
    try:
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise SystemExit("the server did not start; its own message is above")
        yield line.removeprefix("listening on ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        print(f"server stopped with status {status}")
    if status:
        raise SystemExit(status)


def call_blocking(address: str, images: list[Sample]) -> Iterator[Row]:
    """One call after the other, from plain code."""
    with Client(address) as client:
        client.wait_until_ready()
        for sample in images:
            started = time.perf_counter()
            result = client.classify(sample.image, top_k=1)
            ms = (time.perf_counter() - started) * 1e3
            timing = result.timing
            yield Row(
                "Client",
                "classify",
                f"{sample.name}: {sample.shows}",
                repr(result.top),
                ms,
                timing.total_ms,
                timing.batch_size,
            )


async def call_at_once(address: str, images: list[Sample]) -> list[Row]:
    """All calls at once, from asyncio: the server makes batches of them."""
    async with AsyncClient(address) as client:

        async def embed(sample: Sample) -> Row:
            started = time.perf_counter()
            result = await client.embed(sample.image, l2_normalize=True)
            ms = (time.perf_counter() - started) * 1e3
            answer = f"[{result.vector[0]:.4f}, {result.vector[1]:.4f}, … {len(result)} numbers]"
            timing = result.timing
            return Row(
                "AsyncClient",
                "embed",
                f"{sample.name}: {sample.shows}",
                answer,
                ms,
                timing.total_ms,
                timing.batch_size,
            )

        return await asyncio.gather(*map(embed, images))


def main() -> None:
    """Show everything once."""
    variant, spec = choose_variant()
    images = samples(variant)
    with server(spec) as address:
        rows = list(call_blocking(address, images))
        rows += asyncio.run(call_at_once(address, images))
    table = Table(title=f"Answers of {variant}", box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("client", "call", "image", "answer", "ms", "server ms", "batch"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        times = (f"{row.ms:.1f}", f"{row.server_ms:.1f}", str(row.batch_size))
        table.add_row(row.client, row.call, row.image, row.answer, *times)
    console = Console()
    Console(width=max(console.width, 120)).print(table)


if __name__ == "__main__":
    main()
