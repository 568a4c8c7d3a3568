"""Who changes the variants of a server while it is under load, and keeps account of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from expected import CHECKPOINT, Checkpoint
from ledger import Ledger
from process import ServerProcess
from timeline import Timeline

from resnet50.v1 import variant_pb2, variant_pb2_grpc
from resnet50_server.tokens import hash_of

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
        digest = hash_of(SECRET).hex()
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
            *("--cache-dir", str(self.folder / "cache"), "--log-level", "warning", *flags),
            log=self.folder / "server.log",
        )


class Administrator:
    """Changes a server's variants, one at a time.

    Args:
        store: Where they come from.
        channel: To the server.
        timeline: Is told what may answer when.
        ledger: Is told of changes that fail.

    Attributes:
        changes: How many of each kind were made.
        replaced_s: How long each replacing took, in seconds.
    """

    def __init__(
        self, store: Store, channel: grpc.aio.Channel, timeline: Timeline, ledger: Ledger
    ) -> None:
        self.changes: dict[str, int] = {}
        self.replaced_s: list[float] = []
        self._store = store
        self._stub: Any = variant_pb2_grpc.VariantServiceStub(channel)
        self._timeline = timeline
        self._ledger = ledger

    async def replace(self, name: str, checkpoint: Checkpoint) -> None:
        """Load a checkpoint in the place of the one that a name stands for."""
        self._store.put(name, checkpoint.folder)
        before = self._timeline.now(name)
        began = time.monotonic()

        async def change() -> None:
            with self._timeline.changing(name, checkpoint.digest):
                reply = await self._load(name, replace=True)
            found = reply.variant.digest, reply.replaced_digest
            if found != (checkpoint.digest, before):
                self._ledger.broken(f"replacing {name}: {found}, not {(checkpoint.digest, before)}")

        if await self._tried("replace", change):
            self.replaced_s.append(time.monotonic() - began)

    async def load(self, name: str, checkpoint: Checkpoint) -> None:
        """Load a variant that is not served."""
        self._store.put(name, checkpoint.folder)

        async def change() -> None:
            with self._timeline.changing(name, checkpoint.digest):
                await self._load(name, replace=False)

        await self._tried("load", change)

    async def unload(self, name: str) -> None:
        """Unload a variant."""

        async def change() -> None:
            request = variant_pb2.UnloadVariantRequest(name=name)
            with self._timeline.changing(name, None):
                await self._stub.UnloadVariant(request, **self._options())

        await self._tried("unload", change)

    async def set_default(self, name: str) -> None:
        """Let a variant answer requests that name none."""

        async def change() -> None:
            request = variant_pb2.SetDefaultVariantRequest(name=name)
            with self._timeline.changing("", name):
                await self._stub.SetDefaultVariant(request, **self._options())

        await self._tried("set default", change)

    async def fail(self, name: str, corrupt: Path) -> None:
        """Try to replace a variant by a checkpoint that is no whole one: nothing may change."""
        self._store.put(name, corrupt)
        try:
            await self._load(name, replace=True)
        except grpc.aio.AioRpcError as error:
            self._count("failed load")
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                self._ledger.broken(f"a corrupt checkpoint is told {error!r}")
        else:
            self._ledger.broken("a corrupt checkpoint was loaded")

    async def drained(self) -> bool:
        """Return whether no variant has requests left from before it was replaced."""
        reply = await self._stub.ListVariants(variant_pb2.ListVariantsRequest(), **self._options())
        states = [one.state for one in reply.variants]
        return variant_pb2.VARIANT_STATE_DRAINING not in states

    async def _load(self, name: str, replace: bool) -> variant_pb2.LoadVariantResponse:
        request = variant_pb2.LoadVariantRequest(name=name, replace=replace)
        reply: variant_pb2.LoadVariantResponse
        reply = await self._stub.LoadVariant(request, **self._options())
        return reply

    async def _tried(self, kind: str, change: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Make a change; one that fails is a promise broken, and the trial goes on."""
        try:
            await change()
        except grpc.aio.AioRpcError as error:
            self._ledger.broken(f"{kind}: {error!r}")
            return False
        self._count(kind)
        return True

    def _count(self, kind: str) -> None:
        self.changes[kind] = self.changes.get(kind, 0) + 1

    @staticmethod
    def _options() -> dict[str, Any]:
        metadata = (("authorization", f"Bearer {SECRET}"),)
        return {"timeout": PATIENCE_S, "metadata": metadata}
