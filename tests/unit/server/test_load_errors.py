"""Errors of a load, for the client that asked for it."""

from __future__ import annotations

import errno

import pytest

from resnet50_server.errors import NotNow, WeightsError
from resnet50_server.lifecycle.load_errors import client_error


def caused_by(cause: OSError) -> WeightsError:
    error = WeightsError("weights.pth cannot be read")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (WeightsError("weights.pth has other shapes"), False),
        (caused_by(OSError(errno.EIO, "Input/output error")), True),
        (caused_by(FileNotFoundError(errno.ENOENT, "No such file")), False),
        (caused_by(PermissionError(errno.EACCES, "Permission denied")), False),
        (RuntimeError("CUDA out of memory"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (NotNow("max_variants_bytes: too little"), True),
        (NotNow("name: is taken", transient=False), False),
    ],
    ids=repr,
)
def test_load_that_may_succeed_later_is_told_apart(error, transient):
    refused = client_error("x", "why", error)
    assert refused.transient == transient
    assert "why" in str(refused)
