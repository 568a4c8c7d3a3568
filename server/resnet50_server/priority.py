"""Interactive before bulk: what callers say, and what bulk leaves to the others.

Bulk waits behind whatever is interactive, but not for ever: while both wait, one image in
`BULK_EVERY` is bulk.
"""

from __future__ import annotations

INTERACTIVE = "interactive"
BULK = "bulk"
# While both wait, one item in so many is bulk.
BULK_EVERY = 16
# Bulk leaves this share of every limit to interactive requests.
INTERACTIVE_SHARE = 0.25


def share(limit: int, bulk: bool) -> int:
    """Return how much of a limit may be taken; at least 1, or bulk would never come in."""
    return max(1, int(limit * (1 - INTERACTIVE_SHARE))) if bulk else limit
