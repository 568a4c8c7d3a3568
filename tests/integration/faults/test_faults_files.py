"""Files that are broken and disks that are full: what a server makes of them, tried for real."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from torchvision.models import resnet50

from resnet50_client import Client, RetryPolicy, UnavailableError
from tests.support import weights
from tests.support.faults import on_small_disks, seen_by
from tests.support.faulty_server import MARK
from tests.support.pictures import encode, picture

PNG = encode(picture())
NULL = ("--variants", "IMAGENET1K_V2", "--engine", "null")


@contextmanager
def started(*commands: list[str], **options: Any) -> Iterator[list[subprocess.Popen]]:
    """Start processes that do not outlive the block."""
    processes = [
        subprocess.Popen(
            command,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for one in processes:
            one.kill()
            one.communicate()


def listening(process: subprocess.Popen) -> str:
    line = process.stdout.readline()
    assert line.startswith("listening on "), line + process.stderr.read()
    return line.removeprefix("listening on ").strip()


def written_until(process: subprocess.Popen, text: str) -> str:
    """Read what a process writes to stderr until a text comes; return it all."""
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


def test_server_starts_without_disk_space_for_its_graph(tmp_path):
    """Neither the cache nor the temporary folder; a graph is 100 MB."""
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    for folder in (cache, temporary):
        folder.mkdir()
    transform = weights.TRANSFORM | {"resize": 64, "crop": 64}
    state = resnet50(weights=None, num_classes=10).state_dict()
    directory = weights.custom_variant(tmp_path / "mine", state, transform=transform)
    command = [
        *(sys.executable, "-m", "resnet50_server", "serve", "--listen", "127.0.0.1:0"),
        *("--variants", f"mine={directory}", "--device", "cpu", "--graph-cache-dir", str(cache)),
    ]
    environment = os.environ | {"TMPDIR": str(temporary)}
    limited = on_small_disks(command, cache, temporary, size="8m")
    with started(limited, env=environment) as (process,):
        with Client(listening(process)) as client:
            assert len(client.classify(PNG)) == 5
            assert client.get_variant("mine").engine == "torch"
        for folder in (cache, temporary):
            assert not list(seen_by(process, folder).rglob("*.onnx"))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"graph_cache_dir: {cache} cannot be written (No space left on device)" in errors
    assert re.search(
        "graph_cache_dir: no room for .*--graph-cache-dir and TMPDIR.*using PyTorch", errors
    )
    assert "Traceback" not in errors


def test_server_serves_and_stops_while_its_log_is_not_read(tmp_path):
    """stdout and stderr on a full disk, or in a pipe whose reader has left."""
    reader, broken = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    addresses = [f"unix:{tmp_path}/{name}" for name in ("full", "broken")]
    commands = [
        [*(sys.executable, "-m", "resnet50_server", "serve"), "--listen", address, *NULL]
        for address in addresses
    ]
    try:
        with (
            started(commands[0], stdout=full, stderr=full) as (on_full,),
            started(commands[1], stdout=broken, stderr=broken) as (on_broken,),
        ):
            for address, process in zip(addresses, (on_full, on_broken), strict=True):
                with Client(address) as client:
                    client.wait_until_ready(timeout_s=60)
                    assert len(client.classify(PNG)) == 5
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
    finally:
        os.close(full)
        os.close(broken)


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    """Give both ends of the smallest pipe there is, one page, that is not read."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


# stderr has a buffer, with a lock, only without this variable.
BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
UNBUFFERED = BUFFERED | {"PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    "environment", [BUFFERED, UNBUFFERED], ids=["buffered", "PYTHONUNBUFFERED"]
)
def test_server_answers_and_stops_although_nobody_reads_its_log(tmp_path, environment):
    address = f"unix:{tmp_path}/server"
    command = [sys.executable, "-m", "resnet50_server", "serve", "--listen", address, *NULL]
    command += ["--log-level", "debug", "--log-format", "json"]
    with unread_pipe() as (reader, writer):
        with (
            started(command, stdout=writer, stderr=writer, env=environment) as (process,),
            Client(address) as client,
        ):
            client.wait_until_ready(timeout_s=60)
            for _ in range(50):  # a line for each, of some 300 characters
                assert len(client.classify(PNG)) == 5
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        os.set_blocking(reader, False)
        lines = os.read(reader, 2**20).decode().splitlines()
    assert len(lines) > 5
    for line in lines[:-1]:
        if line.startswith("{"):
            assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
        else:
            assert line == f"listening on {address}"


