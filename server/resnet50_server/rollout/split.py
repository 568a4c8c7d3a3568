"""Traffic splits: settings, selection of canary callers. No I/O, no event loop."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from resnet50_server.errors import InvalidRequest
from resnet50_server.variants.spec import VariantSpec

# Shares of callers come in steps of 0.01%.
STEPS = 10_000


@dataclass(frozen=True)
class Split:
    """How requests for a variant are used to judge another one.

    Attributes:
        variant: The name of the one that is asked for.
        candidate: The name of the one that is judged.
        canary_percent: Share of callers that the candidate answers, 0 to 100 in steps of 0.01.
        shadow_percent: Share of the variant's images that the candidate computes as well, 0 to 100.
        canary_embeddings: Whether the candidate answers them also where they ask for embeddings.

    Raises:
        InvalidRequest: These are no shares, or both are 0.
    """

    variant: str
    candidate: str
    canary_percent: float = 0.0
    shadow_percent: float = 0.0
    canary_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.variant == self.candidate:
            raise InvalidRequest(
                "split.candidate", f"is {self.candidate}, as the variant; name another one"
            )
        for name in ("canary_percent", "shadow_percent"):
            percent = getattr(self, name)
            if not 0.0 <= percent <= 100.0:  # NaN neither
                raise InvalidRequest(f"split.{name}", f"is {percent:g}, must be 0 to 100")
        steps = self.canary_percent * STEPS / 100
        if abs(steps - round(steps)) > 1e-6:
            raise InvalidRequest(
                "split.canary_percent", f"is {self.canary_percent:g}, must be in steps of 0.01"
            )
        if not self.canary_percent and not self.shadow_percent:
            raise InvalidRequest(
                "split.shadow_percent",
                "is 0, as canary_percent is: nothing would be compared; set one of them, or delete"
                " the split",
            )

    def is_canary(self, key: str) -> bool:
        """Return whether the candidate answers a caller: always the same, on every server.

        A caller's place in line depends on its key and the two names only, so that another split
        picks other callers first, and a larger share adds callers to those of a smaller one.

        Args:
            key: Key of the caller.
        """
        drawn = hashlib.sha256("\n".join((self.variant, self.candidate, key)).encode()).digest()
        place = int.from_bytes(drawn[:8], "big") * STEPS >> 64
        return place < round(self.canary_percent * STEPS / 100)


def obstacle(split: Split, variant: VariantSpec, candidate: VariantSpec) -> tuple[str, str] | None:
    """Return why two variants cannot have a split: the field, and the reason; None if they can."""
    for field_name, one in (("variant", variant), ("candidate", candidate)):
        if not one.categories:
            return (
                field_name,
                f"{one.name} has no classification head, and a split compares categories: choose"
                " variants that have one",
            )
    if split.canary_percent and (difference := category_difference(variant, candidate)):
        return (
            "canary_percent",
            f"{difference}; its answers would mean something else to callers who asked for the"
            " variant: compare such weights with shadow_percent only",
        )
    return None


def category_difference(variant: VariantSpec, candidate: VariantSpec) -> str | None:
    """Say how the categories of two variants differ; None if they are the same, in one order."""
    ours, theirs = variant.categories, candidate.categories
    names = f"{candidate.name} has other categories than {variant.name}"
    if len(ours) != len(theirs):
        return f"{names}: {len(theirs)} instead of {len(ours)}"
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            return f"{names}: number {index} is {other[:64]!r} instead of {one[:64]!r}"
    return None
