"""LanceDB tables whose vectors a server computes: the embedding function `resnet50`.

Needs the extra `[lancedb]`. Importing this module registers the function. A table keeps it with
the name of the variant and the embedding space, and every vector that is added or searched for is
checked against that space.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from lancedb.embeddings import EmbeddingFunction, register
from numpy.typing import NDArray
from pydantic import PrivateAttr

from ._client import Client
from ._embedding_rows import DIMENSION
from .errors import EmbeddingSpaceError, InvalidImageError

__all__ = ["ImageEmbeddings"]

log = logging.getLogger(__name__)


@register("resnet50")  # type: ignore[no-untyped-call]
class ImageEmbeddings(EmbeddingFunction):
    """Computes the vectors of a table's images, and of the images that it is searched for.

    Make one with `ImageEmbeddings.create(...)`. Images are all that `Client.embed` takes; a column
    has files as bytes, or their paths. An image that is invalid has no vector, with a warning in
    the log: `on_bad_vectors` of `Table.add` says what happens to its row. Tokens and certificates
    are the SDK's, from its environment variables or its profile, and are not kept in the table.

    Attributes:
        server: Address or addresses of the server; None for those of the SDK's environment or
            profile.
        variant: Name of the variant; None for the server's default one. A table keeps its name.
        space: Name of the embedding space; None for that of the variant at the table's creation.
        l2_normalize: Whether vectors are scaled to length 1, so that `L2` and `cosine` give one
            order.
        max_retries: LanceDB's; has no effect, as the SDK retries.
    """

    server: str | list[str] | None = None
    variant: str | None = None
    space: str | None = None
    l2_normalize: bool = True
    _connection: Client | None = PrivateAttr(default=None)

    def ndims(self) -> int:
        """Return the dimension of the vectors."""
        return DIMENSION

    def safe_model_dump(self) -> dict[str, Any]:
        """Return the arguments that a table keeps: with its variant and embedding space.

        Raises:
            ValueError: The function was not made by `create`.
            Resnet50Error: The server does not answer, or does not have the variant.
        """
        kept: dict[str, Any] = super().safe_model_dump()  # type: ignore[no-untyped-call]
        if self.space is None:
            found = self._client.get_variant(self.variant)
            self.variant, self.space = found.name, found.embedding_space
        return kept | {"variant": self.variant, "space": self.space}

    def compute_source_embeddings(
        self, images: Iterable[Any], *_: Any, **__: Any
    ) -> list[NDArray[np.float32] | None]:
        """Return the vectors of a column.

        Args:
            images: Files as bytes, or their paths; None is allowed.

        Returns:
            A vector for each, float32 [2048]; None for those that are None or invalid.

        Raises:
            EmbeddingSpaceError: The variant now has other weights than those of the table.
            Resnet50Error: An image could not be computed.
        """
        listed: Any = self.sanitize_input(images)
        rows = [row for row, image in enumerate(listed) if image is not None]
        vectors: list[NDArray[np.float32] | None] = [None] * len(listed)
        if not rows:
            return vectors
        batch = self._client.embed_batch(
            [listed[row] for row in rows], variant=self.variant, l2_normalize=self.l2_normalize
        )
        self._check_space(batch.space)
        for position, row in enumerate(rows):
            if (error := batch.errors.get(position)) is None:
                vectors[row] = batch.vectors[position]
            elif isinstance(error, InvalidImageError):
                log.warning("image %d of a column has no vector: %s", row, error)
            else:
                raise error
        return vectors

    def compute_query_embeddings(
        self, query: Any, *_: Any, **__: Any
    ) -> list[NDArray[np.float32] | None]:
        """Return the vector of an image that a table is searched for, in a list.

        Args:
            query: The image.

        Raises:
            EmbeddingSpaceError: The variant now has other weights than those of the table.
            Resnet50Error: The image could not be computed.
        """
        found = self._client.embed(query, variant=self.variant, l2_normalize=self.l2_normalize)
        self._check_space(found.space)
        return [found.vector]

    def compute_source_embeddings_with_retry(
        self, images: Iterable[Any], *_: Any, **__: Any
    ) -> list[NDArray[np.float32] | None]:
        """Return what `compute_source_embeddings` does: the SDK retries what can be retried.

        Args:
            images: As there.
        """
        return self.compute_source_embeddings(images)

    def compute_query_embeddings_with_retry(
        self, query: Any, *_: Any, **__: Any
    ) -> list[NDArray[np.float32] | None]:
        """Return what `compute_query_embeddings` does: the SDK retries what can be retried.

        Args:
            query: As there.
        """
        return self.compute_query_embeddings(query)

    @property
    def _client(self) -> Client:
        if self._connection is None:
            named = {} if self.server is None else {"server": self.server}
            self._connection = Client.from_environment(**named)
        return self._connection

    def _check_space(self, space: str | None) -> None:
        """Check the space of vectors; None if there are none."""
        if None not in (self.space, space) and space != self.space:
            raise EmbeddingSpaceError(
                f"space: the vectors of this table are of {self.space}, those of the variant"
                f" {self.variant} are of {space}, and cannot be compared; serve the weights of the"
                " table, or make a new table from the images"
            )
