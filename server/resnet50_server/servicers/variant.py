"""List and show the variants that the server holds."""

from __future__ import annotations

from resnet50.v1 import variant_pb2, variant_pb2_grpc

from ..held import HeldVariant, HeldVariants
from ..variants.definition import EMBEDDING_DIMENSION
from .boundary import Context, answering, unimplemented


class VariantServicer(variant_pb2_grpc.VariantServiceServicer):
    """`VariantService` of the contract.

    Args:
        variants: Those that the server holds.
    """

    def __init__(self, variants: HeldVariants) -> None:
        self._variants = variants

    @answering
    async def ListVariants(
        self, request: variant_pb2.ListVariantsRequest, context: Context
    ) -> variant_pb2.ListVariantsResponse:
        """List all, without their categories; see the contract."""
        return variant_pb2.ListVariantsResponse(
            variants=[self._describe(held) for held in self._variants.all]
        )

    @answering
    async def GetVariant(
        self, request: variant_pb2.GetVariantRequest, context: Context
    ) -> variant_pb2.GetVariantResponse:
        """Show one, with its categories; see the contract."""
        held = self._variants.find(request.name, field="name")
        variant = self._describe(held)
        variant.categories.extend(held.definition.categories)
        return variant_pb2.GetVariantResponse(variant=variant)

    async def LoadVariant(  # noqa: D102  the contract documents it
        self, request: variant_pb2.LoadVariantRequest, context: Context
    ) -> variant_pb2.LoadVariantResponse:
        await unimplemented(context, "LoadVariant")

    async def UnloadVariant(  # noqa: D102  the contract documents it
        self, request: variant_pb2.UnloadVariantRequest, context: Context
    ) -> variant_pb2.UnloadVariantResponse:
        await unimplemented(context, "UnloadVariant")

    def _describe(self, held: HeldVariant) -> variant_pb2.Variant:
        definition, opened = held.definition, held.opened
        accuracy = definition.published
        return variant_pb2.Variant(
            name=definition.name,
            aliases=definition.aliases,
            state=variant_pb2.VARIANT_STATE_READY,
            server_default=held is self._variants.default,
            trained=opened.trained,
            digest=opened.digest,
            parameter_count=opened.parameter_count,
            embedding_dimension=EMBEDDING_DIMENSION,
            embedding_space=held.space,
            category_count=len(definition.categories),
            transform=variant_pb2.Transform(**vars(definition.transform)),
            published_accuracy=variant_pb2.PublishedAccuracy(**vars(accuracy))
            if accuracy
            else None,
            precision=opened.precision,
            device=opened.device,
            engine=opened.kind,
            description=definition.description,
        )
