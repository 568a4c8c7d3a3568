"""The server process that is sent mutated images and messages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save_file
from torchvision.models import resnet50

from fuzz.calls import SMALL, write_folders

# It is killed if it does not answer or end by then.
ANSWER_S = 60.0
# Of the metrics, those that count what is inside the server.
INSIDE = (
    *("resnet50_in_flight_requests", "resnet50_in_flight_bytes", "resnet50_open_streams"),
    *("resnet50_decode_queue_calls", "resnet50_decode_threads_busy", "resnet50_queue_images"),
    "resnet50_decode_threads_stuck",
)


class Server:
    """A server process, and what it says of itself.

    Args:
        folder: For its files.
    """

    def __init__(self, folder: Path) -> None:
        write_folders(folder)
        torch.manual_seed(0)
        network = resnet50(weights=None, num_classes=len(SMALL["categories"]))
        save_file(network.state_dict(), folder / "tiny" / "weights.safetensors")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            metrics = f"127.0.0.1:{free.getsockname()[1]}"
        self._metrics = f"http://{metrics}/metrics"
        self._log = folder / "log"
        command = [
            *(sys.executable, "-m", "resnet50_server", "serve", "--listen", "127.0.0.1:0"),
            *("--variants", f"tiny={folder / 'tiny'}", "--variants", f"second={folder / 'tiny'}"),
            *("--variants-dir", str(folder / "variants")),
            *("--weights-dir", str(folder), "--no-download", "--metrics-listen", metrics),
            *("--tokens-file", str(folder / "tokens.toml"), "--log-level", "warning"),
            *("--engine", "torch", "--device", "cpu", "--engine-threads", "1"),
            *("--decode-threads", "2", "--max-image-pixels", "4000000"),
            # Pieces of an image may be doubled: its message is to reach the server all the same.
            *("--max-message-bytes", str(2**25)),
            *("--response-cache-bytes", str(2**22), "--oip"),
        ]
        # One heap: else each of gRPC's threads has one, and what those keep free differs.
        environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self.process.stdout is not None  # a pipe, as asked for
        said = self.process.stdout.readline()
        if not said.startswith("listening on "):
            raise SystemExit(f"the server did not start: {self._log.read_text()}")
        self.address = said.split()[-1]

    def memory_kib(self) -> int:
        """Return what the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024

    def inside(self) -> dict[str, float]:
        """Return what is inside the server, without what is 0."""
        with urllib.request.urlopen(self._metrics, timeout=ANSWER_S) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        samples = [sample for family in families for sample in family.samples]
        return {one.name: one.value for one in samples if one.name in INSIDE and one.value}

    def stop(self) -> Iterator[str]:
        """Stop it; give what is wrong with that, or with what it has logged."""
        self.process.terminate()
        try:
            status = self.process.wait(ANSWER_S)
            if status != 0:
                yield f"the server ended with status {status}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            yield "the server did not end when it was told to"
        assert self.process.stdout is not None
        self.process.stdout.close()
        bad = [
            line
            for line in self._log.read_text().splitlines()
            if " ERROR " in line or " CRITICAL " in line or line.startswith("Traceback")
        ]
        if bad:
            yield f"the server has logged {len(bad)} errors, the first: {bad[0]}"
