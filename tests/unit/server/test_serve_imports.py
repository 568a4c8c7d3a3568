"""`resnet50-server serve` imports no package before an option or an engine needs it."""

from __future__ import annotations

import subprocess
import sys

# Packages and the option or the engine that needs them.
LATER = {
    "cryptography": "--tls-cert",
    "prometheus_client": "--metrics-listen",
    "opentelemetry": "--otlp-endpoint",
    "starlette": "--http-listen",
    "resnet50_server.api.oip": "--oip",
    **dict.fromkeys(("torch", "torchvision", "onnx", "onnxruntime", "openvino"), "an engine"),
    **dict.fromkeys(("ray", "pyarrow", "fsspec", "httpx"), "another command"),
}
PROGRAM = """
import sys
import resnet50_server.cli.main, resnet50_server.cli.serve
print(*sys.modules)
"""


def test_serve_imports_no_package_that_only_an_option_needs():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {one: LATER[one] for one in done.stdout.split() if one in LATER}
    assert imported == {}
