"""The containers that the chart and the KServe manifests describe really serve."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from resnet50_client import Client, UnauthenticatedError
from resnet50_client.admin import AdminClient
from tests.support.certs import authority, chain, issue
from tests.support.containers import contained, isolates
from tests.support.deployments import DEPLOY, Dockerfile, variables
from tests.support.helm import of_kind, pod_of, render
from tests.support.pictures import encode, picture

TOKEN = "t" * 43
# Without weights, and on ports that are free on this machine.
ANY_PORT = "0.0.0.0:0"
REPLACED = {
    "RESNET50_ENGINE": "null",
    "RESNET50_LISTEN": ANY_PORT,
    "RESNET50_METRICS_LISTEN": ANY_PORT,
}


def kserve_pod() -> dict[str, Any]:
    manifest = yaml.safe_load((DEPLOY / "kserve" / "inference-service.yaml").read_text())
    return dict(manifest["spec"]["predictor"])


@pytest.fixture
def volumes(tmp_path) -> dict[str, Path]:
    """Return the contents of the Secrets by the name of their volume."""
    found = {}
    for name in ("tls", "client-ca", "tokens"):
        found[name] = tmp_path / "secrets" / name
        found[name].mkdir(parents=True)
    return found


def fill(volumes: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Write the Secrets; return the arguments of a client that they admit."""
    ca = authority()
    leaf, client = issue(ca), ca.issue_cert("client@example.org")
    (volumes["tls"] / "tls.crt").write_bytes(chain(leaf))
    (volumes["tls"] / "tls.key").write_bytes(leaf.private_key_pem.bytes())
    (volumes["client-ca"] / "ca.crt").write_bytes(ca.cert_pem.bytes())
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    text = f'[[token]]\nname = "ops"\nsha256 = "{digest}"\nscopes = ["infer", "admin"]\n'
    (volumes["tokens"] / "tokens.toml").write_text(text)
    return {"token": TOKEN, **client_files(ca, client, folder)}


def client_files(ca: trustme.CA, client: trustme.LeafCert, folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    files["ca"].write_bytes(ca.cert_pem.bytes())
    files["cert"].write_bytes(chain(client))
    files["key"].write_bytes(client.private_key_pem.bytes())
    return files


@contextmanager
def running(
    pod: Mapping[str, Any], secrets: Mapping[str, Path], root: Path
) -> Iterator[dict[str, str]]:
    """Run a pod's container; give its addresses by "listening", "metrics" and "http"."""
    (container,) = pod["containers"]
    image = Dockerfile()
    told = image.environment | variables(container) | REPLACED
    if "RESNET50_HTTP_LISTEN" in told:
        told |= dict.fromkeys(("RESNET50_HTTP_LISTEN", "RESNET50_GATEWAY_METRICS_LISTEN"), ANY_PORT)
    mounts = {one["mountPath"]: secrets.get(one["name"]) for one in container["volumeMounts"]}
    command, environment = contained(
        [sys.executable, "-m", "resnet50_server", *container["args"]],
        {"PATH": "/usr/bin:/bin", **told},
        mounts,
        root,
    )
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    errors: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    reader = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        found: dict[str, str] = {}
        while len(found) < (3 if "RESNET50_HTTP_LISTEN" in told else 2):
            line = process.stdout.readline()
            assert line, "".join(errors)
            found[line.split()[0]] = line.split()[-1]
        yield found
        process.terminate()
        assert process.wait(timeout=60) == 0, "".join(errors)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def local(address: str) -> str:
    return address.replace("0.0.0.0", "127.0.0.1")


@pytest.mark.parametrize("pod", [lambda: pod_of(render()), kserve_pod], ids=["chart", "kserve"])
def test_container_serves_and_drains_on_a_read_only_root(pod, volumes, tmp_path):
    with running(pod(), volumes, tmp_path / "root") as addresses:
        with Client(local(addresses["listening"]), timeout_s=60) as client:
            client.wait_until_ready(timeout_s=60)
            assert client.classify(encode(picture())).variant.name == "IMAGENET1K_V2"
        ready = f"{local(addresses['metrics'])}/readyz"
        with urllib.request.urlopen(ready, timeout=60) as answer:
            assert answer.status == 200


def test_container_has_the_variants_and_the_default_of_the_variants_file(tmp_path):
    content = (
        'default = "second"\n'
        '[[variant]]\nname = "first"\nseed = 1\n[[variant]]\nname = "second"\nseed = 2\n'
    )
    objects = render({"variantsFile": content})
    file = tmp_path / "config" / "variants.toml"
    file.parent.mkdir()
    file.write_text(of_kind(objects, "ConfigMap")["data"][file.name])
    with (
        running(pod_of(objects), {"variants-file": file.parent}, tmp_path / "root") as addresses,
        Client(local(addresses["listening"]), timeout_s=60) as client,
    ):
        client.wait_until_ready(timeout_s=60)
        assert {one.name for one in client.list_variants()} == {"first", "second"}
        assert client.classify(encode(picture())).variant.name == "second"


def test_contained_process_writes_to_its_volumes_only(tmp_path):
    if not isolates():
        return  # the process would have this one's rights
    program = "import os; print(os.getuid()); open('/tmp/a', 'w'); open('/a', 'w')"
    command, environment = contained(
        [sys.executable, "-c", program], {}, {"/tmp": None}, tmp_path / "root"
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "12345\n")
    assert "Read-only file system: '/a'" in done.stderr


def test_container_with_all_secrets_admits_its_caller_only(volumes, tmp_path):
    values = {
        "tls": {"secretName": "tls", "clientCaSecretName": "clients"},
        "tokens": {"secretName": "tokens"},
        "admin": {"enabled": True},
        "oip": {"enabled": True},
        "http": {"enabled": True},
    }
    admitted = fill(volumes, tmp_path)
    pod = pod_of(render(values))
    with running(pod, volumes, tmp_path / "root") as addresses:
        address = local(addresses["listening"])
        with AdminClient(address, timeout_s=60, **admitted) as admin:
            admin.set_default_variant("IMAGENET1K_V2")
        del admitted["token"]
        with (
            Client(address, timeout_s=60, **admitted) as client,
            pytest.raises(UnauthenticatedError),
        ):
            client.classify(encode(picture()))
        assert addresses["http"].startswith("https://")
