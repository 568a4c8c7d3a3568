"""Uses of preprocessing as in applications: checked by mypy and pyright, never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from resnet50_client import (
    AsyncClient,
    Classification,
    Client,
    ImageInput,
    PreprocessedImage,
    TransformMismatchError,
)
from resnet50_client.preprocess import Preprocessor


def preprocess(client: Client, path: Path) -> None:
    preprocessor = client.preprocessor("IMAGENET1K_V2", background="white", timeout_s=5)
    assert_type(preprocessor, Preprocessor)
    image = preprocessor(path)
    assert_type(image, PreprocessedImage)
    assert_type(image.pixels, NDArray[np.uint8])
    assert_type(image.transform_digest, str)
    try:
        assert_type(client.classify(image), Classification)
    except TransformMismatchError as error:
        assert_type(error.code, str | None)


def frame(preprocessor: Preprocessor, pixels: NDArray[np.uint8]) -> ImageInput:
    return preprocessor(pixels, pixel_format="BGR")


async def preprocess_async(client: AsyncClient, paths: list[str]) -> None:
    preprocessor = await client.preprocessor()
    assert_type(preprocessor, Preprocessor)
    await client.embed(preprocessor(paths[0]))
    Preprocessor(await client.get_variant(), background=None)
