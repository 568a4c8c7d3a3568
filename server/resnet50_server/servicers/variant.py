"""List and show the variants that the server holds; load and unload them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from resnet50.v1 import variant_pb2, variant_pb2_grpc

from ..errors import InvalidRequest, NotEnabled, NotNow, WeightsError
from ..held import HeldVariant, HeldVariants
from ..loading import let_go
from ..variants.definition import EMBEDDING_DIMENSION, Definition, define
from ..variants.directory import VariantsDirectory
from .boundary import Context

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Administration:
    """How variants are changed while serving.

    Attributes:
        directory: Where they come from.
        hold: Loads one, ready to answer.
        patience_s: How long calls may go on that use a variant which goes, in seconds.
    """

    directory: VariantsDirectory
    hold: Callable[[Definition], Awaitable[HeldVariant]]
    patience_s: float


class VariantServicer(variant_pb2_grpc.VariantServiceServicer):
    """`VariantService` of the contract.

    Args:
        variants: Those that the server holds.
        administration: How they are changed; None if they are not.
    """

    def __init__(
        self, variants: HeldVariants, administration: Administration | None = None
    ) -> None:
        self._variants = variants
        self._administration = administration
        self._changing: asyncio.Task[Any] | None = None

    async def ListVariants(
        self, request: variant_pb2.ListVariantsRequest, context: Context
    ) -> variant_pb2.ListVariantsResponse:
        """List all, without their categories; see the contract."""
        return variant_pb2.ListVariantsResponse(
            variants=[self._describe(definition) for definition in self._variants.definitions]
        )

    async def GetVariant(
        self, request: variant_pb2.GetVariantRequest, context: Context
    ) -> variant_pb2.GetVariantResponse:
        """Show one, with its categories; see the contract."""
        definition = self._variants.define(request.name, field="name")
        variant = self._describe(definition)
        variant.categories.extend(definition.categories)
        return variant_pb2.GetVariantResponse(variant=variant)

    async def LoadVariant(
        self, request: variant_pb2.LoadVariantRequest, context: Context
    ) -> variant_pb2.LoadVariantResponse:
        """Load one from the variants' folder; see the contract."""
        admin = self._enabled("LoadVariant")
        folder = admin.directory.find(request.name)
        definition = await self._change(self._load(request.name, folder, admin))
        return variant_pb2.LoadVariantResponse(variant=self._describe(definition))

    async def UnloadVariant(
        self, request: variant_pb2.UnloadVariantRequest, context: Context
    ) -> variant_pb2.UnloadVariantResponse:
        """Unload one; see the contract."""
        admin = self._enabled("UnloadVariant")
        if not request.name:
            raise InvalidRequest("name", "is empty: say which variant to unload")
        definition = self._variants.define(request.name, field="name")
        if definition is self._variants.default:
            raise NotNow(
                f"name: {definition.name} answers requests that name no variant; start the server"
                " with another --default-variant"
            )
        held = self._variants.loaded(definition)
        if held is None:
            raise NotNow(f"name: {definition.name} is not loaded yet")
        unloaded = self._describe(definition)
        unloaded.state = variant_pb2.VARIANT_STATE_DRAINING
        await self._change(self._unload(held, admin))
        return variant_pb2.UnloadVariantResponse(variant=unloaded)

    async def SetDefaultVariant(
        self, request: variant_pb2.SetDefaultVariantRequest, context: Context
    ) -> variant_pb2.SetDefaultVariantResponse:
        """Let another one answer requests that name none; see the contract."""
        raise NotImplementedError

    async def SetTrafficSplit(
        self, request: variant_pb2.SetTrafficSplitRequest, context: Context
    ) -> variant_pb2.SetTrafficSplitResponse:
        """Begin to compare two; see the contract."""
        raise NotImplementedError

    async def ListTrafficSplits(
        self, request: variant_pb2.ListTrafficSplitsRequest, context: Context
    ) -> variant_pb2.ListTrafficSplitsResponse:
        """Show what came of comparisons; see the contract."""
        raise NotImplementedError

    async def DeleteTrafficSplit(
        self, request: variant_pb2.DeleteTrafficSplitRequest, context: Context
    ) -> variant_pb2.DeleteTrafficSplitResponse:
        """End a comparison; see the contract."""
        raise NotImplementedError

    def close(self) -> None:
        """Give up a change that goes on; what its thread does is not waited for."""
        if self._changing is not None:
            self._changing.cancel()

    async def _change(self, change: Coroutine[None, None, Result]) -> Result:
        """Make one change at a time. One that was begun is finished, though its caller gives up."""
        if self._changing is not None and not self._changing.done():
            change.close()
            raise NotNow("another variant is being loaded or unloaded; ask again when that is done")
        self._changing = asyncio.create_task(change, name="change-variants")
        return await asyncio.shield(self._changing)

    async def _load(self, name: str, folder: Path, admin: Administration) -> Definition:
        try:
            definition = await asyncio.to_thread(define, f"{name}={folder}")
            self._variants.announce(definition)
            try:
                self._variants.add(await admin.hold(definition))
            except BaseException:
                self._variants.abandon(definition.name, "")
                raise
        except (WeightsError, RuntimeError) as error:  # torch's, such as OutOfMemoryError
            log.warning("variant %s was not loaded: %s", name, error)
            raise NotNow(f"name: {name} cannot be loaded: {error}") from error
        return definition

    async def _unload(self, held: HeldVariant, admin: Administration) -> None:
        self._variants.withdraw(held)
        await let_go(held, admin.patience_s)

    def _enabled(self, method: str) -> Administration:
        if self._administration is None:
            raise NotEnabled(method, "--variants-dir")
        return self._administration

    def _describe(self, definition: Definition) -> variant_pb2.Variant:
        variant = variant_pb2.Variant(
            name=definition.name,
            aliases=definition.aliases,
            state=variant_pb2.VARIANT_STATE_LOADING,
            server_default=definition is self._variants.default,
            embedding_dimension=EMBEDDING_DIMENSION,
            category_count=len(definition.categories),
            transform=variant_pb2.Transform(**vars(definition.transform)),
            description=definition.description,
        )
        if definition.published is not None:
            variant.published_accuracy.CopyFrom(
                variant_pb2.PublishedAccuracy(**vars(definition.published))
            )
        held = self._variants.loaded(definition)
        if held is not None:
            opened = held.opened
            variant.state = variant_pb2.VARIANT_STATE_READY
            variant.trained = opened.trained
            variant.digest = opened.digest
            variant.parameter_count = opened.parameter_count
            variant.embedding_space = held.space
            variant.precision = opened.precision
            variant.device = opened.device
            variant.engine = opened.kind
            if (quantization := opened.quantization) is not None:
                variant.quantization.CopyFrom(
                    variant_pb2.Quantization(
                        calibration_images=quantization.calibration_images,
                        compared_images=quantization.compared_images,
                        top_1_agreement=quantization.top_1,
                        embedding_cosine=quantization.cosine,
                    )
                )
            latency = held.queue.latency
            if latency.known:
                variant.latency.alpha_ms = latency.alpha_s * 1e3
                variant.latency.beta_ms = latency.beta_s * 1e3
        return variant
