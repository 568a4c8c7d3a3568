"""How far a variant is that is being loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Stage: TypeAlias = Literal["waiting", "reading", "evicting", "building", "warming_up", "verifying"]


@dataclass
class Loading:
    """A variant on its way in.

    Attributes:
        stage: What goes on; see `LoadingStage` in the contract.
        started: When it began, on the clock of `time.monotonic`.
    """

    stage: Stage = "waiting"
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """For how long it has been on its way, in seconds."""
        return time.monotonic() - self.started
