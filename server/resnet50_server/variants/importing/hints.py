"""Hints of the server at checkpoints that it refuses: an import reads them, or why none does."""

from __future__ import annotations

from pathlib import Path

from .candidates import Choice
from .recognition import recognise

COMMAND = "resnet50-server variants import"


def import_hint(checkpoint: object, source: Path | None) -> str:
    """Return what to do about a checkpoint whose tensors are not ResNet50's.

    Args:
        checkpoint: The object in the file.
        source: The variant's directory; None if there is none.
    """
    try:
        changes = recognise(checkpoint, Choice()).changes
    except ValueError as error:
        return f"the file {error}"
    done = f" ({'; '.join(changes[:3])})" if changes else ""
    return f"`{COMMAND} {source or 'FILE'} NEW_DIRECTORY` makes a variant of it{done}"
