"""Recognise files that are not checkpoints of PyTorch, by their first bytes and ZIP entries."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from resnet50_server.runtime.texts import escaped, listed

# Weights of other frameworks cannot be renamed into PyTorch's.
_CONVERT = "use the PyTorch checkpoint that it was made from"
_STATE_DICT = "save the network's state_dict() with torch.save or safetensors instead"
# First bytes of a file, what it is, and what to do.
_MAGIC = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a git-lfs pointer, not the file itself",
        "run `git lfs pull` where it was cloned",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _CONVERT),
    (b"\x93NUMPY", "a NumPy array", _STATE_DICT),
    (b"GGUF", "a GGUF file", _CONVERT),
    (b"\x1f\x8b", "compressed with gzip", "run `gunzip` on it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "run `unzstd` on it first"),
    (b"BZh", "compressed with bzip2", "run `bunzip2` on it first"),
    (b"\xfd7zXZ\x00", "compressed with xz", "run `unxz` on it first"),
    (b"\xff\xd8\xff", "a JPEG image", "name the checkpoint"),
    (b"\x89PNG", "a PNG image", "name the checkpoint"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
# Files in a directory that say what wrote it, what it is, and what to do.
_DIRECTORIES = (
    ("saved_model.pb", "a TensorFlow SavedModel", _CONVERT),
    (
        "model.safetensors.index.json",
        "a checkpoint in several files",
        "save it again in one: model.save_pretrained(PATH, max_shard_size='10GB')",
    ),
    (
        "pytorch_model.bin.index.json",
        "a checkpoint in several files",
        "save it again in one: model.save_pretrained(PATH, max_shard_size='10GB')",
    ),
    (
        ".metadata",
        "a checkpoint of torch.distributed",
        "run `python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIRECTORY FILE`",
    ),
    ("zero_to_fp32.py", "a checkpoint of DeepSpeed", "run the zero_to_fp32.py in it first"),
)
# Names of checkpoints in a directory, the preferred ones first.
_USUAL_NAMES = ("model.safetensors", "weights.safetensors", "pytorch_model.bin", "weights.pth")
_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar"}


def foreign_kind(content: bytes) -> str | None:
    """Return what a file is and what to do, if it is no checkpoint of PyTorch; else None.

    Args:
        content: The whole file.
    """
    start = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        return "is empty: copy it there again"
    if is_safetensors(content):
        return None
    for magic, kind, advice in _MAGIC:
        if content.startswith(magic):
            return f"is {kind}: {advice}"
    if start.lower().startswith(_PAGES):
        return (
            "is a web page, probably of an error or a login: download the file itself, with the"
            " address behind its download button"
        )
    if content[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model: {_CONVERT}"
    if content[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if content.startswith(b"PK\x03\x04"):
        return _zip_kind(content)
    if start[:1] in b"{[" and _is_json(content):
        return "is a JSON file: name the checkpoint"
    if _is_onnx(content):
        return f"is an ONNX model: {_CONVERT}"
    return None


def is_safetensors(content: bytes) -> bool:
    """Return whether a file begins as safetensors do: the header's length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    return content[8:9] == b"{" and 2 <= length <= len(content) - 8


def checkpoint_among(names: list[str]) -> str:
    """Return the checkpoint of a directory, as Hugging Face's libraries and others lay it out.

    Args:
        names: Of the files in it.

    Raises:
        ValueError: There is none, or more than one; says which, and what to do.
    """
    for name, kind, advice in _DIRECTORIES:
        if name in names:
            raise ValueError(f"is {kind}: {advice}")
    for name in _USUAL_NAMES:
        if name in names:
            return name
    found = [name for name in sorted(names) if Path(name).suffix in _SUFFIXES]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError("is a directory without a checkpoint: name the file")
    shown = listed([escaped(name[:64]) for name in found], separator=", ")
    raise ValueError(f"is a directory with {len(found)} checkpoints ({shown}): name one of them")


def _zip_kind(content: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return None  # torch says what is wrong with it
    inner = [name.partition("/")[2] or name for name in names]
    if "constants.pkl" in inner:
        return f"is a TorchScript archive, a program with weights: {_STATE_DICT}"
    if "model.weights.h5" in names:
        return f"is a Keras model: {_CONVERT}"
    if "serialized_exported_program.json" in names or any(
        name.startswith(("models/", "data/weights/")) for name in inner
    ):
        return f"is a program of torch.export: {_STATE_DICT}"
    if names and all(name.endswith(".npy") for name in names):
        return f"holds NumPy arrays: {_STATE_DICT}"
    if "data.pkl" not in inner:
        return "is a ZIP archive: unpack it first"
    return None


def _is_json(content: bytes) -> bool:
    if len(content) > 2**24:
        return False
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _is_onnx(content: bytes) -> bool:
    """Return whether a file begins as ONNX does: `ir_version`, then the name of its producer."""
    version = content[:1] == b"\x08" and 1 <= content[1] <= 32 if len(content) > 2 else False
    return version and content[2:3] in b"\x12\x1a\x22\x2a\x3a\x42"
