"""Variants and answers for tests of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resnet50_client.types import (
    Category,
    Classification,
    PublishedAccuracy,
    Timing,
    Transform,
    Variant,
    VariantRef,
)
from tests.support.pictures import encode, photo_like

PNG = encode(photo_like(16, 16))


def variant(
    categories: Sequence[str],
    name: str = "pets",
    published: PublishedAccuracy | None = None,
    trained: bool = True,
) -> Variant:
    return Variant(
        name=name,
        aliases=(),
        state="ready",
        server_default=True,
        trained=trained,
        digest="ab" * 32,
        parameter_count=23_528_522,
        embedding_dimension=2048,
        embedding_space="pets@abababababab",
        category_count=len(categories),
        categories=tuple(categories),
        transform=Transform(232, 224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear"),
        published_accuracy=published,
        precision="fp32",
        device="cpu",
        engine="torch",
        description="",
        quantization=None,
        latency=None,
        loading=None,
        last_failure="",
        memory_bytes=0,
        requests=0,
    )


def classification(*indices: int, digest: str = "ab" * 32) -> Classification:
    """Return an answer with these categories, most probable first."""
    categories = tuple(
        Category(index, f"name {index}", 0.5 / (rank + 1)) for rank, index in enumerate(indices)
    )
    return Classification(categories, None, VariantRef("pets", digest), Timing(0, 0, 0, 0, 1))


def image_folder(folder: Path, **counts: int) -> Path:
    """Write a folder of images for each name; return the folder of folders."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(PNG)
    return folder
