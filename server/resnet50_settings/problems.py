"""Problems that pydantic finds in settings and files, as text for people."""

from __future__ import annotations

from pydantic_core import ErrorDetails


def reason_of(problem: ErrorDetails) -> str:
    """Return the reason of a problem, in the words of our own checks where one of them raised."""
    return str(problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"])


def line_of(problem: ErrorDetails) -> str:
    """Return a line with the path of the field and the reason."""
    return "".join(f"{part}: " for part in problem["loc"]) + reason_of(problem)
