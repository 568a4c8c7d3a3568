"""Freed memory stays in the process, so that the kernel does not clear it for each message."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import resource
from resnet50_server.runtime.memory import keep_freed_memory

keep_freed_memory()

def faults() -> int:
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        messages = [b"x" * 1_000_000 for _ in range(16)]
        del messages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
"""
PAGES = 16 * 1_000_000 // 4096


def page_faults(**environment: str) -> int:
    """Return how often a process touches new memory for the third burst of messages."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_memory_of_messages_is_reused():
    assert page_faults() < PAGES / 10


def test_environment_of_malloc_is_respected():
    assert page_faults(MALLOC_TRIM_THRESHOLD_="131072") > PAGES / 2
