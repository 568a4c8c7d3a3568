"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from resnet50_client._arguments import check_background
from resnet50_client._config import DEFAULT_TIMEOUT_S
from resnet50_client.errors import InvalidRequestError

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
    str | None,
    typer.Option(
        "--variant", help="Name of the variant. Default: the profile's, or the server's default."
    ),
]


def _checked_background(value: str | None) -> str | None:
    """Return a valid background.

    Raises:
        typer.BadParameter: It is no background.
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
    list[str] | None,
    typer.Argument(
        metavar="FILES...",
        help="Image files, folders of images, or - for one image on stdin. In folders, files are"
        " images by their suffix or their first bytes, links are followed once, and hidden files"
        " are left out.",
    ),
]
FilesFrom = Annotated[
    str | None,
    typer.Option(
        "--files-from",
        metavar="FILE",
        help="File with further names of files and folders, one per line; - for stdin.",
    ),
]
Null = Annotated[
    bool,
    typer.Option("--null", "-0", help="Names of --files-from end with NUL bytes (find -print0)."),
]


class Delivery(str, Enum):
    """Delivery modes of streams."""

    ordered = "ordered"
    latest = "latest"


Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Maximum images in flight.")]
DEFAULT_CONCURRENCY = 16
BulkConcurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        min=1,
        show_default=False,
        help="Maximum images in flight. Default: as many as the servers keep up with.",
    ),
]


def check_output(out: Path | None, option: str, suffix: str) -> None:
    """Refuse an output file that could not be written, before anything is computed.

    Args:
        out: The file; None if none was asked for.
        option: The option that names it.
        suffix: Its required suffix, e.g. ".html".

    Raises:
        typer.BadParameter: It has another suffix, or its folder does not exist.
    """
    if out is None:
        return
    if out.suffix.lower() != suffix:
        raise typer.BadParameter(f"{out} does not end in {suffix}", param_hint=option)
    if not out.parent.is_dir():
        raise typer.BadParameter(f"folder {out.parent} does not exist", param_hint=option)
