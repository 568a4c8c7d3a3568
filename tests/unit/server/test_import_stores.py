"""Checkpoints of the Hugging Face Hub, S3 and Google Cloud Storage, from stand-ins of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from huggingface_hub import constants

from resnet50_server.errors import WeightsError
from resnet50_server.variants.importing.importer import ImportOptions, import_checkpoint
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.checkpoints import COUNT, save
from tests.support.object_stores import NAME, S3, GoogleStorage, Hub, Store, serving_store

STORES: dict[str, type[Store]] = {"hf": Hub, "s3": S3, "gs": GoogleStorage}
LABELS = [f"pet {index}" for index in range(COUNT)]


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "pytorch_model.bin"
    return save(weights.hollow(COUNT), path).read_bytes()


@pytest.fixture(params=STORES)
def scheme(request, content, monkeypatch) -> Iterator[str]:
    """Serve a directory with a checkpoint and its description; yield the scheme of its address."""
    card = json.dumps({"label_names": LABELS}).encode()
    files = {"pytorch_model.bin": content, "config.json": card, "README.md": b"pets"}
    with serving_store(STORES[request.param], files) as (address, _):
        # HF_ENDPOINT, which is read when the library is imported.
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield request.param
        fsspec.get_filesystem_class(request.param).clear_instance_cache()


def imported(source: str, directory: Path, **options: Any) -> list[str]:
    return list(import_checkpoint(source, directory, ImportOptions(**options)))


def test_file_with_a_pinned_digest_is_imported(scheme, content, tmp_path):
    digest = hashlib.sha256(content).hexdigest()
    names = tmp_path / "names.txt"
    names.write_text("\n".join(LABELS))
    lines = imported(
        f"{scheme}://{NAME}/pytorch_model.bin",
        tmp_path / "mine",
        sha256=digest,
        categories=names,
    )
    source = f"{scheme}://{NAME}/pytorch_model.bin"
    assert lines[0] == f"read {source}: {len(content) / 1e6:.1f} MB, SHA-256 {digest}"
    assert not any("vouches" in line for line in lines)
    assert list(parse_variant(f"mine={tmp_path / 'mine'}").categories) == LABELS


def test_directory_is_imported_with_its_description(scheme, tmp_path):
    lines = imported(f"{scheme}://{NAME}", tmp_path / "mine")
    assert f"categories: {COUNT}, from config.json" in lines
    assert list(parse_variant(f"mine={tmp_path / 'mine'}").categories) == LABELS


def test_file_with_another_digest_is_refused(scheme, tmp_path):
    with pytest.raises(WeightsError, match=r"is another file: its SHA-256 is [0-9a-f]{64}"):
        imported(f"{scheme}://{NAME}/pytorch_model.bin", tmp_path / "mine", sha256="0" * 64)
    assert not (tmp_path / "mine").exists()


def test_missing_file_is_refused_in_one_line(scheme, tmp_path):
    shown = re.escape(f"{scheme}://{NAME}/none.bin")
    with pytest.raises(WeightsError, match=f"^{shown} cannot be downloaded: .*no such file") as no:
        imported(f"{scheme}://{NAME}/none.bin", tmp_path / "mine")
    assert "\n" not in str(no.value)
