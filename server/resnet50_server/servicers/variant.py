"""List and show the variants that the server holds."""

from __future__ import annotations

from resnet50.v1 import variant_pb2, variant_pb2_grpc

from ..errors import Unimplemented
from ..held import HeldVariants
from ..variants.definition import EMBEDDING_DIMENSION, Definition
from .boundary import Context


class VariantServicer(variant_pb2_grpc.VariantServiceServicer):
    """`VariantService` of the contract.

    Args:
        variants: Those that the server holds.
    """

    def __init__(self, variants: HeldVariants) -> None:
        self._variants = variants

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
        """Refuse: not built yet."""
        raise Unimplemented("LoadVariant")

    async def UnloadVariant(
        self, request: variant_pb2.UnloadVariantRequest, context: Context
    ) -> variant_pb2.UnloadVariantResponse:
        """Refuse: not built yet."""
        raise Unimplemented("UnloadVariant")

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
