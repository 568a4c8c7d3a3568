"""Scrapes of a server's HTTP port."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from resnet50_server.server import Server
from tests.support.serving import until_result

# host:0 takes a free port.
ON = {"metrics_listen": "127.0.0.1:0"}


class Scrape(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of one scrape by their names and labels."""

    def __init__(self, text: str) -> None:
        super().__init__(
            ((sample.name, frozenset(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    def of(self, name: str, *labels: str) -> dict:
        """Return the sums of a name's samples that are not 0, by the values of `labels`."""
        found: dict = {}
        for (sample, pairs), value in self.items():
            if sample == name and value:
                by = dict(pairs)
                values = tuple(by[label] for label in labels)
                key = values[0] if len(labels) == 1 else values
                found[key] = found.get(key, 0) + value
        return found

    def one(self, name: str, **labels: str) -> float:
        return self[name, frozenset(labels.items())]


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(server: Server, path: str) -> tuple[int, str]:
    """Return the status and the text of a path."""
    assert server.metrics_url is not None
    return await asyncio.to_thread(fetch, server.metrics_url + path)


async def scrape(server: Server) -> Scrape:
    status, text = await get(server, "/metrics")
    assert status == 200, text
    return Scrape(text)


async def scrape_once(server: Server, settled: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until the server has counted the results that its clients have received."""
    return await until_result(lambda: scrape(server), settled)
