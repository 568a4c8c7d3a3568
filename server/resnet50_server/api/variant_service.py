"""List, show, load and unload variants; set and report traffic splits."""

from __future__ import annotations

from resnet50.v1 import variant_pb2, variant_pb2_grpc
from resnet50_server.errors import InvalidRequest, NotEnabled
from resnet50_server.images.background import spell_background
from resnet50_server.images.transform import LongerSide, Transform
from resnet50_server.lifecycle.control import VariantControl
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.comparison import Comparison, SideStats
from resnet50_server.rollout.router import ActiveSplit, TrafficRouter
from resnet50_server.rollout.split import Split
from resnet50_server.variants.spec import EMBEDDING_DIMENSION, VariantSpec

from .call import GrpcContext


class VariantServicer(variant_pb2_grpc.VariantServiceServicer):
    """`VariantService`.

    Args:
        variants: The registry.
        control: Loads and unloads them.
        router: The traffic splits.
        exact_jpeg_pixels: JPEGs of more pixels are decoded at a fraction of their size.
    """

    def __init__(
        self,
        variants: VariantRegistry,
        control: VariantControl,
        router: TrafficRouter,
        exact_jpeg_pixels: int,
    ) -> None:
        self._variants = variants
        self._control = control
        self._router = router
        self._exact_jpeg_pixels = exact_jpeg_pixels

    async def ListVariants(
        self, request: variant_pb2.ListVariantsRequest, context: GrpcContext
    ) -> variant_pb2.ListVariantsResponse:
        """List all, without their categories."""
        variants = self._variants
        listed = [self._describe(spec) for spec in variants.specs]
        listed += [_describe_draining(one) for one in variants.draining]
        listed += [
            variant_pb2.Variant(
                name=name, state=variant_pb2.VARIANT_STATE_FAILED, last_failure=reason
            )
            for name, reason in variants.failures.items()
            if variants.by_name(name) is None
        ]
        return variant_pb2.ListVariantsResponse(variants=listed)

    async def GetVariant(
        self, request: variant_pb2.GetVariantRequest, context: GrpcContext
    ) -> variant_pb2.GetVariantResponse:
        """Show one, with its categories."""
        spec = self._variants.resolve(request.name, field="name")
        variant = self._describe(spec)
        variant.categories.extend(spec.categories)
        variant.thresholds.extend(spec.thresholds)
        return variant_pb2.GetVariantResponse(variant=variant)

    async def LoadVariant(
        self, request: variant_pb2.LoadVariantRequest, context: GrpcContext
    ) -> variant_pb2.LoadVariantResponse:
        """Load one from the variants' folder."""
        self._require_enabled("LoadVariant")
        loaded = await self._control.load(request.name, replace=request.replace)
        return variant_pb2.LoadVariantResponse(
            variant=self._describe(loaded.variant.spec),
            replaced_digest="" if loaded.replaced is None else loaded.replaced.built.digest,
            evicted=loaded.evicted,
        )

    async def UnloadVariant(
        self, request: variant_pb2.UnloadVariantRequest, context: GrpcContext
    ) -> variant_pb2.UnloadVariantResponse:
        """Unload one."""
        self._require_enabled("UnloadVariant")
        if not request.name:
            raise InvalidRequest("name", "is empty: set it to the variant to unload")
        return variant_pb2.UnloadVariantResponse(
            variant=_describe_draining(await self._control.unload(request.name))
        )

    async def SetDefaultVariant(
        self, request: variant_pb2.SetDefaultVariantRequest, context: GrpcContext
    ) -> variant_pb2.SetDefaultVariantResponse:
        """Set the variant for requests that name none."""
        self._require_enabled("SetDefaultVariant")
        if not request.name:
            raise InvalidRequest("name", "is empty: set it to the new default variant")
        variant, previous = self._control.set_default(request.name)
        return variant_pb2.SetDefaultVariantResponse(
            variant=self._describe(variant.spec), previous=previous
        )

    async def SetTrafficSplit(
        self, request: variant_pb2.SetTrafficSplitRequest, context: GrpcContext
    ) -> variant_pb2.SetTrafficSplitResponse:
        """Set a traffic split."""
        self._require_enabled("SetTrafficSplit")
        active = self._router.set(_parse_split(request.split, self._variants))
        return variant_pb2.SetTrafficSplitResponse(report=_to_report(active))

    async def ListTrafficSplits(
        self, request: variant_pb2.ListTrafficSplitsRequest, context: GrpcContext
    ) -> variant_pb2.ListTrafficSplitsResponse:
        """List traffic splits with their reports."""
        reports = [_to_report(active) for active in self._router.splits]
        return variant_pb2.ListTrafficSplitsResponse(reports=reports)

    async def DeleteTrafficSplit(
        self, request: variant_pb2.DeleteTrafficSplitRequest, context: GrpcContext
    ) -> variant_pb2.DeleteTrafficSplitResponse:
        """Delete a traffic split."""
        self._require_enabled("DeleteTrafficSplit")
        if not request.variant:
            raise InvalidRequest("variant", "is empty: set it to the variant that has the split")
        spec = self._variants.resolve(request.variant, field="variant")
        active = self._router.delete(spec.name)
        return variant_pb2.DeleteTrafficSplitResponse(report=_to_report(active))

    def _require_enabled(self, method: str) -> None:
        if self._control.source is None:
            raise NotEnabled(method, "--variants-dir")

    def _describe(self, spec: VariantSpec) -> variant_pb2.Variant:
        """Describe a variant that is loaded or being loaded."""
        loaded, loading = self._variants.loaded_variant(spec), self._variants.load_progress(spec)
        if loaded is None:
            variant = _describe_unloaded(spec, variant_pb2.VARIANT_STATE_LOADING)
        else:
            variant = _describe_loaded(loaded, variant_pb2.VARIANT_STATE_READY)
            if (problem := loaded.queue.health.problem) is not None:
                variant.state = variant_pb2.VARIANT_STATE_UNHEALTHY
                variant.problem = problem
        variant.transform.exact_jpeg_pixels = self._exact_jpeg_pixels
        variant.server_default = spec is self._variants.default
        variant.last_failure = self._variants.failures.get(spec.name, "")
        if loading is not None:
            stage = variant_pb2.LoadingStage.Value(f"LOADING_STAGE_{loading.stage.upper()}")
            variant.loading.stage, variant.loading.elapsed_s = stage, loading.elapsed_s
        return variant


