"""Shows the CPU time of the tests, by file; unlike wall time it says little about other processes.

    python -m pytest -p tests.support.cpu_times [-n 3] PATH

That of a test is the time of the process that runs it and of all that descend from it, fixtures
included: one for all tests of a session counts to the first that needs it.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SHOWN_FILES = 60
SHOWN_TESTS = 60
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_by_test: Counter[str] = Counter()
_read_s = 0.0


def tree_cpu_s() -> float:
    """Return the CPU time of this process and of its descendants, also of those that ended, in s.

    Those whose parent ended first are missing.
    """
    times: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:  # it has ended
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        process = int(folder.name)
        children[int(fields[1])].append(process)
        times[process] = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    total, left = 0, [os.getpid()]
    while left:
        process = left.pop()
        total += times.get(process, 0)
        left += children[process]
    return total / _TICKS_PER_S


def pytest_collection_finish() -> None:
    global _read_s
    _read_s = tree_cpu_s()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "teardown":
        global _read_s
        before, _read_s = _read_s, tree_cpu_s()
        report.cpu_s = max(0.0, _read_s - before)  # xdist sends it to the main process
    return report


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "teardown":
        _by_test[report.nodeid] += report.cpu_s


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    by_file: Counter[str] = Counter()
    for test, seconds in _by_test.items():
        by_file[test.partition("::")[0]] += seconds
    terminalreporter.section("CPU time")
    total = sum(_by_test.values())
    terminalreporter.write_line(f"{total:8.1f} s  {len(_by_test)} tests in {len(by_file)} files")
    for title, found, shown in (("files", by_file, SHOWN_FILES), ("tests", _by_test, SHOWN_TESTS)):
        terminalreporter.write_line(f"{title}:")
        for name, seconds in found.most_common(shown):
            terminalreporter.write_line(f"{seconds:8.1f} s  {name}")
