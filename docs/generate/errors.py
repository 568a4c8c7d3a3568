"""The errors of calls: status codes, reasons, the SDK's exceptions, and retries."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import resnet50_server.errors
from resnet50_client import RetryPolicy, errors
from resnet50_client._retries import Attempts
from resnet50_client._status import ERRORS, REASONS
from resnet50_server.errors import ServingError

from . import sdk
from .markdown import code, escaped, link, table

# Meaning of codes beside the server's own errors.
_MORE = {
    "INTERNAL": "An unexpected error of the server: its log has the reason under the request ID.",
    "CANCELLED": "The client cancelled the call.",
    "UNKNOWN": "A proxy, or another kind of server, failed.",
    "OUT_OF_RANGE": "Never by this server.",
    "ABORTED": "Never by this server.",
    "ALREADY_EXISTS": "Never by this server.",
}


def section(part: str) -> str:
    """Return one part of the page: "codes", "reasons" or "exceptions"."""
    return {"codes": _codes, "reasons": _reasons, "exceptions": _exceptions}[part]()


def _codes() -> str:
    """Return a table of the gRPC status codes: when, the SDK's exception, and retries."""
    rows = []
    for status, kind in ERRORS.items():
        when = [_summary(one) for one in _server_errors() if one.code == status.name]
        text = " ".join([*when, *([_MORE[status.name]] if status.name in _MORE else [])])
        rows.append((code(status.name), link(kind.__name__), _retried(kind), escaped(text)))
    return table(("code", "SDK exception", "retried", "returned when"), rows)


def _server_errors() -> Iterator[type[ServingError]]:
    for value in vars(resnet50_server.errors).values():
        if inspect.isclass(value) and issubclass(value, ServingError) and value is not ServingError:
            yield value


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _retried(kind: type[errors.Resnet50Error]) -> str:
    """Return whether the SDK retries an error, by trying it: "yes", "no" or "optional"."""
    if Attempts(RetryPolicy(), 60.0).pause_s(kind("")) is not None:
        return "yes"
    overloaded = kind("", retry_after_s=0.1) if kind is errors.OverloadedError else kind("")
    if Attempts(RetryPolicy(overload_attempts=2), 60.0).pause_s(overloaded) is not None:
        return "optional"
    return "no"


def _reasons() -> str:
    """Return a table of the reasons of google.rpc.ErrorInfo that have an exception of their own."""
    rows = (
        (code(reason), link(kind.__name__), escaped(_summary(kind)))
        for reason, kind in REASONS.items()
    )
    return table(("reason", "SDK exception", "meaning"), rows)


def _exceptions() -> str:
    """Return the tree of the exceptions, and a heading for each."""
    tree = (errors.__doc__ or "").partition("\n\n")[2]
    kinds = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.Resnet50Error)
    ]
    return f"```text\n{tree.strip()}\n```\n\n{sdk.section('resnet50_client', *kinds)}"
