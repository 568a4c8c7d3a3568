"""A server as a child process of a replica: its output is read to the end, failures are told."""

from __future__ import annotations

import asyncio
import sys

import pytest

from resnet50_server.ray.process import LINE_LIMIT_BYTES, ServerEnded, ServerProcess

TIMEOUT_S = 60


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Return a process that runs a shell script instead of the server."""

    def make(script: str) -> ServerProcess:
        program = tmp_path / "server"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return ServerProcess([], "127.0.0.1", 0, str(tmp_path / "socket"))

    return make


async def test_blank_and_long_lines_do_not_end_the_reading(server, capfd):
    # More than a pipe holds: unless both are read on, the process waits, and is never ready.
    process = server(
        f"""
        head -c {3 * LINE_LIMIT_BYTES} /dev/zero | tr '\\0' x >&2
        echo >&2
        echo
        echo "listening on 127.0.0.1:50051"
        echo "metrics on http://127.0.0.1:9090"
        echo "after the long line" >&2
        head -c {LINE_LIMIT_BYTES // 2} /dev/zero | tr '\\0' y >&2
        echo >&2
        echo "the end" >&2
        exit 3
        """
    )
    await asyncio.wait_for(process.start(), TIMEOUT_S)
    assert process.address == "127.0.0.1:50051"
    assert process.metrics_url == "http://127.0.0.1:9090"
    ended = await asyncio.wait_for(process.wait(), TIMEOUT_S)
    assert "exit code 3" in ended
    assert ended.endswith("the end")
    assert "after the long line\n" in capfd.readouterr().err


async def test_node_that_cannot_start_a_process_is_told(server, tmp_path):
    process = server("exit 0")
    (tmp_path / "server").unlink()
    with pytest.raises(ServerEnded, match=r"cannot be started: .*No such file"):
        await process.start()
    assert not process.running


async def test_reason_is_the_line_for_people(server):
    process = server("echo starting >&2; echo 'resnet50-server: port: in use' >&2; exit 78")
    with pytest.raises(ServerEnded, match=r"exit code 78: resnet50-server: port: in use$"):
        await asyncio.wait_for(process.start(), TIMEOUT_S)