_ACTIVATIONS = {
    "softmax": variant_pb2.ACTIVATION_SOFTMAX,
    "sigmoid": variant_pb2.ACTIVATION_SIGMOID,
}


def _describe_draining(loaded: LoadedVariant) -> variant_pb2.Variant:
    """Describe a variant that accepts no new requests."""
    return _describe_loaded(loaded, variant_pb2.VARIANT_STATE_DRAINING)


def _describe_unloaded(
    spec: VariantSpec, state: variant_pb2.VariantState.ValueType
) -> variant_pb2.Variant:
    """Describe a variant whose weights are not loaded."""
    variant = variant_pb2.Variant(
        name=spec.name,
        aliases=spec.aliases,
        state=state,
        embedding_dimension=EMBEDDING_DIMENSION,
        category_count=len(spec.categories),
        activation=_ACTIVATIONS[spec.activation]
        if spec.categories
        else variant_pb2.ACTIVATION_NONE,
        transform=describe_transform(spec.transform),
        description=spec.description,
    )
    if spec.published is not None:
        variant.published_accuracy.CopyFrom(variant_pb2.PublishedAccuracy(**vars(spec.published)))
    return variant


def describe_transform(transform: Transform) -> variant_pb2.Transform:
    """Describe preprocessing, so that a client can do it too."""
    height, width = transform.input_size
    message = variant_pb2.Transform(
        crop=height if height == width else 0,
        mean=transform.mean,
        std=transform.std,
        interpolation=transform.interpolation,
        background=spell_background(transform.background),
        pad_to_square=transform.pad_to_square,
        fill=transform.fill,
        input_size=variant_pb2.ImageSize(height=height, width=width),
        antialias=transform.antialias,
        channel_order=transform.channel_order,
        input_range=transform.input_range,
        digest=transform.digest,
    )
    if isinstance(transform.resize, LongerSide):
        message.resize_longer_side = transform.resize.pixels
    elif isinstance(transform.resize, tuple):
        message.resize_to.height, message.resize_to.width = transform.resize
    elif transform.resize is not None:
        message.resize = transform.resize
    return message


def _describe_loaded(
    loaded: LoadedVariant, state: variant_pb2.VariantState.ValueType
) -> variant_pb2.Variant:
    """Describe a variant whose weights are loaded."""
    variant, built, latency = (
        _describe_unloaded(loaded.spec, state),
        loaded.built,
        loaded.queue.latency,
    )
    variant.trained = built.trained
    variant.digest = built.digest
    variant.parameter_count = built.parameter_count
    variant.embedding_space = loaded.space
    variant.precision = built.precision
    variant.device = built.device
    variant.engine = built.kind
    variant.memory_bytes = built.memory_bytes
    variant.requests = loaded.requests
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


def _parse_split(message: variant_pb2.TrafficSplit, variants: VariantRegistry) -> Split:
    """Return the traffic split in a message, with the names of its variants.

    Raises:
        InvalidRequest: A field is wrong.
        VariantNotFound: There is no such variant.
    """
    for field in ("variant", "candidate"):
        if not getattr(message, field):
            raise InvalidRequest(f"split.{field}", "is empty: name a loaded variant")
    return Split(
        variants.resolve(message.variant, "split.variant").name,
        variants.resolve(message.candidate, "split.candidate").name,
        message.canary_percent,
        message.shadow_percent,
        message.canary_embeddings,
    )


def _to_report(active: ActiveSplit) -> variant_pb2.TrafficReport:
    """Return the report of a traffic split."""
    split, stats = active.split, active.stats
    report = variant_pb2.TrafficReport(
        split=variant_pb2.TrafficSplit(
            variant=split.variant,
            candidate=split.candidate,
            canary_percent=split.canary_percent,
            shadow_percent=split.shadow_percent,
            canary_embeddings=split.canary_embeddings,
        ),
        variant_digest=stats.variant_digest,
        candidate_digest=stats.candidate_digest,
        elapsed_s=stats.elapsed_s,
        variant_answers=_share(stats.variant_answers),
        candidate_answers=_share(stats.candidate_answers),
        skipped=stats.skipped,
        failed=stats.failed,
        ended=active.ended,
    )
    if stats.comparison.images:
        report.comparison.CopyFrom(_comparison(stats.comparison))
    return report


def _share(share: SideStats) -> variant_pb2.TrafficShare:
    return variant_pb2.TrafficShare(
        answered=share.answered,
        failed=share.failed,
        p50_ms=share.total_s.quantile(0.5) * 1e3,
        p99_ms=share.total_s.quantile(0.99) * 1e3,
    )


def _comparison(comparison: Comparison) -> variant_pb2.Comparison:
    return variant_pb2.Comparison(
        images=comparison.images,
        top_1_agreement=comparison.agreed / comparison.images,
        embedding_cosine=comparison.cosines / comparison.images,
        min_embedding_cosine=comparison.min_cosine,
        variant_compute_ms=comparison.variant_s.quantile(0.5) * 1e3,
        candidate_compute_ms=comparison.candidate_s.quantile(0.5) * 1e3,
    )
