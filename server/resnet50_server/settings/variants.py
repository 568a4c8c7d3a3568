"""The group of variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode

from resnet50_settings.groups import Group


class Variants(Group):
    """Variants to serve, their files and their memory."""

    title = "Variants and weights"

    variants: Annotated[
        list[str],
        NoDecode,
        Field(
            description="Variant to serve: a name from torchvision, NAME=DIRECTORY or"
            " NAME=random:SEED. Repeat for several. This or --variants-file is required.",
        ),
    ] = []
    default_variant: Annotated[
        str | None,
        Field(description="Variant of requests that name none. Default: the first of --variants."),
    ] = None
    variants_file: Annotated[
        Path | None,
        Field(
            description="TOML file that declares variants, default and traffic splits, instead of"
            " --variants and --default-variant. Its changes are applied while serving:"
            " docs/reference/variants-file.md."
        ),
    ] = None
    variants_dir: Annotated[
        Path | None,
        Field(
            description="Directory of variant directories from which LoadVariant loads by name."
            " Clients need a token with the scope admin. Default: variants cannot be changed while"
            " serving."
        ),
    ] = None
    watch_variants_s: Annotated[
        float,
        Field(
            ge=0,
            le=10**6,
            description="Poll interval for --variants-dir, in seconds. New and changed directories"
            " are loaded, removed ones unloaded. 0: disabled.",
        ),
    ] = 0.0
    max_variants_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory limit for all variants together, in bytes, by the estimates that"
            " `resnet50 variants` shows. Loads beyond it are rejected. 0: no limit.",
        ),
    ] = 0
    evict_variants: Annotated[
        bool,
        Field(
            description="Evict the least recently used variants (never the default one) when"
            " --max-variants-bytes is exceeded, instead of rejecting the load."
        ),
    ] = False
    weights_dir: Annotated[
        Path | None,
        Field(description="Directory of torchvision's weight files. Default: torch.hub's."),
    ] = None
    download: Annotated[bool, Field(description="Download missing official weights.")] = True
