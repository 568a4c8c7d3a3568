"""Clients, results and errors across processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import subprocess
import sys
import textwrap

import pytest

from resnet50_client import Client, InvalidImageError, OverloadedError
from resnet50_client.testing import FakeServer


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


def classify(client: Client, image: bytes) -> object:
    return client.classify(image, timeout_s=60)


def test_results_and_errors_come_back_from_spawned_processes(server):
    spawn = multiprocessing.get_context("spawn")
    wrong = InvalidImageError("image: is not a readable image", field="image.encoded")
    full = OverloadedError("the queue is full", retry_after_s=2.5)
    server.script({"tabby": 1.0}, wrong, full)
    with (
        Client(server.address) as client,
        concurrent.futures.ProcessPoolExecutor(1, spawn) as pool,
    ):
        assert pool.submit(classify, client, b"1").result(timeout=200).top.label == "tabby"
        with pytest.raises(InvalidImageError) as refused:
            pool.submit(classify, client, b"2").result(timeout=200)
        with pytest.raises(OverloadedError) as overloaded:
            pool.submit(classify, client, b"3").result(timeout=200)
    assert refused.value.field == "image.encoded" and refused.value.request_id
    assert overloaded.value.retry_after_s == 2.5


# In an interpreter of its own: this one has threads, which a fork would lose.
FORKS = """
    import concurrent.futures, multiprocessing, os, signal, sys
    from resnet50_client import Client

    client = Client(sys.argv[1], timeout_s=60)
    label = client.classify(b"1").top.label  # before the fork

    def passed(given):
        return given.classify(b"1").top.label

    def shared(_):
        return client.classify(b"1").top.label

    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, fork) as pool:
        assert list(pool.map(shared, range(8), timeout=200)) == [label] * 8
        assert pool.submit(passed, client).result(200) == label
    child = os.fork()
    if child == 0:
        signal.alarm(200)
        same = client.classify(b"1").top.label == label
        with Client(sys.argv[1], timeout_s=60) as other:
            same = same and other.classify(b"1").top.label == label
        same = same and [one.top.label for one in client.classify_many([b"1"] * 40)] == [label] * 40
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.classify(b"1").top.label == label  # the parent's connection is as before
    client.close()
    print("done")
"""


def test_client_that_was_used_works_in_forked_processes(server):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKS), server.address],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
