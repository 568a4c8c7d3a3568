"""Both clients of the SDK."""

from __future__ import annotations

import pytest

from tests.support.clients import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type:
    """The class of a client: `Client`, then `AsyncClient`."""
    return request.param
