"""Tracebacks of errors, which keep objects in memory."""

from __future__ import annotations


def clear_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an error and of its causes.

    Their frames hold large objects: a request and its image, a batch and its tensors. gRPC and
    tasks keep errors in reference cycles, so all of that would stay in memory until the next
    garbage collection.
    """
    left: BaseException | None = error
    while left is not None and left.__traceback__ is not None:
        left.__traceback__ = None
        left = left.__cause__ or left.__context__
