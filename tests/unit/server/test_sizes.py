"""Limits follow the memory of the container, where they are not set."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resnet50_server.memory_bound import MIB, memory_bound, total
from resnet50_server.runtime.memory import MemoryLimit, read_memory_limit
from resnet50_server.settings import Settings
from resnet50_server.sizes import FITTED, MIN_STEP, STEPS, USABLE_SHARE, fit_memory
from resnet50_server.variants.spec import parse_variant
from tests.support.cgroups import entering, memory_group

SPECS = [parse_variant("IMAGENET1K_V2")]
SOURCE = Path("/sys/fs/cgroup/memory.max")
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


def settings(**values: Any) -> Settings:
    return Settings(variants=["IMAGENET1K_V2"], instances=1, **values)


def limit(mib: int) -> MemoryLimit:
    return MemoryLimit(mib * MIB, SOURCE)


@pytest.mark.parametrize("found", [None, limit(6144), limit(64 * 1024)])
def test_enough_memory_changes_no_limit(found):
    told = settings()
    assert fit_memory(told, SPECS, found) == told


def test_less_memory_lowers_limits_that_are_not_set(caplog):
    caplog.set_level(logging.INFO)
    told = settings(max_streams=64, max_uploads_per_caller=9)
    fitted = fit_memory(told, SPECS, limit(5120))
    assert total(memory_bound(fitted)) <= USABLE_SHARE * 5120 * MIB < total(memory_bound(told))
    assert (fitted.max_streams, fitted.max_streams_per_caller) == (64, 32)
    assert fitted.max_uploads_per_caller == 9
    assert fitted.max_requests < 1024
    assert fitted.max_requests_per_caller == fitted.max_requests // 2
    # One step less would do too little.
    share = fitted.max_requests * STEPS // 1024
    assert share < STEPS
    assert f"memory limit 5120 MiB ({SOURCE}): limits that are not set are {share}/{STEPS}" in (
        caplog.text
    )
    assert f"max_requests {fitted.max_requests}" in caplog.text
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_too_little_memory_keeps_a_quarter_and_warns(caplog):
    fitted = fit_memory(settings(), SPECS, limit(1024))
    for name in FITTED:
        assert getattr(fitted, name) == getattr(settings(), name) * MIN_STEP // STEPS
    assert f"the server may take {total(memory_bound(fitted)) // MIB} MiB" in caplog.text
    assert "raise the limit, or lower max_image_pixels" in caplog.text


@pytest.mark.parametrize("name", ["max_image_pixels", "max_image_bytes", "max_message_bytes"])
def test_limits_of_one_image_do_not_depend_on_memory(name):
    assert getattr(fit_memory(settings(), SPECS, limit(512)), name) == getattr(settings(), name)


def test_lowered_limits_fit_each_other():
    fitted = fit_memory(settings(max_message_bytes=100 * MIB), SPECS, limit(512))
    assert fitted.max_receive_bytes >= fitted.max_message_bytes


@pytest.mark.parametrize(
    ("mounts", "cgroups", "files", "size", "source"),
    [
        pytest.param(V2, "0::/\n", {"memory.max": "2147483648\n"}, 2048, "memory.max", id="v2"),
        pytest.param(V2, "0::/\n", {"memory.max": "max\n"}, None, None, id="v2 max"),
        pytest.param(
            V2,
            "0::/pod/c\n",
            {"pod/c/memory.max": "max\n", "pod/memory.max": "1073741824\n"},
            1024,
            "pod/memory.max",
            id="v2 the pod has the limit",
        ),
        pytest.param(
            V1,
            "5:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "1073741824\n"},
            1024,
            "memory/a/memory.limit_in_bytes",
            id="v1",
        ),
        pytest.param(
            V1,
            "5:memory:/\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712\n"},
            None,
            None,
            id="v1 none",
        ),
        pytest.param(V2, "0::/\n", {"memory.max": "0\n"}, None, None, id="nothing"),
        pytest.param(V2, "0::/\n", {"memory.max": "much\n"}, None, None, id="text"),
        pytest.param("", "", {}, None, None, id="no cgroups"),
    ],
)
def test_memory_limit_is_the_smallest_of_the_cgroups(
    tmp_path, mounts, cgroups, files, size, source
):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    files |= {"proc/self/mountinfo": mounts, "proc/self/cgroup": cgroups}
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = read_memory_limit(tmp_path)
    if size is None:
        assert found is None
    else:
        assert found == MemoryLimit(size * MIB, Path("/sys/fs/cgroup") / source)


def test_server_in_a_cgroup_logs_its_limit_and_the_lowered_limits():
    """In a real cgroup, where this machine allows one; else it logs no limit."""
    size = 4800 * MIB
    with memory_group(size) as group:
        serve = [sys.executable, "-m", "resnet50_server", "serve", "--listen", "127.0.0.1:0"]
        command = entering(group, [*serve, "--variants", "IMAGENET1K_V2", "--engine", "null"])
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on ")
            process.terminate()
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    limits = [line for line in log.splitlines() if "memory limit" in line]
    found = read_memory_limit()  # of the group above, if there is one
    if group is not None and (found is None or found.size > size):
        assert len(limits) == 1
        assert f"memory limit 4800 MiB ({group}/" in limits[0]
        assert "of their defaults: max_streams " in limits[0]
    elif found is None:
        assert limits == []


def test_the_page_on_sizes_shows_what_the_log_shows(caplog):
    caplog.set_level(logging.INFO)
    fit_memory(settings(), SPECS, limit(5120))
    page = (Path(__file__).resolve().parents[3] / "docs/how-to/size-a-deployment.md").read_text()
    (line,) = [one for one in page.splitlines() if one.startswith("memory limit ")]
    assert line.removesuffix("...") in caplog.text
