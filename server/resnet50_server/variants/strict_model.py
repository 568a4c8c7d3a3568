"""The base of the objects in a `variant.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from resnet50_server.runtime.texts import escaped, listed


class StrictModel(BaseModel):
    """An object in a JSON file that may have known keys only."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        # One error for all of them, where pydantic would report each.
        if isinstance(content, dict):
            unknown = [f"'{escaped(key[:64])}'" for key in content if key not in cls.model_fields]
            if unknown:
                raise ValueError(f"has {listed(unknown)}; known are {', '.join(cls.model_fields)}")
        return content
