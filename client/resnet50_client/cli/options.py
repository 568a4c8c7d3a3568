"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ..arguments import check_background
from ..connection import DEFAULT_TIMEOUT_S
from ..errors import InvalidRequestError

Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        min=0.001,
        help=f"Timeout of one call in seconds. Default: {DEFAULT_TIMEOUT_S:g}.",
    ),
]
StreamTimeout = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        min=0.001,
        help="Give up after this many seconds without a reachable server."
        f" Default: {DEFAULT_TIMEOUT_S:g}.",
    ),
]
SourceTimeout = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        min=0.001,
        help="Give up after this many seconds without a reachable server (default:"
        f" {DEFAULT_TIMEOUT_S:g}). A network source that sends nothing for so long has failed"
        " (default: 10).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
VariantName = Annotated[
    str, typer.Option("--variant", help="Name of the variant. Default: the server's default.")
]


def _checked_background(value: str | None) -> str | None:
    """Return a valid background.

    Raises:
        typer.BadParameter: It is none.
    """
    try:
        check_background(value)
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error).removeprefix("background: ")) from error
    return value


Background = Annotated[
    str | None,
    typer.Option(
        "--background",
        callback=_checked_background,
        metavar="white|black|#rrggbb|none",
        help="Background of transparent pixels; none drops alpha. Default: the variant's.",
    ),
]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES...", help="Image files, folders of images, or - for one image on stdin."
    ),
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Maximum images in flight.")]
DEFAULT_CONCURRENCY = 16
