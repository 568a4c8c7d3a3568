"""Checkpoints from addresses: HTTP, and fsspec's file system in memory."""

from __future__ import annotations

import hashlib
import http.server
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from resnet50_server.errors import WeightsError
from resnet50_server.variants.importing import remote
from resnet50_server.variants.importing.importer import ImportOptions, import_checkpoint
from resnet50_server.variants.importing.remote import download, public_url
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.checkpoints import COUNT, save

NAMES = [f"kind {index}" for index in range(COUNT)]


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "best.pth"
    return save({"classes": NAMES, "model": weights.hollow(COUNT)}, path).read_bytes()


@pytest.fixture(autouse=True)
def nothing_remains(tmp_path, monkeypatch) -> Iterator[None]:
    """Check that no download outlives its import."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path: the file, half of it, nothing, an error."""

    content = b""
    stalled = threading.Event()

    def do_HEAD(self) -> None:
        self._start()

    def do_GET(self) -> None:
        if not self._start():
            return
        if "half" in self.path:
            self.wfile.write(self.content[: len(self.content) // 2])
            return
        if "stalls" in self.path:
            self.stalled.wait(30)
            return
        self.wfile.write(self.content)

    def _start(self) -> bool:
        status = {"/missing": 404, "/denied": 403, "/broken": 500}.get(self.path.split("?")[0], 200)
        if "page" in self.path:
            self.content = b"<!DOCTYPE html><html>Sign in</html>"
        self.send_response(status)
        length = len(self.content) if status == 200 else 0
        self.send_header("Content-Length", str(length))
        self.end_headers()
        return status == 200

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def address(content) -> Iterator[str]:
    Handler.content = content
    Handler.stalled.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        Handler.stalled.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def lines_of(source: str, directory: Path, **options: Any) -> list[str]:
    return list(import_checkpoint(source, directory, ImportOptions(**options)))


def error_of(source: str, directory: Path, **options: Any) -> str:
    with pytest.raises(WeightsError) as refused:
        lines_of(source, directory, **options)
    assert not directory.exists()
    return str(refused.value)


def test_file_of_http_is_imported_and_its_digest_shown(address, content, tmp_path):
    digest = hashlib.sha256(content).hexdigest()
    lines = lines_of(f"{address}/best.pth?token=secret", tmp_path / "mine")
    assert lines[0].startswith(f"read {address}/best.pth: ")
    assert lines[0].endswith(f"SHA-256 {digest}")
    assert "nothing vouches for that file: add --sha256" in lines[1]
    assert "secret" not in "".join(lines)
    assert list(parse_variant(f"mine={tmp_path / 'mine'}").categories) == NAMES


def test_pinned_digest_is_required(address, content, tmp_path):
    digest = hashlib.sha256(content).hexdigest()
    lines = lines_of(f"{address}/best.pth", tmp_path / "mine", sha256=digest)
    assert not any("vouches" in line for line in lines)
    text = error_of(f"{address}/best.pth", tmp_path / "other", sha256="0" * 64)
    assert f"is another file: its SHA-256 is {digest}, and {'0' * 64} was asked for" in text


def test_pinned_digest_holds_for_a_local_file(content, tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes(content)
    assert "is another file" in error_of(str(path), tmp_path / "mine", sha256="0" * 64)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "cannot be downloaded: there is no such file"),
        ("denied", "cannot be downloaded: HTTP status 403 (is a token needed?)"),
        ("broken", "cannot be downloaded: HTTP status 500"),
        ("page", "is a web page"),
        ("half", "cannot be downloaded: ClientPayloadError"),
    ],
)
def test_failed_download_is_one_line_without_secrets(address, tmp_path, path, reason):
    text = error_of(f"{address}/{path}?key=secret", tmp_path / "mine")
    assert reason in text
    assert "secret" not in text
    assert "\n" not in text


def test_server_that_stalls_is_left_in_time(address, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.5)
    text = error_of(f"{address}/stalls", tmp_path / "mine")
    assert "cannot be downloaded: no answer within 0.5 s" in text


def test_file_beyond_the_limit_is_refused(address, tmp_path):
    with pytest.raises(WeightsError, match=r"is longer than 0\.03125 MiB"):
        download(f"{address}/best.pth", tmp_path, 2**15, pinned=True)


def test_http_to_another_machine_needs_a_digest(tmp_path):
    text = error_of("http://example.invalid/best.pth", tmp_path / "mine")
    assert "may be changed on its way: add --sha256, or use https://" in text


def test_directory_of_a_store_has_its_config_read(memory, content, tmp_path):
    memory.pipe("/models/pets/pytorch_model.bin", content)
    config = {"label_names": [f"pet {index}" for index in range(COUNT)]}
    memory.pipe("/models/pets/config.json", json.dumps(config).encode())
    memory.pipe("/models/pets/README.md", b"pets")
    lines = lines_of("memory://models/pets", tmp_path / "mine")
    assert f"categories: {COUNT}, from config.json" in lines
    assert parse_variant(f"mine={tmp_path / 'mine'}").categories[0] == "pet 0"


def test_directory_of_a_store_without_a_checkpoint_is_named(memory, tmp_path):
    memory.pipe("/models/tf/saved_model.pb", b"1")
    text = error_of("memory://models/tf", tmp_path / "mine")
    assert "memory://models/tf is a TensorFlow SavedModel" in text


def test_unknown_scheme_is_refused(tmp_path):
    text = error_of("nosuch://bucket/best.pth", tmp_path / "mine")
    assert "nosuch://bucket/best.pth " in text
    assert "Protocol not known" in text


def test_shown_address_has_no_secrets():
    url = "https://user:password@example.com/a/best.pth?X-Amz-Signature=secret#part"
    assert public_url(url) == "https://example.com/a/best.pth"
