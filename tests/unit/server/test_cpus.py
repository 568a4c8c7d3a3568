"""The CPU budget, read from the trees of files that systems have; and torch's threads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from resnet50_server.engines.devices import set_threads
from resnet50_server.runtime.cpus import CpuBudget, CpuPlan, read_cpu_budget
from tests.support.serving import server_processes

NULL = ("--variants", "IMAGENET1K_V2", "--engine", "null")
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "34 31 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.fixture
def system(tmp_path):
    """Return what writes the files of a system: its mounts, the process's cgroups, quotas."""

    def write(mounts: str, cgroups: str, files: dict[str, str]) -> Path:
        files = files | {"proc/self/mountinfo": mounts, "proc/self/cgroup": cgroups}
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": f"{period}\n",
    }


@pytest.mark.parametrize(
    ("mounts", "cgroups", "files", "quota", "source"),
    [
        pytest.param(
            V2, "0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0, "cpu.max", id="v2"
        ),
        pytest.param(
            V2, "0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, None, id="v2 max"
        ),
        pytest.param(V2, "0::/\n", {}, None, None, id="v2 root has no file"),
        pytest.param(
            V2,
            "0::/a.slice/b.service\n",
            {
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a.slice/cpu.max": "150000 50000\n",
            },
            3.0,
            "a.slice/cpu.max",
            id="v2 nested, the slice has the quota",
        ),
        pytest.param(
            V2,
            "0::/a.slice/b.service\n",
            {
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/a.slice/cpu.max": "400000 100000\n",
            },
            1.5,
            "a.slice/b.service/cpu.max",
            id="v2 nested, its own is smaller",
        ),
        pytest.param(
            V2,
            "0::/../other\n",
            {"sys/fs/cgroup/cpu.max": "300000 100000\n"},
            3.0,
            "cpu.max",
            id="v2 outside of the namespace",
        ),
        pytest.param(
            V2.replace(" / /sys", " /kubepods/pod1 /sys"),
            "0::/kubepods/pod1/c1\n",
            {
                "sys/fs/cgroup/c1/cpu.max": "250000 100000\n",
                "sys/fs/cgroup/cpu.max": "max 100000\n",
            },
            2.5,
            "c1/cpu.max",
            id="v2 a part of the tree is mounted",
        ),
        pytest.param(
            V1,
            "4:cpu,cpuacct:/\n2:memory:/x\n",
            v1(CPU, 400_000),
            4.0,
            "cpu,cpuacct/cpu.cfs_quota_us",
            id="v1",
        ),
        pytest.param(V1, "4:cpu,cpuacct:/\n", v1(CPU, -1), None, None, id="v1 none"),
        pytest.param(
            V1.replace("0:29 / ", "0:29 /docker/1 "),
            "4:cpu,cpuacct:/docker/1\n",
            v1(CPU, 100_000, 50_000),
            2.0,
            "cpu,cpuacct/cpu.cfs_quota_us",
            id="v1 in a container without a namespace",
        ),
        pytest.param(
            HYBRID,
            "4:cpu,cpuacct:/a/b\n0::/a/b\n",
            v1(f"{CPU}/a/b", -1) | v1(f"{CPU}/a", 250_000) | v1(CPU, -1),
            2.5,
            "cpu,cpuacct/a/cpu.cfs_quota_us",
            id="hybrid",
        ),
        pytest.param(
            V2.replace("/sys/fs/cgroup ", r"/sys/fs/c\040group "),
            "0::/\n",
            {"sys/fs/c group/cpu.max": "200000 100000\n"},
            2.0,
            "../c group/cpu.max",
            id="a mount point with a space",
        ),
        pytest.param(V2, "0::/\n", {"sys/fs/cgroup/cpu.max": "what\n"}, None, None, id="text"),
        pytest.param("", "", {}, None, None, id="no cgroups"),
        pytest.param("broken\n\n- - -\n", "0\n\n", {}, None, None, id="broken"),
    ],
)
def test_quota_is_the_smallest_of_the_cgroups(system, mounts, cgroups, files, quota, source):
    found = read_cpu_budget(64, system(mounts, cgroups, files))
    file = None if source is None else Path(os.path.normpath(f"/sys/fs/cgroup/{source}"))
    assert found == CpuBudget(64, quota, file)


def test_system_without_these_files_has_no_quota(tmp_path):
    assert read_cpu_budget(6, tmp_path) == CpuBudget(6)


@pytest.mark.parametrize(
    ("affinity", "quota", "cpus"),
    [
        (64, None, 64),
        (64, 2.0, 2),
        (2, 8.0, 2),
        (64, 1.5, 1),  # rounded down
        (64, 2.99, 2),
        (64, 0.25, 1),  # never none
        (1, 1.0, 1),
    ],
)
def test_cpu_budget_is_the_smaller_of_affinity_and_quota(affinity, quota, cpus):
    budget = CpuBudget(affinity, quota, Path("/sys/fs/cgroup/cpu.max"))
    assert budget.cpus == cpus
    assert str(budget).startswith(f"{cpus} CPUs ({affinity} by affinity, ")


def test_torch_threads_are_set_per_thread():
    """Torch gives a thread in which it has not computed yet the number that was set last."""
    first, second, seen = threading.Event(), threading.Event(), []

    def decode() -> None:
        set_threads(1)
        first.set()
        second.wait(60)
        seen.append(torch.get_num_threads())

    def compute() -> None:
        first.wait(60)
        set_threads(5)
        second.set()
        seen.append(torch.get_num_threads())

    threads = [threading.Thread(target=one) for one in (decode, compute)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(seen) == [1, 5]


def test_server_logs_its_cpu_budget_once():
    with server_processes() as start:
        affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(affinity)})
        try:
            server = start(*NULL, environment={})  # an interpreter that inherits it
        finally:
            os.sched_setaffinity(0, affinity)
        server.wait_until_listening()
        status, written = server.terminate()
    assert status == 0
    (line,) = [line for line in written.splitlines() if "CPU budget" in line]
    assert "CPU budget: 1 CPUs (1 by affinity, " in line
    assert line.endswith(
        "decode threads: 1; an engine on the CPU: 1 batches at once, threads of each: 1"
    )


@pytest.mark.parametrize(
    ("cores", "instances", "each", "expected"),
    [
        (1, None, None, (1, 1)),
        (2, None, None, (1, 2)),
        (8, None, None, (1, 8)),
        (17, None, None, (2, 8)),
        (64, None, None, (8, 8)),
        (64, 4, None, (4, 16)),
        (2, 4, None, (4, 1)),
        (8, None, 3, (1, 3)),
    ],
)
def test_cores_are_divided(cores, instances, each, expected):
    threads = CpuPlan.divide(cores, instances, each)
    assert (threads.instances, threads.threads) == expected
