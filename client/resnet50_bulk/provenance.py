"""Provenance of results: the weights and options that computed them, stored with the results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

DTYPE = "float32"
CATEGORIES = "categories"
# Types of the values in memory and in checkpoints, by `Provenance.dtype`.
_ROW_DTYPES = {
    DTYPE: np.dtype("<f4"),
    CATEGORIES: np.dtype([("index", "<i4"), ("probability", "<f4")]),
}
# Known only once the weights are loaded.
_OF_WEIGHTS = frozenset({"digest", "space", "dimension"})
# Of outputs of earlier versions.
_ADDED_LATER = {"transform": ""}
_KINDS: dict[str, type] = {"str": str, "int": int, "bool": bool}


@dataclass(frozen=True)
class Provenance:
    """Origin of vectors; only vectors of the same provenance belong into one index.

    Attributes:
        variant: Name of the variant.
        digest: SHA-256 of its weights, 64 hex digits; "" while they are being loaded.
        space: Name of the embedding space; see `Embedding.space`.
        dimension: Length of the vectors; of classifications, the number of categories per image.
        l2_normalized: True if the vectors are scaled to length 1.
        background: Colour behind transparent pixels; "" for the variant's.
        dtype: "float32" for embeddings, "categories" for classifications.
        transform: SHA-256 of the transform's steps up to the crop, 64 hex digits; "" in outputs of
            earlier versions.
    """

    variant: str
    digest: str
    space: str
    dimension: int
    l2_normalized: bool
    background: str = ""
    dtype: str = DTYPE
    transform: str = ""

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Type of the values; of categories, a record of `index` and `probability`."""
        return _ROW_DTYPES[self.dtype]

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Provenance:
        """Return the provenance with attributes read from a file.

        Raises:
            ValueError: An attribute is missing, unknown or of another type.
        """
        kinds = {one.name: _KINDS[str(one.type)] for one in fields(cls)}
        values = _ADDED_LATER | values
        if values.keys() != kinds.keys():
            raise ValueError(f"the provenance of the vectors must have {', '.join(kinds)}")
        for name, kind in kinds.items():
            if type(values[name]) is not kind:
                raise ValueError(
                    f"the provenance of the vectors is wrong: {name} is {values[name]!r}, must be"
                    f" {kind.__name__}"
                )
        if values["dtype"] not in _ROW_DTYPES:
            raise ValueError(
                f"the provenance of the vectors is wrong: dtype is {values['dtype']!r}, must be"
                f" {' or '.join(_ROW_DTYPES)}"
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
            and (one.name != "transform" or (self.transform and other.transform))
        ]
        if differences:
            raise ValueError(
                f"{file} contains vectors of {self.space}, which those of this run do not match"
                f" ({'; '.join(differences)}): {remedy}"
            )
