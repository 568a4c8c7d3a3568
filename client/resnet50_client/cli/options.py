"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ..connection import DEFAULT_TIMEOUT_S

Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        min=0.001,
        help=f"How long one call may take, in seconds; default: {DEFAULT_TIMEOUT_S:g}.",
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        min=0.001,
        help="How long to go on without a server that answers, in seconds;"
        f" default: {DEFAULT_TIMEOUT_S:g}.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
VariantName = Annotated[
    str, typer.Option("--variant", help="Which weights answer; default: the server's choice.")
]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES...", help="Image files, folders of them, or - for one image on stdin."
    ),
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Images under way at once.")]
DEFAULT_CONCURRENCY = 16
