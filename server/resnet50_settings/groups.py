"""Groups of settings, which are headings in the help and in the reference."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel
from pydantic_settings import BaseSettings


class Group(BaseModel):
    """Settings that belong together; a class of settings inherits from its groups.

    Attributes:
        title: Heading in the help and in the reference.
    """

    title: ClassVar[str]


def groups_of(settings: type[BaseSettings]) -> dict[str, list[str]]:
    """Return the names of settings by the title of their group, in the order of the help.

    Args:
        settings: Inherits from the groups.
    """
    return {
        base.title: [name for name in base.__annotations__ if name in settings.model_fields]
        for base in settings.__mro__
        if issubclass(base, Group) and base not in (settings, Group)
    }
