"""Clients generated from the gateway's `/openapi.json`, in Python and TypeScript, make their calls.

`make openapi-clients`. openapi-python-client, and openapi-typescript with openapi-fetch, generate
without a warning, compile, and get the answers that are expected. The exit code is 1 otherwise.

Not a test of pytest: it needs npm, and packages that the tests do not.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.support.gateways import client, gateway
from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".cache" / "openapi-clients"
SESSIONS = Path(__file__).parent
PYTHON_PACKAGES = ("openapi-python-client==0.29.1",)
NODE_PACKAGES = (
    "openapi-typescript@7.13.0",
    "openapi-fetch@0.17.0",
    "typescript@5.9.3",
    "@types/node@20",
)
GENERATED = "resnet_images"
TIMEOUT_S = 300.0


def python_session(spec: Path) -> list[str | Path]:
    """Generate the client in Python; return the command of its session."""
    home = BUILT / "python"
    interpreter = home / "bin" / "python"
    if not interpreter.exists():
        run(sys.executable, "-m", "venv", home)
    run(interpreter, "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES)
    shutil.rmtree(home / GENERATED, ignore_errors=True)
    output = run(
        *(home / "bin" / "openapi-python-client", "generate", "--path", spec),
        *("--meta", "none", "--output-path", home / GENERATED, "--fail-on-warning"),
        environment={"PATH": f"{home / 'bin'}:{os.environ['PATH']}"},  # it formats with its ruff
    )
    print(output.strip())
    script = home / "session.py"  # beside the package that it imports
    shutil.copy(SESSIONS / "openapi_python_session.py", script)
    return [interpreter, script]


def typescript_session(spec: Path) -> list[str | Path]:
    """Generate the types, and compile the session; return its command."""
    home = BUILT / "node"
    home.mkdir(parents=True, exist_ok=True)
    (home / "package.json").write_text('{"private": true, "type": "module"}\n')
    install = ("install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund")
    run("npm", *install, *NODE_PACKAGES, folder=home)
    binaries = home / "node_modules" / ".bin"
    run(binaries / "openapi-typescript", spec, "--output", home / "api.d.ts", folder=home)
    shutil.copy(SESSIONS / "openapi_session.ts", home / "session.ts")
    options = ("--strict", "--target", "es2022", "--module", "nodenext")
    run(binaries / "tsc", *options, "session.ts", folder=home)
    return ["node", home / "session.js"]


SESSION_OF: dict[str, Callable[[Path], list[str | Path]]] = {
    "python": python_session,
    "typescript": typescript_session,
}


def run(
    *command: str | Path, folder: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    """Run a command; return its output.

    Raises:
        SystemExit: It failed.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def expected_of(http: httpx2.Client, photo: bytes) -> dict[str, Any]:
    """Return the outcomes, from calls without a generated client."""
    classified, embedded = (
        http.post(path, content=photo).raise_for_status().json()
        for path in ("/v1/classify?top_k=2", "/v1/embed")
    )
    return {
        "form": [one["label"] for one in classified["classification"]["categories"]],
        "form embedding": 2048,
        "body": 5,
        "timing": True,
        "vector": 2048,
        "type": "EMBEDDING_TYPE_FLOAT16",
        "space": embedded["embedding"]["space"],
        "batch": [True, False, True],
        "batch error": "INVALID_ARGUMENT",
        "embed batch": [True, False, True],
        "variants": [["IMAGENET1K_V2", "VARIANT_STATE_READY"]],
        "error": [400, "INVALID_ARGUMENT", "image.encoded"],
        "no token": [401, "TOKEN_MISSING"],
        "no variant": [404, "DEFAULT, IMAGENET1K_V2"],
        "embeddings": 2048,
        "embeddings error": "input",
        "weaviate": 2048,
        "weaviate error": "image",
        "infer": ["PROBABILITIES", "EMBEDDING"],
        "infer error": "model_name",
        "oip": [True, ["1"], True, 1, ["READY"]],
    }


def main() -> int:
    """Generate the clients and make their calls; print what differs."""
    failures = []
    with tempfile.TemporaryDirectory() as directory, server_processes() as start:
        folder = Path(directory)
        photo, encoded, tokens = folder / "photo.jpg", folder / "base64", folder / "tokens.toml"
        photo.write_bytes(encode(photo_like(400, 300), "JPEG"))
        encoded.write_bytes(base64.b64encode(photo.read_bytes()))
        command = [sys.executable, "-m", "resnet50_server", "tokens", "new", "app"]
        token = run(*command, "--file", tokens).split()[-1]
        address = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null", "--oip"),
            *("--tokens-file", str(tokens)),
        ).wait_until_listening()
        with gateway(address) as url:
            headers = {"authorization": f"Bearer {token}"}
            with client(url, headers=headers) as http:
                expected = expected_of(http, photo.read_bytes())
                spec = folder / "openapi.json"
                spec.write_bytes(http.get("/openapi.json").content)
            for name, session_of in SESSION_OF.items():
                output = run(*session_of(spec), url, token, photo, encoded)
                found = json.loads(output.splitlines()[-1])
                wrong = [one for one in expected if found.get(one) != expected[one]]
                failures += [
                    f"{name}, {one}: {found.get(one)}, not {expected[one]}" for one in wrong
                ]
                print(
                    f"{name}: {len(expected) - len(wrong)} of {len(expected)} outcomes as expected"
                )
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
