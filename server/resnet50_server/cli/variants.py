"""`resnet50-server variants`: what torchvision publishes, and what of it is here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from resnet50_server.errors import WeightsError
from resnet50_server.variants.checkpoints import (
    fetch,
    official_path,
    published_hash,
    sha256,
    verify_official,
    weights_directory,
)
from resnet50_server.variants.spec import VariantSpec, official_specs, parse_variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands on `parser`."""
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (
        ("list", "the variants that torchvision publishes"),
        ("show", "one variant in full"),
        ("download", "fetch weights, with their hash checked"),
        ("verify", "check the hashes of the files that are here"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument(
            "--weights-dir", type=Path, help="where the files lie; default: torch.hub's folder"
        )
        if name == "show":
            action.add_argument("name", metavar="NAME")
        if name == "download":
            action.add_argument("names", metavar="NAME", nargs="+")


def run(options: argparse.Namespace) -> int:
    """Carry out what the command line asked for; return the exit status."""
    directory = weights_directory(options.weights_dir)
    console = Console(soft_wrap=True, markup=False, emoji=False)
    try:
        if options.action == "list":
            return _list(directory, console)
        if options.action == "show":
            return _show(parse_variant(options.name), directory, console)
        if options.action == "verify":
            return _verify(directory, console)
        for spec in [parse_variant(name) for name in options.names]:
            if spec.official is None:
                raise WeightsError(f"{spec.name} is not torchvision's: nothing to download")
            path = official_path(spec, directory)
            if not path.exists():
                fetch(spec, directory)
            verify_official(spec, path)
            console.print(f"{spec.name}: {path}", highlight=False)
        return 0
    except WeightsError as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
        return 1


def _condition(spec: VariantSpec, directory: Path) -> str:
    """Say whether the variant's file is here, and is what was published."""
    path = official_path(spec, directory)
    try:
        digest = sha256(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"UNREADABLE: {error.strerror or error}"
    return "verified" if digest.startswith(published_hash(spec)) else "BAD HASH"


def _list(directory: Path, console: Console) -> int:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "acc@1", "acc@5", "transform", "size", "params", "file"):
        table.add_column(heading, no_wrap=True)
    for spec in official_specs().values():
        published, meta = spec.published, spec.official.meta
        assert published is not None  # torchvision publishes it for all four
        table.add_row(
            spec.name,
            f"{published.acc_at_1:.3f}",
            f"{published.acc_at_5:.3f}",
            f"{spec.transform.resize} → {spec.transform.crop}",
            f"{meta['_file_size']:.0f} MB",
            f"{meta['num_params'] / 1e6:.1f} M",
            _condition(spec, directory),
        )
    console.print(table)
    console.print(
        f"DEFAULT is {parse_variant('DEFAULT').name}. acc: percent on ImageNet-1K, as published."
        f" transform: resize → crop, pixels. Files in {directory}",
        highlight=False,
    )
    return 0


def _show(spec: VariantSpec, directory: Path, console: Console) -> int:
    categories = spec.categories
    more = ", …" if len(categories) > 3 else ""
    rows = {
        "name": ", ".join((spec.name, *spec.aliases)),
        "description": spec.description,
        "categories": f"{len(categories)}: {', '.join(categories[:3])}{more}",
        "transform": str(spec.transform),
        "published": str(spec.published) if spec.published else "nothing",
    }
    if spec.official is not None:
        rows["url"] = spec.official.url
        rows["file"] = str(official_path(spec, directory))
        rows["condition"] = _condition(spec, directory)
        rows["parameters"] = f"{spec.official.meta['num_params']:,}"
    for key, value in rows.items():
        console.print(f"{key:12} {value}", highlight=False, markup=False)
    return 0


def _verify(directory: Path, console: Console) -> int:
    wrong = 0
    for spec in official_specs().values():
        condition = _condition(spec, directory)
        wrong += condition not in ("verified", "missing")
        path = official_path(spec, directory)
        digest = f" sha256 {sha256(path)}" if condition in ("verified", "BAD HASH") else ""
        console.print(f"{spec.name}: {condition}: {path}{digest}", highlight=False)
    return 1 if wrong else 0
