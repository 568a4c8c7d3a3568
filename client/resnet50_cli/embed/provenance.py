"""Provenance of embeddings: the weights and options that computed them, stored with vectors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from resnet50_client.types import Embedding, Variant

DTYPE = "float32"
# Known only once the weights are loaded.
_OF_WEIGHTS = frozenset({"digest", "space", "dimension"})
_KINDS: dict[str, type] = {"str": str, "int": int, "bool": bool}


@dataclass(frozen=True)
class Provenance:
    """Origin of vectors; only vectors of the same provenance belong into one index.

    Attributes:
        variant: Name of the variant.
        digest: SHA-256 of its weights, 64 hex digits; "" while they are being loaded.
        space: Name of the embedding space; see `Embedding.space`.
        dimension: Length of the vectors.
        l2_normalized: True if the vectors are scaled to length 1.
        background: Colour behind transparent pixels; "" for the variant's.
        dtype: Type of the values.
    """

    variant: str
    digest: str
    space: str
    dimension: int
    l2_normalized: bool
    background: str = ""
    dtype: str = DTYPE

    @classmethod
    def of_embedding(cls, embedding: Embedding, background: str) -> Provenance:
        """Return the provenance of an embedding."""
        ref = embedding.variant
        return cls(
            *(ref.name, ref.digest, embedding.space, len(embedding), embedding.l2_normalized),
            background=background,
        )

    @classmethod
    def of_variant(cls, variant: Variant, l2_normalized: bool, background: str) -> Provenance:
        """Return the provenance of the embeddings that a variant would compute."""
        return cls(
            variant.name,
            variant.digest or "",
            variant.embedding_space,
            variant.embedding_dimension,
            l2_normalized=l2_normalized,
            background=background,
        )

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Provenance:
        """Return the provenance with attributes read from a file.

        Raises:
            ValueError: An attribute is missing, unknown or of another type.
        """
        kinds = {one.name: _KINDS[str(one.type)] for one in fields(cls)}
        if values.keys() != kinds.keys():
            raise ValueError(f"the provenance of the vectors must have {', '.join(kinds)}")
        for name, kind in kinds.items():
            if type(values[name]) is not kind:
                raise ValueError(
                    f"the provenance of the vectors is wrong: {name} is {values[name]!r}, must be"
                    f" {kind.__name__}"
                )
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """Return the provenance that `to_json` wrote.

        Raises:
            ValueError: The text is no provenance.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the provenance of the vectors is unreadable: {error}") from error
        return cls.from_values(values if isinstance(values, dict) else {})

    def to_json(self) -> str:
        """Return a JSON object with the attributes."""
        return json.dumps(asdict(self))

    def check(self, other: Provenance, file: object, remedy: str) -> None:
        """Check that a run's vectors can be added to those of a file.

        Args:
            other: Provenance of the run's vectors, as far as it is known.
            file: File with vectors of this provenance, for the message.
            remedy: Instruction for the user.

        Raises:
            ValueError: They are of another provenance.
        """
        loaded = self.digest and other.digest
        differences = [
            f"{one.name} is {getattr(self, one.name)!r} there, {getattr(other, one.name)!r} now"
            for one in fields(self)
            if getattr(self, one.name) != getattr(other, one.name)
            and (loaded or one.name not in _OF_WEIGHTS)
        ]
        if differences:
            raise ValueError(
                f"{file} contains vectors of {self.space}, which those of this run do not match"
                f" ({'; '.join(differences)}): {remedy}"
            )
