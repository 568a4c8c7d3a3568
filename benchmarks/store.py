"""Administrator of a server under load: changes its variants and keeps account of it."""

from __future__ import annotations

import collections
import os
import shutil
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from benchmarks.expected import CHECKPOINT, Checkpoint
from benchmarks.ledger import Ledger
from benchmarks.process import ServerProcess
from benchmarks.timeline import Timeline
from resnet50_client import LoadResult, Resnet50Error
from resnet50_client.admin import AsyncAdminClient
from resnet50_server.auth.tokens import digest_of

Result = TypeVar("Result")

SECRET = "trial-" + "s" * 40
# Longer than any change may take.
PATIENCE_S = 300.0
CORRUPT = "corrupt"


class Store:
    """The folder that a server takes variants from: one link for each name, to a checkpoint's.

    Args:
        folder: Where everything of the trial lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variants = folder / "variants"
        self.variants.mkdir()
        self.tokens = folder / "tokens.toml"
        digest = digest_of(SECRET).hex()
        self.tokens.write_text(
            f'[[token]]\nname = "trial"\nsha256 = "{digest}"\nscopes = ["infer", "admin"]\n'
        )

    def put(self, name: str, checkpoint: Path) -> None:
        """Let a name stand for a checkpoint that lies in the folder, in one step."""
        link = self.folder / "link"
        link.symlink_to(checkpoint, target_is_directory=True)
        os.replace(link, self.variants / name)

    def corrupt(self, checkpoint: Checkpoint) -> Path:
        """Write the first half of a checkpoint; return its folder."""
        folder = self.variants / CORRUPT
        folder.mkdir()
        shutil.copy(checkpoint.folder / "variant.json", folder)
        whole = (checkpoint.folder / CHECKPOINT).read_bytes()
        (folder / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
        return folder

    def server(self, names: list[str], *flags: str) -> ServerProcess:
        """Start a server of some names, which can be told to change them."""
        named = [
            word for name in names for word in ("--variants", f"{name}={self.variants}/{name}")
        ]
        return ServerProcess(
            *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *named),
            *("--variants-dir", str(self.variants), "--tokens-file", str(self.tokens)),
            *("--graph-cache-dir", str(self.folder / "cache"), "--log-level", "warning", *flags),
            log=self.folder / "server.log",
        )


class Administrator:
    """VariantControl a server's variants, one at a time.

    Args:
        store: Where they come from.
        client: Of the server, with `SECRET` as its token.
        timeline: Is told what may answer when.
        ledger: Is told of changes that fail.

    Attributes:
        changes: How many of each kind were made.
        replaced_s: How long each replacing took, in seconds.
    """

    def __init__(
        self, store: Store, client: AsyncAdminClient, timeline: Timeline, ledger: Ledger
    ) -> None:
        self.changes: collections.Counter[str] = collections.Counter()
        self.replaced_s: list[float] = []
        self._store = store
        self._client = client
        self._timeline = timeline
        self._ledger = ledger

    async def replace(self, name: str, checkpoint: Checkpoint) -> None:
        """Load a checkpoint that replaces the one of a name."""
        self._store.put(name, checkpoint.folder)
        before, began = self._timeline.now(name), time.monotonic()
        loaded = await self._made("replace", name, checkpoint.digest, self._load(name, True))
        if loaded is None:
            return
        self.replaced_s.append(time.monotonic() - began)
        found, right = (
            (loaded.variant.digest, loaded.replaced_digest),
            (checkpoint.digest, before),
        )
        if found != right:
            self._ledger.broken(f"replacing {name}: it says {found} instead of {right}")

    async def load(self, name: str, checkpoint: Checkpoint) -> None:
        """Load a variant that is not served."""
        self._store.put(name, checkpoint.folder)
        await self._made("load", name, checkpoint.digest, self._load(name, False))

    async def unload(self, name: str) -> None:
        """Unload a variant."""
        await self._made("unload", name, None, self._client.unload_variant(name))

    async def set_default(self, name: str) -> None:
        """Let a variant answer requests that name none."""
        await self._made("set default", "", name, self._client.set_default_variant(name))

    async def fail(self, name: str, corrupt: Path) -> None:
        """Try to replace a variant by a checkpoint that is no whole one: nothing may change."""
        self._store.put(name, corrupt)
        try:
            await self._load(name, True)
        except Resnet50Error as error:
            self.changes["failed load"] += 1
            if error.code != "FAILED_PRECONDITION":
                self._ledger.broken(f"a corrupt checkpoint is told {error.code}: {error}")
        else:
            self._ledger.broken("a corrupt checkpoint was loaded")

    async def drained(self) -> bool:
        """Return whether no variant has requests left from before it was replaced."""
        return all(one.state != "draining" for one in await self._client.list_variants())

    async def _load(self, name: str, replace: bool) -> LoadResult:
        return await self._client.load_variant(name, replace=replace, timeout_s=PATIENCE_S)

    async def _made(
        self, kind: str, name: str, value: str | None, change: Awaitable[Result]
    ) -> Result | None:
        """Make a change; one that fails is a promise broken, and the trial continues."""
        try:
            with self._timeline.changing(name, value):
                result = await change
        except Resnet50Error as error:
            self._ledger.broken(f"{kind} {name}: {error.code} {error}")
            return None
        self.changes[kind] += 1
        return result
