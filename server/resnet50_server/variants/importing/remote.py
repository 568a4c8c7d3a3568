"""Download a checkpoint from HTTP(S), S3, GCS or the Hugging Face Hub, through fsspec."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.texts import escaped

from .file_kinds import checkpoint_among

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Time limits of a connection, and of each read, in seconds.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
BLOCK_BYTES = 2**20
# A file beside the checkpoint that describes it.
_CARD = "config.json"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_url(source: str) -> bool:
    """Return whether a source is an address rather than a path."""
    return _URL.match(source) is not None


def public_url(url: str) -> str:
    """Return an address without user, password and query, which may have secrets."""
    parts = urlsplit(url)
    return escaped(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300])


def download(url: str, folder: Path, max_bytes: int, pinned: bool) -> Path:
    """Download a checkpoint, and the config.json beside it if its directory was named.

    Args:
        url: Of a file, or of a directory that has one checkpoint; not a directory of HTTP.
        folder: Where it goes; it exists.
        max_bytes: The largest file.
        pinned: Whether the caller compares its digest with a known one.

    Returns:
        The path of the checkpoint.

    Raises:
        WeightsError: It cannot be downloaded, or is too large; says why, without secrets.
    """
    shown, scheme = public_url(url), urlsplit(url).scheme
    if scheme == "http" and not pinned and urlsplit(url).hostname not in ("localhost", "127.0.0.1"):
        raise WeightsError(
            f"{shown}: a file from http:// may be changed on its way: add --sha256, or use https://"
        )
    with _errors_named(shown):
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url, **_options(scheme))
        names = [path]
        if scheme not in ("http", "https") and files.isdir(path):
            found = {PurePosixPath(one).name: one for one in files.ls(path, detail=False)}
            names = [found[checkpoint_among(list(found))]]
            names += [found[_CARD]] if _CARD in found else []
        for name in names:
            _download_file(files, name, folder / _file_name(name), max_bytes, shown)
    return folder / _file_name(names[0])


def _download_file(
    files: AbstractFileSystem, name: str, path: Path, max_bytes: int, shown: str
) -> None:
    length = 0
    # Whole blocks from the start: no seeking, so HTTP servers without ranges do.
    options = {"block_size": 0} if "http" in files.protocol else {}
    with files.open(name, "rb", **options) as remote, path.open("wb") as file:
        while block := remote.read(BLOCK_BYTES):
            length += len(block)
            if length > max_bytes:
                raise WeightsError(f"{shown} is longer than {max_bytes / 2**20:g} MiB")
            file.write(block)
        expected = getattr(remote, "size", None)
    if expected is not None and length != expected:
        raise WeightsError(f"{shown} ended after {length} of {expected} bytes: try again")


def _options(scheme: str) -> dict[str, Any]:
    """Return the time limits of a file system in its own words."""
    if scheme in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
        )
        return {"client_kwargs": {"timeout": limits}, "skip_instance_cache": True}
    if scheme in ("s3", "s3a"):
        times = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        return {"config_kwargs": times}
    if scheme in ("gs", "gcs"):
        return {"timeout": READ_TIMEOUT_S}
    return {}


def _file_name(path: str) -> str:
    """Return a name for a downloaded file, without directories."""
    name = PurePosixPath(urlsplit(path).path).name
    return name if name and not name.startswith(".") else "checkpoint"


@contextlib.contextmanager
def _errors_named(shown: str) -> Iterator[None]:
    """Turn the errors of all file systems into one with a reason, and without secrets."""
    try:
        yield
    except WeightsError:
        raise
    except ImportError as error:
        raise WeightsError(
            f"{shown} needs {error.name or 'a package'}, which is not installed: install"
            " resnet50-serving with the extra [remote]"
        ) from error
    except ValueError as error:
        # Of `checkpoint_among`, and of fsspec for a scheme that it does not know.
        raise WeightsError(f"{shown} {escaped(str(error)[:300])}") from error
    except Exception as error:  # each file system has its own
        raise WeightsError(f"{shown} cannot be downloaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return why a download failed. The texts of errors may have the address with its secrets."""
    cause: BaseException | None = error
    while cause is not None:  # fsspec says that a file is missing whatever the status was
        response = getattr(cause, "response", None)
        status = getattr(cause, "status", None) or getattr(response, "status_code", None)
        if isinstance(status, int) and status != 404:
            hint = " (is a token needed?)" if status in (401, 403) else ""
            return f"HTTP status {status}{hint}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "access was denied (is a token needed?)"
    if isinstance(error, TimeoutError):
        return f"no answer within {READ_TIMEOUT_S:g} s"
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return type(error).__name__
