"""`resnet50-server variants import`: convert a checkpoint of training code to a variant."""

from __future__ import annotations

import enum
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet50_server.errors import WeightsError
from resnet50_server.variants.official import official_facts
from resnet50_server.variants.spec import official_specs, strip_enum_prefix
from resnet50_server.variants.transform_file import transform_json
from resnet50_server.variants.transform_text import parse_transform_text


class _Activation(enum.Enum):
    """Values of --activation; typer takes no Literal before 0.19."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


def import_variant(
    source: Annotated[
        str,
        typer.Argument(
            help="The checkpoint (.pth, .pt, .ckpt, .safetensors) or its directory; or its address"
            " (https://, s3://, gs://, hf://OWNER/NAME), with the extra [remote]."
        ),
    ],
    directory: Annotated[Path, typer.Argument(help="Directory of the variant to be written.")],
    categories: Annotated[
        Path | None,
        typer.Option(
            help="Names of the categories: a text file with one name per line, a JSON file, or"
            " the directory of training images (ImageFolder). Default: from the checkpoint."
        ),
    ] = None,
    transform: Annotated[
        str,
        typer.Option(
            help="Preprocessing of the evaluation in training: V1 (256 → 224), V2 (232 → 224), or"
            " the text of a torchvision preset or Compose."
        ),
    ] = "",
    key: Annotated[
        str,
        typer.Option(help="Name of the network, if the checkpoint has several."),
    ] = "",
    ema: Annotated[
        bool, typer.Option("--ema", help="Use the averaged weights (EMA) of the checkpoint.")
    ] = False,
    no_head: Annotated[
        bool,
        typer.Option(
            "--no-head", help="Omit the classification head: the variant computes embeddings only."
        ),
    ] = False,
    activation: Annotated[
        _Activation | None,
        typer.Option(help="sigmoid: several labels per image. Default: softmax."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="With sigmoid: least probability of a category in a response."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="Description for clients.")] = "",
    sha256: Annotated[
        str | None,
        typer.Option(help="Digest of the file, 64 hex digits; a different file is rejected."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the variant in the directory.")
    ] = False,
) -> None:
    """Convert a checkpoint of training code to a variant.

    Recognises the wrappers, prefixes and names of common trainers and libraries, and prints each
    change. Never runs code from the file.
    """
    try:
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise WeightsError(f"sha256: {sha256!r} is not 64 hex digits")
        chosen = _transform(transform) if transform else None
        # Not at the top: torch takes seconds.
        from resnet50_server.variants.importing.candidates import Choice
        from resnet50_server.variants.importing.importer import ImportOptions, import_checkpoint

        options = ImportOptions(
            choice=Choice(key, ema, not no_head),
            categories=categories,
            transform=chosen,
            activation=activation.value if activation else None,
            threshold=threshold,
            description=description,
            replace=replace,
            sha256=sha256.lower() if sha256 else None,
        )
        for line in import_checkpoint(source, directory, options):
            print(line, flush=True)
    except WeightsError as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _transform(text: str) -> dict[str, Any]:
    """Return the `transform` of a variant.json."""
    name = strip_enum_prefix(text)
    for official, spec in official_specs().items():
        if name in (official, official.rpartition("_")[2]) and not spec.quantized:
            return dict(official_facts()["variants"][official]["transform"])
    if "(" in text:
        return transform_json(parse_transform_text(text))
    raise WeightsError(f"transform: {text!r} is not one of V1, V2, nor the text of a transform")
