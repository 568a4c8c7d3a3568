"""CPU, memory and event-loop lag of a run: of the load generator and of the server."""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass
from typing import Any

SAMPLE_S = 0.2


class GeneratorMeter:
    """Measures CPU time of this process and its event loop's lag, from `begin` to `end`."""

    def __init__(self) -> None:
        self.loop_lag_ms = array("f")
        self._started = self._ended = (0.0, 0.0)

    def begin(self) -> None:
        """Start counting."""
        self._started = self._ended = (time.process_time(), time.perf_counter())

    def end(self) -> None:
        """Stop counting."""
        self._ended = (time.process_time(), time.perf_counter())

    @property
    def cpu_share(self) -> float:
        """CPU time (user and system, all threads) ÷ wall time: 1 is a whole core."""
        cpu_s, passed_s = (
            end - begin for begin, end in zip(self._started, self._ended, strict=True)
        )
        return cpu_s / passed_s if passed_s else 0.0


@dataclass(frozen=True)
class ServerUsage:
    """Resource usage of a server's processes during a run.

    Attributes:
        pid: The root process.
        processes: Maximum number of processes, descendants included.
        cores: CPU time ÷ wall time: 2 means that two cores were always busy.
        cpu_ms_per_answer: CPU milliseconds per response; None without responses.
        peak_rss_mib: Peak total resident memory; shared pages count for each process.
    """

    pid: int
    processes: int
    cores: float
    cpu_ms_per_answer: float | None
    peak_rss_mib: float


class ProcessTreeMeter:
    """Measures CPU time and memory of a process and its descendants, in a thread.

    Usage between the last sample and a process's end is not counted.

    Args:
        pid: ID of a local process.

    Raises:
        ValueError: The process does not exist, or permission is denied.
    """

    def __init__(self, pid: int) -> None:
        import psutil

        self._psutil: Any = psutil
        try:
            self._root = psutil.Process(pid)
            self._root.cpu_times()
        except psutil.Error as error:
            raise ValueError(f"server_pid: {error}") from error
        self._processes: dict[int, Any] = {pid: self._root}
        self._cpu_s: dict[int, float] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._started = self._ended = (0.0, 0.0)
        self._most = 1
        self._peak_bytes = 0
        self._find_children()
        self._thread = threading.Thread(target=self._keep_reading, name="bench server cost")
        self._thread.start()

    def begin(self) -> None:
        """Start counting."""
        cpu_s, self._peak_bytes = self._read()
        self._started = self._ended = (cpu_s, time.perf_counter())

    def end(self) -> None:
        """Stop counting."""
        cpu_s, _ = self._read()
        self._ended = (cpu_s, time.perf_counter())
        self._done.set()

    def close(self) -> None:
        """End the thread."""
        self._done.set()
        self._thread.join()

    def usage(self, answers_per_s: float) -> ServerUsage:
        """Return the usage from `begin` to `end`."""
        cpu_s, passed_s = (
            end - begin for begin, end in zip(self._started, self._ended, strict=True)
        )
        cores = cpu_s / passed_s if passed_s else 0.0
        return ServerUsage(
            pid=self._root.pid,
            processes=self._most,
            cores=cores,
            cpu_ms_per_answer=cores / answers_per_s * 1e3 if answers_per_s else None,
            peak_rss_mib=self._peak_bytes / 2**20,
        )

    def _keep_reading(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self._find_children()
            self._read()

    def _find_children(self) -> None:
        # Lists all processes of the machine, which takes milliseconds: not on the event loop.
        try:
            found = self._root.children(recursive=True)
        except self._psutil.Error:
            return  # it has ended; its last sample remains
        with self._lock:
            for one in found:
                self._processes.setdefault(one.pid, one)

    def _read(self) -> tuple[float, int]:
        """Return CPU seconds of all processes so far, and resident bytes of the running ones."""
        with self._lock:
            resident = alive = 0
            for pid, process in self._processes.items():
                try:
                    times = process.cpu_times()
                    resident += process.memory_info().rss
                except self._psutil.Error:
                    continue
                alive += 1
                self._cpu_s[pid] = times.user + times.system
            self._most = max(self._most, alive)
            self._peak_bytes = max(self._peak_bytes, resident)
            return sum(self._cpu_s.values()), resident
