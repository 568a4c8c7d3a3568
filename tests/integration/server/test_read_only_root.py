"""The image's entry point as another user, on a root file system that cannot be written."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc

from resnet50.v1 import inference_pb2, inference_pb2_grpc
from tests.support.administering import IMAGE
from tests.support.deployments import Dockerfile

# As a platform chooses it (OpenShift): no entry in /etc/passwd.
USER = 1234567
VOLUME = "/mnt"


def confined(command: list[str], volume: Path) -> list[str]:
    """Return what runs a command as the image runs with `--read-only --user 1234567:0`.

    The root is read-only but for the volume, which is at `VOLUME`, and an empty /tmp. Without the
    rights of root the command keeps its user.
    """
    root = os.geteuid() == 0
    mounts = [
        f"mount --bind {volume} {VOLUME}",
        "mount --bind / /",
        # The new mount hides the volume, which is mounted again.
        f"mount --bind {volume} {VOLUME}",
        "mount -o remount,bind,ro /",
        "mount -t tmpfs -o mode=1777 tmp /tmp",
        "cd /",
        'exec "$@"',
    ]
    user = ["setpriv", f"--reuid={USER}", "--regid=0", "--clear-groups", "--no-new-privs"]
    namespace = ["unshare", "-m" if root else "-rm", "sh", "-ec", "; ".join(mounts), "sh"]
    return [*namespace, *(user if root else []), *command]


def environment(**more: str) -> dict[str, str]:
    """Return the image's variables, with its volume at `VOLUME`."""
    image = Dockerfile()
    found = {name: value.replace(image.volume, VOLUME) for name, value in image.environment.items()}
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | found | {"HOME": "/tmp"} | more


def test_server_runs_as_another_user_on_a_read_only_root(tmp_path):
    volume = tmp_path / "weights"
    volume.mkdir()
    volume.chmod(0o2775)  # of group 0, as in the image
    told = {"RESNET50_LISTEN": "127.0.0.1:0", "RESNET50_METRICS_LISTEN": "127.0.0.1:0"}
    told |= {"RESNET50_VARIANTS": "x=random:0", "RESNET50_ENGINE": "onnxruntime"}
    entry = [sys.executable, "-m", "resnet50_server"]  # the installed command runs this
    writes = (
        "import os; assert os.getuid(); import pytest\n"
        "for path in ('/x', '/usr/x', '/root/x'):\n"
        "    with pytest.raises(OSError):\n"
        "        open(path, 'w')\n"
    )
    if os.geteuid() == 0:
        subprocess.run(confined([sys.executable, "-c", writes], volume), check=True)
    process = subprocess.Popen(
        confined([*entry, *Dockerfile().command[1:]], volume),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**told),
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), line + process.stderr.read()
        assert asyncio.run(answer(line.removeprefix("listening on ").strip())) == "x"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.wait()
    # The exported graphs are in the volume, for the next start.
    graphs = [path for path in (volume / "graphs").rglob("*") if path.is_file()]
    assert graphs
    if os.geteuid() == 0:
        assert {path.stat().st_uid for path in graphs} == {USER}
    assert "cannot be written" not in log


async def answer(address: str) -> str:
    """Return the name of the variant that answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = await stub.Classify(inference_pb2.ClassifyRequest(image=IMAGE), timeout=60)
        return reply.variant.name
