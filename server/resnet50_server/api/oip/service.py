"""The service of the Open Inference Protocol: inference, health, metadata, repository."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from resnet50.oip.messages import message_class
from resnet50.v1 import variant_pb2
from resnet50_server.batching.result import Result
from resnet50_server.errors import InvalidImage, InvalidRequest, ShuttingDown
from resnet50_server.events import ImageEvent
from resnet50_server.images.source import Source
from resnet50_server.inference.admission import Permit
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.readiness import Readiness
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.runtime.tasks import start_task
from resnet50_server.variants.spec import EMBEDDING_DIMENSION, VariantSpec

from ..call import EOF, Call, Received
from ..delivery import ordered
from ..image_batch import ImageBatch
from ..inference_service import CallLimits, InferenceServicer
from ..status import is_server_error, to_status
from ..stream_reader import MessageReader
from ..variant_service import VariantServicer
from .outputs import EMBEDDING, PROBABILITIES, VERSION, InferTask, parse_outputs
from .parameters import apply_parameters, asks_for_bulk, end_at, refuse_parameters
from .statistics import OipStatistics
from .tensors import (
    InputTensor,
    at_element,
    encoded_images,
    normalized_images,
    parse_input,
    raw_images,
)

log = logging.getLogger(__name__)

PLATFORM = "resnet50_serving"
EXTENSIONS = (
    *("binary_tensor_data", "classification", "model_configuration", "model_repository"),
    *("parameters", "schedule_policy", "statistics"),
)
INPUT = "IMAGE"
# A parameter of Triton's clients: errors of a stream's requests end the stream, as a status.
GRPC_ERROR_KEY = "triton_grpc_error"

ModelStreamInferResponse = message_class("ModelStreamInferResponse")


@dataclass(frozen=True)
class OipConfig:
    """Settings that the protocol reports.

    Attributes:
        model_name: Alias of the default variant.
        caches: Whether the response cache is on.
    """

    model_name: str
    caches: bool


class OipServicer:
    """`inference.GRPCInferenceService`; its methods get a `Call` instead of gRPC's context.

    Args:
        config: From the settings.
        limits: Of batches and streams.
        variants: The registry.
        pipeline: Computes images.
        router: Chooses the variant.
        readiness: Of the server and its variants.
        inference: Knows the open streams.
        administration: Loads and unloads variants.
        statistics: Of the variants.
    """

    def __init__(
        self,
        config: OipConfig,
        limits: CallLimits,
        variants: VariantRegistry,
        pipeline: Pipeline,
        router: TrafficRouter,
        readiness: Readiness,
        inference: InferenceServicer,
        administration: VariantServicer,
        statistics: OipStatistics,
    ) -> None:
        self._config = config
        self._limits = limits
        self._variants = variants
        self._pipeline = pipeline
        self._router = router
        self._readiness = readiness
        self._inference = inference
        self._administration = administration
        self._statistics = statistics

    async def ServerLive(self, request: Any, call: Call) -> Any:
        """Answer that the server runs."""
        return message_class("ServerLiveResponse")(live=self._readiness.fault is None)

    async def ServerReady(self, request: Any, call: Call) -> Any:
        """Answer whether the server accepts requests."""
        ready = self._readiness.server_problem() is None
        return message_class("ServerReadyResponse")(ready=ready)

    async def ModelReady(self, request: Any, call: Call) -> Any:
        """Answer whether a variant accepts requests."""
        spec = self._spec(request, "name", "version")
        problem = self._readiness.variant_problems()[spec.name]
        return message_class("ModelReadyResponse")(ready=problem is None)

    async def ServerMetadata(self, request: Any, call: Call) -> Any:
        """Describe the server."""
        try:
            release = version("resnet50-serving")
        except PackageNotFoundError:  # run from its sources
            release = "unknown"
        response = message_class("ServerMetadataResponse")
        return response(name="resnet50-serving", version=release, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any, call: Call) -> Any:
        """Describe a variant's tensors."""
        spec = self._spec(request, "name", "version")
        response = message_class("ModelMetadataResponse")(
            name=request.name, versions=[VERSION], platform=PLATFORM
        )
        response.inputs.add(name=INPUT, datatype="BYTES", shape=[-1, 1])
        for name, dimension in _outputs(spec).items():
            response.outputs.add(name=name, datatype="FP32", shape=[-1, dimension])
        return response

    async def ModelConfig(self, request: Any, call: Call) -> Any:
        """Describe a variant's configuration."""
        spec = self._spec(request, "name", "version")
        response = message_class("ModelConfigResponse")()
        config = response.config
        config.name, config.platform = request.name, PLATFORM
        config.max_batch_size = self._limits.max_images_per_call
        config.input.add(name=INPUT, data_type="TYPE_STRING", dims=[1])
        for name, dimension in _outputs(spec).items():
            config.output.add(name=name, data_type="TYPE_FP32", dims=[dimension])
        config.dynamic_batching.SetInParent()
        config.response_cache.enable = self._config.caches
        return response

    async def ModelStatistics(self, request: Any, call: Call) -> Any:
        """Report the figures of a variant, or of all."""
        specs = self._variants.specs
        if request.name:
            specs = [self._spec(request, "name", "version")]
        response = message_class("ModelStatisticsResponse")()
        for spec in specs:
            name = request.name or spec.name
            self._statistics.fill(response.model_stats.add(name=name, version=VERSION), spec.name)
        return response

    async def RepositoryIndex(self, request: Any, call: Call) -> Any:
        """List the variants."""
        response = message_class("RepositoryIndexResponse")()
        for name, problem in self._readiness.variant_problems().items():
            if problem is None:
                response.models.add(name=name, version=VERSION, state="READY")
            elif not request.ready:
                spec = cast(VariantSpec, self._variants.by_name(name))
                loading = self._variants.loaded_variant(spec) is None
                state = "LOADING" if loading else "UNAVAILABLE"
                response.models.add(name=name, version=VERSION, state=state, reason=problem)
        if not request.ready:
            for draining in self._variants.draining:
                response.models.add(name=draining.spec.name, version=VERSION, state="UNLOADING")
            for name, reason in self._variants.failures.items():
                if self._variants.by_name(name) is None:
                    response.models.add(name=name, state="UNAVAILABLE", reason=reason)
        return response

    async def RepositoryModelLoad(self, request: Any, call: Call) -> Any:
        """Load a variant from the variants' directory, or load it again."""
        refuse_parameters(request.parameters, ())
        loads = variant_pb2.LoadVariantRequest(name=request.model_name, replace=True)
        await self._administration.LoadVariant(loads, call.grpc)
        return message_class("RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, request: Any, call: Call) -> Any:
        """Unload a variant."""
        refuse_parameters(request.parameters, ("unload_dependents",))
        unloads = variant_pb2.UnloadVariantRequest(name=request.model_name)
        await self._administration.UnloadVariant(unloads, call.grpc)
        return message_class("RepositoryModelUnloadResponse")()

    async def ModelInfer(self, request: Any, call: Call) -> Any:
        """Classify and embed the images of a tensor."""
        due = apply_parameters(request.parameters, call)
        computing = self._infer(request, call)
        return await (computing if due is None else end_at(due, computing))

    async def _infer(self, request: Any, call: Call) -> Any:
        """Return the response to a request."""
        started = time.perf_counter()
        requested = self._requested(request)
        tensor = parse_input(request, self._limits.max_images_per_call)
        outputs = parse_outputs(request, requested.spec, tensor.count)
        # The tensor waits for a thread to convert it, and the variant may be replaced meanwhile.
        with requested.in_use():
            images = await self._images(tensor, requested, call)
        variant = self._router.resolve(
            call,
            requested,
            with_embedding=any(output.name == EMBEDDING for output in outputs),
            transform_digests=[requested.spec.transform.digest] * (tensor.datatype == "FP32"),
        )
        if variant is not requested:
            outputs = parse_outputs(request, variant.spec, tensor.count)
        task = InferTask(variant, outputs, tensor.count)
        with variant.in_use():
            if len(images) == 1:
                await self._infer_one(images[0], task, call, started)
            else:
                numbered = zip(images, range(len(images)), strict=True)
                writer = _BatchWriter(task)
                batch = ImageBatch(numbered, _as_it_is, self._pipeline, self._router, writer, call)
                await batch.run()
        return task.response(request)

    async def ModelStreamInfer(self, _: object, call: Call) -> None:
        """Answer the requests of a stream, in order; writes the responses itself."""
        reader = MessageReader(call.grpc.read, self._limits.stream_idle_timeout_s)
        call.stream = reader
        ends_stream = any(key == GRPC_ERROR_KEY and value == "true" for key, value in call.metadata)

        async def start(received: Received) -> asyncio.Future[Any]:
            admission = self._pipeline.admission
            bulk = call.bulk or asks_for_bulk(received.message.parameters)
            permit = await admission.acquire(call.caller.name, received.size, bulk=bulk)
            # The permit has the bytes of the message already.
            own = replace(call, permit=permit, bulk=bulk)
            answer = self._answer(received.message, own, call if ends_stream else None)
            computing = start_task(answer, "request of a stream")
            computing.add_done_callback(partial(_release, permit))
            return computing

        def images_of(received: Received) -> int:
            tensors = received.message.inputs
            return tensors[0].shape[0] if tensors and tensors[0].shape else 1

        with self._inference.open_stream(reader):
            window = self._limits.max_frames_in_flight
            await ordered(_messages(reader), start, call.grpc.write, window, images_of)

    async def _answer(self, request: Any, call: Call, ended: Call | None) -> Any:
        """Return the response to a request of a stream, its error included.

        Args:
            request: The request.
            call: Its own, with its permit.
            ended: The stream's, if an error is to end it; otherwise None.
        """
        try:
            response = await self.ModelInfer(request, call)
            response.parameters["triton_final_response"].bool_param = True
            return ModelStreamInferResponse(infer_response=response)
        except ShuttingDown:
            raise
        except Exception as error:
            if ended is not None:
                ended.asked, ended.variant, ended.image_failed = call.asked, call.variant, True
                raise
            if is_server_error(error):
                log.error("a request of stream %s failed", call.request_id, exc_info=error)
            self._pipeline.events.image_refused(call, error)
            status = to_status(error, call.request_id)
            response = ModelStreamInferResponse(error_message=status.message)
            response.infer_response.model_name = request.model_name
            response.infer_response.id = request.id
            return response

    async def _infer_one(self, source: Source, task: InferTask, call: Call, started: float) -> None:
        assert call.permit is not None  # set by the guard
        call.permit.add_bytes(task.result_bytes)
        inference = self._router.instrument(task.inference, call, source)
        try:
            result = await self._pipeline.infer(source, inference, call)
        except InvalidImage as error:
            raise at_element(error, 0) from error
        task.fill(0, result, self._pipeline.record(inference, call, result, started))

    async def _images(
        self, tensor: InputTensor, requested: LoadedVariant, call: Call
    ) -> list[Source]:
        """Return the images of a tensor; numbers are converted by a decode thread."""
        limits = self._pipeline.limits
        if tensor.datatype == "BYTES":
            return encoded_images(tensor, limits)
        if tensor.datatype == "UINT8" and tensor.raw is not None:
            return raw_images(tensor, limits)
        if tensor.datatype == "UINT8":
            convert = partial(raw_images, tensor, limits)
        else:
            convert = partial(normalized_images, tensor, requested.spec.transform)
        return cast("list[Source]", await self._pipeline.decode_pool.submit(convert, call))

    def _requested(self, request: Any) -> LoadedVariant:
        spec = self._spec(request, "model_name", "model_version")
        return self._variants.find(spec.name, "model_name")

    def _spec(self, request: Any, name_field: str, version_field: str) -> VariantSpec:
        """Return the variant that a request names.

        Raises:
            InvalidRequest: It names none, or another version than 1.
            VariantNotFound: There is none of that name.
        """
        name, asked = getattr(request, name_field), getattr(request, version_field)
        if not name:
            raise InvalidRequest(
                name_field,
                f"is empty; name a variant, or {self._config.model_name!r} for the default one",
            )
        if asked not in ("", VERSION):
            raise InvalidRequest(
                version_field, f"is {asked!r}; each variant has the version {VERSION!r} only"
            )
        if name == self._config.model_name and self._variants.by_name(name) is None:
            return self._variants.default
        return self._variants.resolve(name, name_field)


class _BatchWriter:
    """Writes the results of a batch into an `InferTask`; an image that fails ends the call.

    Args:
        task: The request's wanted outputs.
    """

    def __init__(self, task: InferTask) -> None:
        self._task = task
        self.inference: InferenceTask = task.inference
        self.result_bytes = task.result_bytes

    def fill_outcome(self, index: int, result: Result, image: ImageEvent) -> None:
        """Write the result of the image at an index."""
        self._task.fill(index, result, image)

    def fill_error(self, index: int, error: Exception, request_id: str) -> None:
        """Raise the error: a tensor has no place for one."""
        raise at_element(error, index) if isinstance(error, InvalidImage) else error


async def _messages(reader: MessageReader) -> AsyncIterator[Received]:
    while (received := await reader.next()) is not EOF:
        yield received


def _release(permit: Permit, computed: asyncio.Future[Any]) -> None:
    """Release the permit of a request that has ended, or was cancelled before it began."""
    permit.release()
    if not computed.cancelled():
        computed.exception()  # marks it as retrieved, or asyncio would log it


def _as_it_is(image: Source) -> Source:
    return image


def _outputs(spec: VariantSpec) -> dict[str, int]:
    """Return the sizes of a variant's outputs, by their names."""
    outputs = {EMBEDDING: EMBEDDING_DIMENSION}
    return {PROBABILITIES: len(spec.categories), **outputs} if spec.categories else outputs
