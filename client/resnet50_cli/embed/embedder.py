"""Embedders of the command: servers, or this machine without a server."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol, cast

from resnet50_bulk.checkpoint import ImageResult
from resnet50_bulk.provenance import Provenance
from resnet50_bulk.run import Images, Outcome, Unanswered
from resnet50_client import Client
from resnet50_client.types import Embedding, Variant

from ..extras import exit_missing
from ..images import MAX_UNANSWERED, KeyedImages, is_unanswered, warn_of_result
from ..output import error_text

SERVER = "resnet50_server"


class Embedder(Protocol):
    """Computes embeddings of one provenance.

    Attributes:
        provenance: Provenance of the vectors, as far as it is known.
    """

    provenance: Provenance

    def __call__(self, images: Images) -> Generator[tuple[str, Outcome], None, None]:
        """Compute images; see `RunCall`."""


class ServerEmbedder:
    """Sends images to servers.

    Args:
        client: Connected to the servers.
        variant: Name of the variant; None for the servers' default.
        l2_normalize: Scale vectors to length 1.
        background: Background of transparent pixels; None for the variant's.
        concurrency: Maximum images in flight; None for as many as the servers keep up with.

    Raises:
        Resnet50Error: No server is reachable, or none has the variant.
    """

    def __init__(
        self,
        client: Client,
        variant: str | None,
        l2_normalize: bool,
        background: str | None,
        concurrency: int | None,
    ) -> None:
        self._client = client
        self._options: dict[str, Any] = {
            "variant": variant,
            "l2_normalize": l2_normalize,
            "background": background,
            "max_in_flight": concurrency,
        }
        found = client.get_variant(variant)
        self.provenance = provenance_of_variant(found, l2_normalize, background or "")

    def __call__(self, images: Images) -> Generator[tuple[str, Outcome], None, None]:
        """See `Embedder`; ends after `MAX_UNANSWERED` images in a row without an answer."""
        in_a_row = 0
        with closing(
            self._client.embed_many(
                cast("KeyedImages", images),
                keyed=True,
                ordered=False,
                return_exceptions=True,
                **self._options,
            )
        ) as outcomes:
            for name, outcome in outcomes:
                if isinstance(outcome, Exception) and is_unanswered(outcome):
                    yield name, Unanswered(error_text(outcome))
                    in_a_row += 1
                    if in_a_row == MAX_UNANSWERED:
                        return
                    continue
                in_a_row = 0
                if isinstance(outcome, Exception):
                    yield name, outcome
                    continue
                warn_of_result(name, outcome)
                yield name, ImageResult(outcome.vector, self._provenance_of(outcome))

    def _provenance_of(self, embedding: Embedding) -> Provenance:
        known = self.provenance
        return provenance_of_embedding(embedding, known.background, known.transform)


def provenance_of_embedding(
    embedding: Embedding, background: str = "", transform: str = ""
) -> Provenance:
    """Return the provenance of an embedding."""
    ref = embedding.variant
    return Provenance(
        *(ref.name, ref.digest, embedding.space, len(embedding), embedding.l2_normalized),
        background=background,
        transform=transform,
    )


def provenance_of_variant(variant: Variant, l2_normalized: bool, background: str) -> Provenance:
    """Return the provenance of the embeddings that a variant would compute."""
    return Provenance(
        variant.name,
        variant.digest or "",
        variant.embedding_space,
        variant.embedding_dimension,
        l2_normalized=l2_normalized,
        background=background,
        transform=variant.transform.digest or "",
    )


@contextmanager
def local_embedder(
    variant: str | None, l2_normalize: bool, background: str | None, ray: dict[str, Any] | None
) -> Iterator[Embedder]:
    """Open an embedder on this machine, or on a Ray cluster.

    The server is looked up by name, because no module of the client imports it.

    Args:
        variant: As --variants of `resnet50-server serve`; None for its first one.
        l2_normalize: Scale vectors to length 1.
        background: Background of transparent pixels; None for the variant's.
        ray: Attributes of `RayWorkers`; None for this machine.

    Raises:
        typer.Exit: The server is not installed.
        ValueError: A setting is wrong.
        OSError: The variant cannot be loaded, or the device is lost.
    """
    try:
        offline = importlib.import_module(f"{SERVER}.offline")
    except ModuleNotFoundError as error:
        exit_missing("embed --local", "offline", (error.name or "").partition(".")[0])
    workers = None if ray is None else offline.RayWorkers(**ray)
    try:
        with closing(
            offline.open_embedder(
                variant, l2_normalize=l2_normalize, background=background, workers=workers
            )
        ) as embedder:
            yield embedder
    except offline.WorkerFailed as error:
        raise OSError(str(error)) from error
