"""`resnet50 bench --processes` and `--repeat`: real processes against a real server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from resnet50_bench.plan import Load, Plan
from resnet50_bench.processes import LoadProcesses
from resnet50_bench.result import Bench
from resnet50_bench.sample_images import images_of
from tests.support.commands import environment


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "resnet50_cli", "bench", *map(str, arguments)]


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=120
    )


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


QUICK = ("--warm-up-s", 0, "--processes", 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency", 3),
        ("--rate", 200, "--call", "embed"),
        ("--shape", "upload"),
        ("--shape", "stream", "--concurrency", 4, "--streams", 3),
        ("--fps", 40, "--raw"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_each_process_makes_its_part_of_the_calls(null_address, photos, arguments):
    done = bench(photos, "--server", null_address, *arguments, *QUICK, "--requests", 41, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (run,) = found["runs"]
    assert (run["calls"], run["errors"], run["latency_ms"]["count"]) == (41, {}, 41)
    assert sum(run["batch_sizes"].values()) == 41
    assert run["generator"]["busiest_share"] <= run["generator"]["cpu_share"]
    assert (found["plan"]["processes"], run["load"]) == (2, found["plan"]["load"])


def test_repeated_runs_are_in_table_file_and_report(null_process, null_address, photos, tmp_path):
    out, html = tmp_path / "bench.json", tmp_path / "bench.html"
    done = bench(
        *(photos, "--server", null_address, *QUICK, "--duration-s", 0.5, "--repeat", 3),
        *("--server-pid", null_process.process.pid, "--out", out, "--html", html),
    )
    assert done.returncode == 0, done.stderr
    assert "from 2 processes, 3 runs" in done.stdout
    assert " to " in done.stdout
    found = Bench.load(out)
    assert len(found.runs) == 3
    assert all(run.server.cores > 0 for run in found.runs)
    (load,) = json.loads(out.read_text())["loads"]
    spread = load["figures"]["answers/s"]
    assert spread["lowest"] <= spread["median"] <= spread["highest"]
    assert {run.throughput_per_s for run in found.runs} >= {spread["lowest"], spread["highest"]}
    assert "Repeated runs" in html.read_text()
    compared = bench("--compare", out, out)
    assert compared.returncode == 0, compared.stderr
    assert "~1.00" in compared.stdout


def test_a_sweep_from_several_processes_finds_the_capacity(null_address, photos):
    done = bench(
        *(photos, "--server", null_address, "--sweep", "30%..60%x2", "--processes", 2),
        *("--duration-s", 0.4, "--warm-up-s", 0.1, "--repeat", 2, "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["load"]["share"] for run in found["runs"]] == [0.3, 0.6, 0.3, 0.6]
    assert found["probes"][0]["load"]["concurrency"] == 2
    assert found["capacity_per_s"] > 0


def test_interruption_reports_the_calls_of_all_processes(null_address, photos):
    arguments = (photos, "--server", null_address, *QUICK, "--duration-s", 600, "--json")
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    children = _busy_children(process.pid)
    # As a terminal does: to all processes at once.
    os.killpg(process.pid, signal.SIGINT)
    out, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    assert b"Traceback" not in complaints
    (run,) = json.loads(out)["runs"]
    assert run["interrupted"]
    assert run["latency_ms"]["count"] == run["calls"] > 0
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize("victim", ["a load process", "the command"])
def test_a_killed_process_ends_all_others(null_address, photos, victim):
    arguments = (photos, "--server", null_address, *QUICK, "--duration-s", 600)
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    children = _busy_children(process.pid)
    (children[0] if victim == "a load process" else process).send_signal(signal.SIGKILL)
    _, complaints = process.communicate(timeout=60)
    if victim == "a load process":
        assert process.returncode == 1
        assert b"of 2 has ended with status -9" in complaints
        assert b"Traceback" not in complaints
    wait_for(lambda: not any(_is_alive(child) for child in children))


def test_more_processes_than_calls_in_flight_are_refused(null_address):
    done = bench("--server", null_address, "--concurrency", 2, "--processes", 3)
    assert done.returncode == 2
    assert "processes: is 3, must not exceed concurrency, which is 2" in done.stderr


def test_processes_are_used_for_several_runs(null_address, photos):
    plan = Plan(
        load=Load(concurrency=4),
        servers=(null_address,),
        files=(str(photos),),
        warm_up_s=0.0,
        requests=20,
        processes=2,
    )
    seen = []
    with LoadProcesses(2, images_of(plan, (232, 232))) as processes:
        first = processes.measure(plan, on_start=seen.append)
        second = processes.measure(plan)
        stopped = threading.Event()
        stopped.set()
        third = processes.measure(plan, stopped)
    assert (first.answered, second.answered) == (20, 20)
    assert third.interrupted
    assert len(seen) == 1
    assert seen[0]().calls <= 20


def test_what_a_process_raises_is_raised_here(tmp_path):
    plan = Plan(load=Load(concurrency=2), servers=("no address",), processes=2)
    with LoadProcesses(2, []) as processes, pytest.raises(ValueError, match="no address"):
        processes.measure(plan)


def _busy_children(pid: int) -> list[psutil.Process]:
    """Return a benchmark's two load processes, once both make calls."""
    loads: list[psutil.Process] = []

    def both_connected() -> bool:
        nonlocal loads
        found = psutil.Process(pid).children()
        with contextlib.suppress(psutil.Error):
            loads = [one for one in found if one.net_connections("tcp")]
        return len(loads) == 2

    wait_for(both_connected)
    return loads


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