def test_warnings_on_the_loop_do_not_wait_for_their_reader(tmp_path):
    address = f"unix:{tmp_path}/server"
    program = str(Path(__file__).parents[2] / "support" / "faulty_server.py")
    command = [sys.executable, program, "loop-writes-to-stderr", "serve", "--listen", address]
    with (
        unread_pipe() as (_, writer),
        started([*command, *NULL], stdout=writer, stderr=writer, env=BUFFERED) as (process,),
        Client(address, retry=RetryPolicy(attempts=1)) as client,
    ):
        client.wait_until_ready(timeout_s=60)
        for _ in range(3):
            assert len(client.classify(PNG + MARK, timeout_s=60)) == 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_server_that_is_lost_ends_although_nobody_reads_its_log(tmp_path):
    """With its stacks, which are written while every other thread is stopped."""
    address = f"unix:{tmp_path}/server"
    program = str(Path(__file__).parents[2] / "support" / "faulty_server.py")
    command = [sys.executable, program, "loop-hangs", "serve", "--listen", address]
    command += ["--variants", "IMAGENET1K_V2", "--engine", "timed", "--log-level", "debug"]
    with (
        unread_pipe() as (_, writer),
        started(command, stdout=writer, stderr=writer) as (process,),
        Client(address, retry=RetryPolicy(attempts=1)) as client,
    ):
        client.wait_until_ready(timeout_s=60)
        for _ in range(50):
            client.classify(PNG)
        with pytest.raises(UnavailableError):
            client.classify(PNG + MARK)
        assert process.wait(60) == 1


# Downloads

# Starts the command line with another URL for the weights.
ELSEWHERE = (
    "import sys; from resnet50_server.variants.official import official_facts;"
    " from resnet50_server.cli.main import run;"
    " official_facts()['variants']['IMAGENET1K_V2']['url'] = sys.argv.pop(1); run()"
)


class Published(http.server.ThreadingHTTPServer):
    """Publishes a file; sends half of it, and the rest when its gate is opened."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Publish)
        self.content = content
        self.gate = threading.Event()
        self.asked = threading.Semaphore(0)
        self.downloads = 0
        name = f"resnet50-{sha256(content).hexdigest()[:8]}.pth"
        self.url = f"http://127.0.0.1:{self.server_port}/{name}"
        self.name = name

    def __enter__(self) -> Published:
        threading.Thread(target=self.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.shutdown()
        self.server_close()


class _Publish(http.server.BaseHTTPRequestHandler):
    server: Published

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.server.downloads += 1
        half = len(self.server.content) // 2
        try:
            self.wfile.write(self.server.content[:half])
            self.wfile.flush()
            self.server.asked.release()
            while not self.server.gate.wait(1):
                # A stalled download times out.
                self.wfile.write(self.server.content[half : half + 1])
                half += 1
            self.wfile.write(self.server.content[half:])
        except OSError:
            pass  # who asked has died

    def log_message(self, *_: object) -> None:
        pass


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_servers_that_want_the_same_weights_download_them_once(tmp_path):
    """Three of them; the one that downloads is killed half-way, and the next one takes over."""
    made = weights.save(resnet50(weights=None).state_dict(), tmp_path / "made.pth")
    content = made.read_bytes()
    folder = tmp_path / "weights"
    serve = [
        *("serve", "--listen", "127.0.0.1:0", "--variants", "IMAGENET1K_V2", "--device", "cpu"),
        *("--engine", "torch", "--weights-dir", str(folder)),
    ]
    with Published(content) as published:
        command = [sys.executable, "-c", ELSEWHERE, published.url, *serve]
        with started(command) as (first,):
            assert published.asked.acquire(timeout=60)
            with started(command, command) as others:
                for one in others:
                    written_until(
                        one, f"waiting for another process that downloads {published.name}"
                    )
                assert left_in(folder) == [f"{published.name}.part"]
                first.kill()
                first.wait()
                assert published.asked.acquire(timeout=60)
                # The killed one's partial file is gone: the next one starts anew.
                assert left_in(folder) == [f"{published.name}.part"]
                published.gate.set()
                digests = set()
                for one in others:
                    with Client(listening(one)) as client:
                        assert len(client.classify(PNG)) == 5
                        digests.add(client.get_variant("IMAGENET1K_V2").digest)
        assert published.downloads == 2  # the killed one's, and that of one of the others
    assert digests == {sha256(content).hexdigest()}
    assert left_in(folder) == [published.name]


def test_download_to_a_full_disk_says_so_and_leaves_nothing(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    with Published(os.urandom(8 * 2**20)) as published:
        published.gate.set()
        download = ["variants", "download", "IMAGENET1K_V2", "--weights-dir", str(folder)]
        command = [sys.executable, "-c", ELSEWHERE, published.url, *download]
        # The shell lists what is left before its file system goes.
        shell = ["sh", "-c", '"$@"; status=$?; ls "$0"; exit $status', str(folder), *command]
        with started(on_small_disks(shell, folder, size="3m")) as (process,):
            output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No space left on device" in errors
    assert f"free space in {folder}" in errors
    assert "--weights-dir" in errors
    assert "Traceback" not in errors
    assert output == ""  # but for the lock, which is hidden
