"""List, show and change the variants that the server holds."""

from __future__ import annotations

from resnet50.v1 import variant_pb2, variant_pb2_grpc
from resnet50_server.errors import InvalidRequest, NotEnabled
from resnet50_server.lifecycle.control import VariantControl
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import Traffic
from resnet50_server.variants.spec import EMBEDDING_DIMENSION, VariantSpec

from .guard import Context
from .variant_reports import report_of, split_of


class VariantServicer(variant_pb2_grpc.VariantServiceServicer):
    """`VariantService` of the contract.

    Args:
        variants: Those that the server holds.
        control: Loads and unloads them.
        traffic: Those that are compared.
    """

    def __init__(
        self, variants: VariantRegistry, control: VariantControl, traffic: Traffic
    ) -> None:
        self._variants = variants
        self._control = control
        self._traffic = traffic

    async def ListVariants(
        self, request: variant_pb2.ListVariantsRequest, context: Context
    ) -> variant_pb2.ListVariantsResponse:
        """List all, without their categories; see the contract."""
        variants = self._variants
        listed = [self._describe(spec) for spec in variants.specs]
        listed += [_leaving(one) for one in variants.draining]
        listed += [
            variant_pb2.Variant(
                name=name, state=variant_pb2.VARIANT_STATE_FAILED, last_failure=reason
            )
            for name, reason in variants.failures.items()
            if variants.by_name(name) is None
        ]
        return variant_pb2.ListVariantsResponse(variants=listed)

    async def GetVariant(
        self, request: variant_pb2.GetVariantRequest, context: Context
    ) -> variant_pb2.GetVariantResponse:
        """Show one, with its categories; see the contract."""
        spec = self._variants.resolve(request.name, field="name")
        variant = self._describe(spec)
        variant.categories.extend(spec.categories)
        return variant_pb2.GetVariantResponse(variant=variant)

    async def LoadVariant(
        self, request: variant_pb2.LoadVariantRequest, context: Context
    ) -> variant_pb2.LoadVariantResponse:
        """Load one from the variants' folder; see the contract."""
        self._require_enabled("LoadVariant")
        loaded = await self._control.load(request.name, replace=request.replace)
        return variant_pb2.LoadVariantResponse(
            variant=self._describe(loaded.variant.spec),
            replaced_digest="" if loaded.replaced is None else loaded.replaced.built.digest,
            evicted=loaded.evicted,
        )

    async def UnloadVariant(
        self, request: variant_pb2.UnloadVariantRequest, context: Context
    ) -> variant_pb2.UnloadVariantResponse:
        """Unload one; see the contract."""
        self._require_enabled("UnloadVariant")
        if not request.name:
            raise InvalidRequest("name", "is empty: say which variant to unload")
        return variant_pb2.UnloadVariantResponse(
            variant=_leaving(await self._control.unload(request.name))
        )

    async def SetDefaultVariant(
        self, request: variant_pb2.SetDefaultVariantRequest, context: Context
    ) -> variant_pb2.SetDefaultVariantResponse:
        """Let another one answer requests that name none; see the contract."""
        self._require_enabled("SetDefaultVariant")
        if not request.name:
            raise InvalidRequest("name", "is empty: say which variant is to be the default")
        variant, previous = self._control.set_default(request.name)
        return variant_pb2.SetDefaultVariantResponse(
            variant=self._describe(variant.spec), previous=previous
        )

    async def SetTrafficSplit(
        self, request: variant_pb2.SetTrafficSplitRequest, context: Context
    ) -> variant_pb2.SetTrafficSplitResponse:
        """Begin to compare two; see the contract."""
        self._require_enabled("SetTrafficSplit")
        trial = self._traffic.set(split_of(request.split, self._variants))
        return variant_pb2.SetTrafficSplitResponse(report=report_of(trial))

    async def ListTrafficSplits(
        self, request: variant_pb2.ListTrafficSplitsRequest, context: Context
    ) -> variant_pb2.ListTrafficSplitsResponse:
        """Show what came of comparisons; see the contract."""
        reports = [report_of(trial) for trial in self._traffic.trials]
        return variant_pb2.ListTrafficSplitsResponse(reports=reports)

    async def DeleteTrafficSplit(
        self, request: variant_pb2.DeleteTrafficSplitRequest, context: Context
    ) -> variant_pb2.DeleteTrafficSplitResponse:
        """End a comparison; see the contract."""
        self._require_enabled("DeleteTrafficSplit")
        if not request.variant:
            raise InvalidRequest("variant", "is empty: name the variant that has the split")
        spec = self._variants.resolve(request.variant, field="variant")
        trial = self._traffic.delete(spec.name)
        return variant_pb2.DeleteTrafficSplitResponse(report=report_of(trial))

    def _require_enabled(self, method: str) -> None:
        if self._control.source is None:
            raise NotEnabled(method, "--variants-dir")

    def _describe(self, spec: VariantSpec) -> variant_pb2.Variant:
        """Return what is known of a variant that answers or is being loaded."""
        held, loading = self._variants.loaded_variant(spec), self._variants.load_progress(spec)
        if held is None:
            variant = _defined(spec, variant_pb2.VARIANT_STATE_LOADING)
        else:
            variant = _described(held, variant_pb2.VARIANT_STATE_READY)
            if (problem := held.queue.health.problem) is not None:
                variant.state = variant_pb2.VARIANT_STATE_UNHEALTHY
                variant.problem = problem
        variant.server_default = spec is self._variants.default
        variant.last_failure = self._variants.failures.get(spec.name, "")
        if loading is not None:
            stage = variant_pb2.LoadingStage.Value(f"LOADING_STAGE_{loading.stage.upper()}")
            variant.loading.stage, variant.loading.elapsed_s = stage, loading.elapsed_s
        return variant


def _leaving(held: LoadedVariant) -> variant_pb2.Variant:
    """Return what is known of a variant that no new request finds."""
    return _described(held, variant_pb2.VARIANT_STATE_DRAINING)


def _defined(spec: VariantSpec, state: variant_pb2.VariantState.ValueType) -> variant_pb2.Variant:
    """Return what is known of a variant before its weights are."""
    variant = variant_pb2.Variant(
        name=spec.name,
        aliases=spec.aliases,
        state=state,
        embedding_dimension=EMBEDDING_DIMENSION,
        category_count=len(spec.categories),
        transform=variant_pb2.Transform(**vars(spec.transform)),
        description=spec.description,
    )
    if spec.published is not None:
        variant.published_accuracy.CopyFrom(variant_pb2.PublishedAccuracy(**vars(spec.published)))
    return variant


def _described(
    held: LoadedVariant, state: variant_pb2.VariantState.ValueType
) -> variant_pb2.Variant:
    """Return what is known of a variant whose weights are loaded."""
    variant, built, latency = _defined(held.spec, state), held.built, held.queue.latency
    variant.trained = built.trained
    variant.digest = built.digest
    variant.parameter_count = built.parameter_count
    variant.embedding_space = held.space
    variant.precision = built.precision
    variant.device = built.device
    variant.engine = built.kind
    variant.memory_bytes = built.memory_bytes
    variant.requests = held.requests
    if (quantization := built.quantization) is not None:
        variant.quantization.CopyFrom(
            variant_pb2.Quantization(
                calibration_images=quantization.calibration_images,
                compared_images=quantization.compared_images,
                top_1_agreement=quantization.top_1,
                embedding_cosine=quantization.cosine,
            )
        )
    if latency.known:
        variant.latency.alpha_ms = latency.alpha_s * 1e3
        variant.latency.beta_ms = latency.beta_s * 1e3
    return variant
