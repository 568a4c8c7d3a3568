"""`examples/camera.py`: a stream that another thread cancels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from resnet50_client.testing import FakeServer

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "camera.py"


def started(clip: Path, server: FakeServer) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(clip), "--server", server.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout.readline() == "press Enter to stop\n"
    return process


def test_enter_stops_a_stream_that_waits_for_its_answer(clip):
    with FakeServer() as server:
        server.delay_s = 3600.0
        with started(clip, server) as process:
            said, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0, said
    assert said.startswith("stopped\n0 answered, 0 failed, 0 dropped, "), said


def test_camera_that_ends_is_classified_to_its_end(clip):
    with FakeServer() as server, started(clip, server) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "0.30 s: " in said
    assert said.endswith("10 answered, 0 failed, 0 dropped, 0 pending, 0 resumes\n"), said
