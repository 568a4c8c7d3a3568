"""`resnet50-server variants`: official variants and their files; import of others."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnet50_server.errors import UnusableSetting, WeightsError
from resnet50_server.variants.checkpoints import sha256, verify_official, weights_directory
from resnet50_server.variants.download import (
    fetch,
    official_of,
    official_path,
    published_digest,
)
from resnet50_server.variants.spec import (
    PublishedAccuracy,
    VariantSpec,
    official_specs,
    parse_variant,
)

from .check_variant import check
from .variants_import import import_variant

if TYPE_CHECKING:
    from rich.console import Console

variants = typer.Typer(help="List, show, check, download, verify and import variants.")
variants.command()(check)
variants.command("import")(import_variant)

WeightsDirectory = Annotated[
    Path | None,
    typer.Option("--weights-dir", help="Directory of the files. Default: torch.hub's."),
]


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """Print an error of weights or of a file, and exit with status 1."""
    try:
        yield
    except (WeightsError, UnusableSetting) as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@variants.command("list")
def list_variants(weights_dir: WeightsDirectory = None) -> None:
    """List the variants that torchvision publishes."""
    from rich import box
    from rich.table import Table

    directory = weights_directory(weights_dir)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "acc@1", "acc@5", "transform", "size", "params", "file"):
        table.add_column(heading, no_wrap=True)
    for spec in official_specs().values():
        published, official = spec.published, official_of(spec)
        assert published is not None  # torchvision publishes it for all four
        table.add_row(
            spec.name,
            f"{published.acc_at_1:.3f}",
            f"{published.acc_at_5:.3f}",
            f"{spec.transform.resize} → {spec.transform.crop}",
            f"{official.size_mb:.0f} MB",
            f"{official.parameters / 1e6:.1f} M",
            _condition(spec, directory)[0],
        )
    console = _console()
    console.print(table)
    console.print(
        f"DEFAULT is {parse_variant('DEFAULT').name}. acc: percent on ImageNet-1K, as published."
        f" transform: resize → crop, pixels. Files in {directory}",
        highlight=False,
    )


@variants.command()
def show(
    name: Annotated[str, typer.Argument(help="Official name, or NAME=DIRECTORY.")],
    weights_dir: WeightsDirectory = None,
) -> None:
    """Show one variant in full."""
    with _errors_shown():
        _show(parse_variant(name), weights_directory(weights_dir))


@variants.command()
def download(
    names: Annotated[list[str], typer.Argument(metavar="NAMES...", help="Official names.")],
    weights_dir: WeightsDirectory = None,
) -> None:
    """Download weights and check their hashes."""
    directory, console = weights_directory(weights_dir), _console()
    with _errors_shown():
        for spec in [parse_variant(name) for name in names]:
            if spec.official is None:
                raise WeightsError(f"{spec.name} is not torchvision's: nothing to download")
            path = official_path(spec, directory)
            if not path.exists():
                fetch(spec, directory)
            verify_official(spec, path)
            console.print(f"{spec.name}: {path}", highlight=False)


@variants.command("check-file")
def check_file(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File for serve --variants-file.")],
) -> None:
    """Check a variants file and the descriptions of its variants; weights are not read."""
    from resnet50_server.rollout.variants_file import parse_variants_file, read_variants_file

    with _errors_shown():
        declared = parse_variants_file(path, read_variants_file(path))
    console = _console()
    console.print(f"revision {declared.revision}", highlight=False)
    for spec in declared.specs:
        default = " (default)" if spec.name == declared.default else ""
        console.print(f"variant {spec.argument}{default}", highlight=False)
    for split in declared.splits:
        console.print(
            f"split {split.variant} → {split.candidate}: canary {split.canary_percent:g}%, shadow"
            f" {split.shadow_percent:g}%",
            highlight=False,
        )


@variants.command()
def verify(weights_dir: WeightsDirectory = None) -> None:
    """Check the hashes of the downloaded files."""
    directory, console = weights_directory(weights_dir), _console()
    wrong = 0
    for spec in official_specs().values():
        condition, digest = _condition(spec, directory)
        wrong += condition not in ("verified", "missing")
        shown = f"{spec.name}: {condition}: {official_path(spec, directory)}"
        console.print(f"{shown} sha256 {digest}" if digest else shown, highlight=False)
    if wrong:
        raise typer.Exit(1)


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True, markup=False, emoji=False)


def _condition(spec: VariantSpec, directory: Path) -> tuple[str, str]:
    """Return the state of a variant's file, and its SHA-256; "" if it cannot be read.

    The state is "missing", "verified", "BAD HASH", or "UNREADABLE" with the reason.
    """
    path = official_path(spec, directory)
    try:
        digest = sha256(path)
    except FileNotFoundError:
        return "missing", ""
    except OSError as error:
        return f"UNREADABLE: {error.strerror or error}", ""
    return ("verified" if digest.startswith(published_digest(spec)) else "BAD HASH"), digest


def _accuracy(published: PublishedAccuracy) -> str:
    second = "" if published.acc_at_5 is None else f", acc@5 {published.acc_at_5:g}"
    return f"{published.dataset}: acc@1 {published.acc_at_1:g}{second}"


def _show(spec: VariantSpec, directory: Path) -> None:
    console = _console()
    categories = spec.categories
    more = ", …" if len(categories) > 3 else ""
    rows = {
        "name": ", ".join((spec.name, *spec.aliases)),
        "description": spec.description,
        "categories": f"{len(categories)}: {', '.join(categories[:3])}{more}",
        "transform": str(spec.transform),
        "published": _accuracy(spec.published) if spec.published else "nothing",
    }
    if spec.official is not None:
        rows["url"] = spec.official.url
        rows["file"] = str(official_path(spec, directory))
        rows["condition"], _ = _condition(spec, directory)
        rows["parameters"] = f"{spec.official.parameters:,}"
    for key, value in rows.items():
        console.print(f"{key:12} {value}", highlight=False, markup=False)
