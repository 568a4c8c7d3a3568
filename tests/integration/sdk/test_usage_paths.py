"""More paths than fit into memory as images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resnet50_client import Client
from resnet50_client.testing import FakeServer

COUNT, IN_FLIGHT = 3000, 64


def test_lazy_paths_are_read_a_bounded_number_ahead(tmp_path):
    files = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 100)
    read = 0

    def paths() -> Iterator[Path]:
        nonlocal read
        for number in range(COUNT):
            read += 1
            yield files[number % 4]

    ahead, labels = 0, []
    with FakeServer() as server, Client(server.address, timeout_s=60) as client:
        expected = [client.classify(file, top_k=1).top.label for file in files]
        results = client.classify_many(paths(), top_k=1, max_in_flight=IN_FLIGHT)
        for answered, result in enumerate(results):
            ahead = max(ahead, read - answered)
            labels.append(result.top.label)
    assert labels == [expected[number % 4] for number in range(COUNT)]
    assert ahead < COUNT / 2, ahead  # about three windows, as the results are taken at once
