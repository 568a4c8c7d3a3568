"""Command line of a module with several measurements, of which some can be named."""

from __future__ import annotations

import argparse
from collections.abc import Iterable


def parser_of(
    document: str | None, measures: Iterable[str], default: str = "all"
) -> argparse.ArgumentParser:
    """Return a parser whose argument `what` is a list of measurements, empty by default.

    Args:
        document: The module's docstring; its first line is the description.
        measures: Names of the measurements.
        default: The measurements that run if none is named, for the help.
    """
    parser = argparse.ArgumentParser(description=(document or "").splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[*measures, []], help=f"default: {default}")
    return parser
