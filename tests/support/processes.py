"""Processes of the project's commands, without the time that imports take.

A new interpreter imports for 0.6 s (client), 0.9 s (server) or 5 s (server with PyTorch) of CPU
time before it does anything; a fork of one that has done so takes 0.01 s. Only a new
interpreter shows variables that are read before a program runs (LD_PRELOAD, MALLOC_ARENA_MAX),
missing packages and entry points.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Literal

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = {
    "resnet50-server": "resnet50_server.__main__:main",
    "resnet50-server with torch": "resnet50_server.__main__:main",
    "resnet50-gateway": "resnet50_gateway.command:run",
    "resnet50": "resnet50_cli.__main__:main",
}
# Packages that `python -m` runs as these programs.
MODULES = {program: entry.partition(".")[0] for program, entry in ENTRIES.items()}
Program = Literal["resnet50-server", "resnet50-server with torch", "resnet50-gateway", "resnet50"]


class ForkedProcess:
    """A process of a command, with what tests use of the interface of `subprocess.Popen`.

    Args:
        report: Where its process ID comes from, then its exit code.
        stdin, stdout, stderr: This end of its streams; None for one that is not a pipe.
    """

    def __init__(
        self,
        command: list[str],
        report: IO[str],
        stdin: IO[Any] | None,
        stdout: IO[Any] | None,
        stderr: IO[Any] | None,
    ) -> None:
        self.args = command
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.returncode: int | None = None
        self._report = report
        self._ended = threading.Event()
        first = report.readline()
        assert first, "the fork server has ended; its stderr says why"
        self.pid = int(first)
        threading.Thread(target=self._wait, name=f"wait for {self.pid}", daemon=True).start()

    def _wait(self) -> None:
        with self._report:
            status = self._report.readline()
        self.returncode = int(status or -signal.SIGKILL)
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:  # it has just ended
                self._ended.wait()

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write to its stdin, read its streams to their end, wait until it has ended."""
        found: dict[str, Any] = {}
        threads = []
        if self.stdin is not None and not self.stdin.closed:
            threads.append(threading.Thread(target=self._write, args=(input,), daemon=True))
        for name, stream in (("stdout", self.stdout), ("stderr", self.stderr)):
            if stream is not None and not stream.closed:
                work = functools.partial(self._read, stream, name, found)
                threads.append(threading.Thread(target=work, daemon=True))
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():  # another process has its stdout
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return found.get("stdout"), found.get("stderr")

    def _write(self, content: Any) -> None:
        assert self.stdin is not None
        try:
            with self.stdin:
                if content:
                    self.stdin.write(content)
        except BrokenPipeError:
            pass

    @staticmethod
    def _read(stream: IO[Any], name: str, found: dict[str, Any]) -> None:
        with stream:
            found[name] = stream.read()

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


class _ForkServer:
    """The process that is forked, one for each program."""

    def __init__(self, program: Program) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = dict(os.environ) | {
            # OpenBLAS's threads would not survive a fork.
            "OPENBLAS_NUM_THREADS": "1",
        }
        if program != "resnet50":
            # The commands set it before they import grpc, which reads it then.
            environment["GRPC_VERBOSITY"] = "NONE"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", program, str(theirs.fileno())],
                cwd=ROOT,
                env=environment,
                pass_fds=[theirs.fileno()],
            )
        self._lock = threading.Lock()
        atexit.register(self.close)

    def fork(self, request: dict[str, Any], files: Iterable[int]) -> None:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], list(files))

    def close(self) -> None:
        self._control.close()
        self._process.wait()


_fork_server = functools.cache(_ForkServer)
_starting = threading.Lock()


def start(
    program: Program,
    *arguments: object,
    environment: dict[str, str] | None = None,
    entry: str | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    text: bool = True,
    folder: Path | None = None,
) -> ForkedProcess | subprocess.Popen[Any]:
    """Start a command.

    With a stream that is a terminal it is a new interpreter: rich looks at it when it is imported.

    Args:
        environment: All of it; default: that of this process.
        entry: "module:function" that runs in the command's place.
        stdin, stdout, stderr: As for `subprocess.Popen`: PIPE, DEVNULL or a descriptor.
        text: Whether pipes are of str.
        folder: Its working directory; default: that of this process.
    """
    words = [os.fsdecode(one) if isinstance(one, bytes) else str(one) for one in arguments]
    if any(file >= 0 and os.isatty(file) for file in (stdin, stdout, stderr)):
        return subprocess.Popen(
            [sys.executable, "-m", MODULES[program], *words],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            cwd=folder,
            text=text,
        )
    with _starting:
        server = _fork_server(program)
    request = {
        "entry": entry or ENTRIES[program],
        "arguments": words,
        "environment": dict(os.environ) if environment is None else environment,
        "folder": os.fspath(folder or os.getcwd()),
    }
    ours, theirs = socket.socketpair()
    theirs_to_close, sent, pipes = [theirs.detach()], [], []
    for wanted, mode in ((stdin, "w"), (stdout, "r"), (stderr, "r")):
        pipe = None
        if wanted == subprocess.PIPE:
            reading, writing = os.pipe()
            mine, wanted = (reading, writing) if mode == "r" else (writing, reading)
            pipe = open(mine, mode if text else mode + "b")  # noqa: SIM115
            theirs_to_close.append(wanted)
        elif wanted == subprocess.DEVNULL:
            wanted = os.open(os.devnull, os.O_RDWR)
            theirs_to_close.append(wanted)
        sent.append(wanted)
        pipes.append(pipe)
    try:
        server.fork(request, [theirs_to_close[0], *sent])
    finally:
        for file in theirs_to_close:
            os.close(file)
    with ours:
        report = ours.makefile("r")
    return ForkedProcess([program, *words], report, *pipes)


def run(
    program: Program,
    *arguments: object,
    environment: dict[str, str] | None = None,
    entry: str | None = None,
    input: Any = None,
    text: bool = True,
    timeout: float = 120.0,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[Any]:
    """Run a command to its end, as `subprocess.run` does with captured output."""
    process = start(
        program,
        *arguments,
        environment=environment,
        entry=entry,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        text=text,
        folder=folder,
    )
    try:
        output, errors = process.communicate(input, timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), output, errors)
