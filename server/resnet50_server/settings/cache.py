"""The group of caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from resnet50_settings.groups import Group


class Cache(Group):
    """Response cache in memory, graph cache on disk."""

    title = "Cache"

    response_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory for the response cache, in bytes: repeated images are answered"
            " without computing them, identical requests in flight are coalesced, and the least"
            " recently used results are evicted. 0: disabled.",
        ),
    ] = 0
    graph_cache_dir: Annotated[
        Path | None,
        Field(
            description="Directory of the graph cache: networks exported for the CPU engines."
            " Default: the user's cache directory (XDG_CACHE_HOME)."
        ),
    ] = None
    max_graph_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Maximum size of the graph cache, in bytes; beyond it the least recently"
            " used graphs are removed. A float variant takes 100 MB.",
        ),
    ] = 4 * 2**30
