"""Errors of a load: their text, their log line, and the error for the client."""

from __future__ import annotations

import logging

from resnet50_server.errors import NotNow, ServingError, WeightsError
from resnet50_server.runtime.texts import shortened

log = logging.getLogger(__name__)

# Errors of a load whose message suffices without a traceback. torch raises RuntimeError and its
# subclasses, such as OutOfMemoryError; onnxruntime's errors derive from Exception alone.
EXPECTED_ERRORS = (ServingError, WeightsError, OSError, RuntimeError, MemoryError)


def error_text(error: Exception) -> str:
    """Return why a load failed, in one line."""
    ours = isinstance(error, (ServingError, WeightsError))
    return shortened(str(error) if ours else repr(error))


def log_failure(name: str, text: str, error: Exception) -> None:
    """Log why a load failed, with the traceback of an unexpected error."""
    unexpected = None if isinstance(error, EXPECTED_ERRORS) else error
    log.warning("variant %s was not loaded: %s", name, text, exc_info=unexpected)


def client_error(name: str, text: str, error: Exception) -> NotNow:
    """Return the error for the client that asked for the load."""
    if isinstance(error, NotNow):
        return NotNow(text, transient=error.transient)
    # WeightsError is about files that are wrong; other errors are about memory, disks and devices.
    transient = not isinstance(error, WeightsError) or _is_disk_error(error.__cause__)
    return NotNow(f"name: {name} cannot be loaded: {text}", transient=transient)


def _is_disk_error(error: BaseException | None) -> bool:
    """Return whether a file exists and may be read, but reading it failed."""
    lasting = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    return isinstance(error, OSError) and not isinstance(error, lasting) and bool(error.errno)
