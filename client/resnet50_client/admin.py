"""Clients for administration: loading variants, choosing the default, splitting traffic.

    from resnet50_client.admin import AdminClient

    with AdminClient("localhost:50051", token_file="admin-token") as admin:
        admin.load_variant("IMAGENET1K_V1")

`AsyncAdminClient` has the same methods for asyncio.
"""

from ._admin import AdminClient
from ._async_admin import AsyncAdminClient

__all__ = ["AdminClient", "AsyncAdminClient"]
