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
from resnet50_server.variants.spec import Definition, define, official_definitions


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
            return _show(define(options.name), directory, console)
        if options.action == "verify":
            return _verify(directory, console)
        for definition in [define(name) for name in options.names]:
            if definition.official is None:
                raise WeightsError(f"{definition.name} is not torchvision's: nothing to download")
            path = official_path(definition, directory)
            if not path.exists():
                fetch(definition, directory)
            verify_official(definition, path)
            console.print(f"{definition.name}: {path}", highlight=False)
        return 0
    except WeightsError as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
        return 1


def _condition(definition: Definition, directory: Path) -> str:
    """Say whether the variant's file is here, and is what was published."""
    path = official_path(definition, directory)
    try:
        digest = sha256(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"UNREADABLE: {error.strerror or error}"
    return "verified" if digest.startswith(published_hash(definition)) else "BAD HASH"


def _list(directory: Path, console: Console) -> int:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "acc@1", "acc@5", "transform", "size", "params", "file"):
        table.add_column(heading, no_wrap=True)
    for definition in official_definitions().values():
        published, meta = definition.published, definition.official.meta
        assert published is not None  # torchvision publishes it for all four
        table.add_row(
            definition.name,
            f"{published.acc_at_1:.3f}",
            f"{published.acc_at_5:.3f}",
            f"{definition.transform.resize} → {definition.transform.crop}",
            f"{meta['_file_size']:.0f} MB",
            f"{meta['num_params'] / 1e6:.1f} M",
            _condition(definition, directory),
        )
    console.print(table)
    console.print(
        f"DEFAULT is {define('DEFAULT').name}. acc: percent on ImageNet-1K, as published."
        f" transform: resize → crop, pixels. Files in {directory}",
        highlight=False,
    )
    return 0


def _show(definition: Definition, directory: Path, console: Console) -> int:
    categories = definition.categories
    more = ", …" if len(categories) > 3 else ""
    rows = {
        "name": ", ".join((definition.name, *definition.aliases)),
        "description": definition.description,
        "categories": f"{len(categories)}: {', '.join(categories[:3])}{more}",
        "transform": str(definition.transform),
        "published": str(definition.published) if definition.published else "nothing",
    }
    if definition.official is not None:
        rows["url"] = definition.official.url
        rows["file"] = str(official_path(definition, directory))
        rows["condition"] = _condition(definition, directory)
        rows["parameters"] = f"{definition.official.meta['num_params']:,}"
    for key, value in rows.items():
        console.print(f"{key:12} {value}", highlight=False, markup=False)
    return 0


def _verify(directory: Path, console: Console) -> int:
    wrong = 0
    for definition in official_definitions().values():
        condition = _condition(definition, directory)
        wrong += condition not in ("verified", "missing")
        path = official_path(definition, directory)
        digest = f" sha256 {sha256(path)}" if condition in ("verified", "BAD HASH") else ""
        console.print(f"{definition.name}: {condition}: {path}{digest}", highlight=False)
    return 1 if wrong else 0
