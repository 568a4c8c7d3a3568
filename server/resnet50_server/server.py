"""The server: put the parts together, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from resnet50.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_server.api.guard import Boundary
from resnet50_server.api.health import ServingHealth
from resnet50_server.api.inference_service import InferenceServicer, Patience
from resnet50_server.api.listen import certificates_of, listen, server_options
from resnet50_server.api.memory_bound import (
    PROBE_STREAMS,
    SIDE_RECEIVED,
    SIDE_STREAMS,
    describe,
    memory_bound,
)
from resnet50_server.api.outbox import Outbox
from resnet50_server.api.receiving import Receiving
from resnet50_server.api.variant_service import VariantServicer
from resnet50_server.auth.identity import ADMIN, INFER, Authenticator
from resnet50_server.auth.tls import TlsReloader
from resnet50_server.auth.tokens import Tokens
from resnet50_server.engines.devices import cuda_available
from resnet50_server.events import CompositeEvents, ServerEvents
from resnet50_server.images.formats import ImageLimits
from resnet50_server.inference.admission import Admission, Limits
from resnet50_server.inference.decode_pool import DecodePool, decode_threads
from resnet50_server.inference.pipeline import Pipeline
from resnet50_server.inference.response_cache import ResponseCache
from resnet50_server.lifecycle.control import Budget, VariantControl
from resnet50_server.lifecycle.devices import Devices, cpu_division
from resnet50_server.lifecycle.loader import load_variant
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.lifecycle.self_test import SelfTests
from resnet50_server.lifecycle.watcher import DirectoryWatcher
from resnet50_server.rollout.router import Traffic
from resnet50_server.runtime.cpus import cpu_budget, cpus
from resnet50_server.runtime.fatal import FatalError
from resnet50_server.settings import Settings
from resnet50_server.snapshot import Parts, take_snapshot
from resnet50_server.telemetry.gauges import GaugeCollector
from resnet50_server.telemetry.http_server import MetricsServer
from resnet50_server.telemetry.logs import RequestLog
from resnet50_server.telemetry.loop_lag import LoopLagProbe
from resnet50_server.telemetry.metrics import Metrics
from resnet50_server.telemetry.snapshot import ServerSnapshot
from resnet50_server.variants.directory import VariantsDirectory
from resnet50_server.variants.spec import VariantSpec, parse_variant

if TYPE_CHECKING:
    from resnet50_server.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_VARIANT = variant_pb2.DESCRIPTOR.services_by_name["VariantService"]
# All other methods of the variants' service are for administrators.
FOR_ALL = ("ListVariants", "GetVariant")
SERVICES = (_INFERENCE.full_name, _VARIANT.full_name)
# While draining: how often to look whether all images are answered, and how long their replies may
# take to leave.
DRAIN_POLL_S = 0.02
LAST_REPLIES_S = 0.5
NO_LIMIT_S = 1e6
# When gRPC stops it cancels the calls that it holds but has not given us yet, and tells their
# callers CANCELLED (grpc/grpc#41785). So calls are refused first, until for so long none has come,
# and at most for so long.
QUIET_S = 0.02
LAST_CALLS_S = 1.0
# What is not about images. Its streams, reflection and channelz, may receive large messages.
SIDE_LIMITS = Limits(
    requests=256, requests_per_caller=64, streams=SIDE_STREAMS, streams_per_caller=SIDE_STREAMS // 2
)
# Health checks. Watching health is a stream that never ends.
PROBE_LIMITS = Limits(
    requests=256,
    requests_per_caller=64,
    streams=PROBE_STREAMS,
    streams_per_caller=PROBE_STREAMS // 4,
)
# How long a message of these two may take to arrive; it is some bytes long and comes with its call.
SIDE_RECEIVE_TIMEOUT_S = 2.0


class Server:
    """A model server in this process; `start`, then `stop`, on one event loop.

    Args:
        settings: How to serve.
        on_loaded: Called for each variant that is loaded, before it answers.

    Attributes:
        broken: Set when the server is lost.
        fault: Why it is.
        certificates: What TLS is spoken with.
        addresses: Where it listens.
    """

    def __init__(self, settings: Settings, on_loaded: Callable[[], object] = lambda: None) -> None:
        self._settings = settings
        self._on_loaded = on_loaded
        self._admission = Admission(_limits(settings))
        self._receiving = Receiving(
            settings.max_receive_bytes,
            settings.max_receive_bytes_per_caller,
            settings.max_message_bytes,
            settings.max_requests,
            settings.receive_timeout_s,
        )
        self._outbox = Outbox(settings.max_send_bytes, settings.send_timeout_s)
        self._metrics = _metrics() if settings.metrics_listen is not None else None
        self._tracing = _tracing(settings)
        request_log = RequestLog() if settings.log_level == "debug" else None
        listeners = (self._metrics, self._tracing, request_log)
        self._events = CompositeEvents(one for one in listeners if one is not None)
        self._health = ServingHealth(("", *SERVICES), self._unready, self._variants_unready)
        self._grpc: grpc.aio.Server | None = None
        self.broken = asyncio.Event()
        self.fault: FatalError | None = None
        self._devices = Devices(settings, self._on_broken, self._events)
        # The stub engines need no processor, like a GPU.
        on_cpu = settings.engine not in ("null", "timed") and (
            settings.device == "cpu" or not cuda_available()
        )
        decoding = settings.decode_threads or decode_threads(cpus(), engine_on_cpu=on_cpu)
        divided = cpu_division(settings)
        log.info(
            "CPU budget: %s; decode threads: %d; an engine on the CPU: %d batches at once, threads"
            " of each: %d",
            cpu_budget(),
            decoding,
            divided.instances,
            divided.each,
        )
        log.info("%s", describe(memory_bound(settings, divided.instances)))
        self._decode_pool = DecodePool(
            decoding,
            settings.decode_timeout_s,
            self._on_broken,
        )
        self._cache = (
            ResponseCache(settings.response_cache_bytes) if settings.response_cache_bytes else None
        )
        self._variants: VariantRegistry | None = None
        self._inference: InferenceServicer | None = None
        self._control: VariantControl | None = None
        self._self_tests: SelfTests | None = None
        self._watching: asyncio.Task[None] | None = None
        self.certificates: TlsReloader | None = None
        self._parts: Parts | None = None
        self._loaded = False
        self._metrics_server: MetricsServer | None = None
        self._lag: LoopLagProbe | None = None
        self.addresses: list[str] = []

    async def start(self) -> None:
        """Listen at once, not yet healthy; load and warm up; then become healthy.

        Without `listen_while_loading` it listens only once it is healthy.

        Raises:
            WeightsError: A variant cannot be served.
            UnusableSetting: A file or an address that a setting names cannot be used.
            OSError: An address cannot be listened on.
        """
        settings = self._settings
        if self._tracing is not None:
            self._tracing.start()
        self.certificates = certificates_of(settings)
        tokens = Tokens(settings.tokens_file) if settings.tokens_file is not None else None
        specs = [parse_variant(argument) for argument in settings.variants]
        self._variants = variants = VariantRegistry(specs, settings.default_variant)
        self._self_tests = SelfTests(variants)
        variants.on_health_change(lambda _: self._health.look())
        traffic = Traffic(variants, lambda *image: pipeline.infer(*image))
        if settings.variants_dir is not None:
            self._events.add(traffic)
        variants.on_loaded(lambda name: self._on_loaded())
        if self._cache is not None:
            variants.on_retired(self._cache.drop)
            variants.on_removed(self._cache.forget)
        self._parts = Parts(
            self._admission, self._decode_pool, self._devices, variants, traffic, self._cache
        )
        self._export(variants)
        self._grpc = server = grpc.aio.server(options=server_options(settings))
        limits = ImageLimits(
            settings.max_image_bytes, settings.max_image_pixels, settings.decode_timeout_s
        )
        pipeline = Pipeline(
            self._admission,
            self._decode_pool,
            limits,
            self._events,
            self._cache,
            settings.max_decode_pixels,
        )
        self._inference = InferenceServicer(variants, pipeline, _patience(settings), traffic)
        self._control = control = self._variant_control(variants, traffic)
        variant_servicer = VariantServicer(variants, control, traffic)
        callers = Authenticator(tokens)

        def boundary(limits: Limits, events: ServerEvents) -> Boundary:
            largest = settings.max_message_bytes
            receiving = Receiving(
                SIDE_RECEIVED * largest,
                SIDE_RECEIVED // 2 * largest,
                largest,
                limits.requests,
                min(SIDE_RECEIVE_TIMEOUT_S, settings.receive_timeout_s),
            )
            return Boundary(callers, Admission(limits), receiving, self._outbox, events)

        images = Boundary(callers, self._admission, self._receiving, self._outbox, self._events)
        images.add(
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            self._inference,
            server,
            INFER,
        )
        # What is not about images has room of its own, and goes on during a drain.
        side = boundary(SIDE_LIMITS, self._events)
        side.add(
            variant_pb2_grpc.add_VariantServiceServicer_to_server,
            variant_servicer,
            server,
            INFER,
            {method.name: ADMIN for method in _VARIANT.methods if method.name not in FOR_ALL},
        )
        side.add(
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server,
            reflection.aio.ReflectionServicer(
                (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            ),
            server,
            INFER,
        )
        if settings.channelz:
            _add_channelz(side, server)
        probes = boundary(PROBE_LIMITS, ServerEvents())
        probes.add(
            health_pb2_grpc.add_HealthServicer_to_server, self._health.servicer, server, None
        )
        probes.refuse_unknown(server)
        self._health.start()
        if settings.listen_while_loading:
            await self._listen(server)
        log.info("loading the variants")
        watch = self._directory_watcher(variants, control)
        if watch is not None:
            await watch.begin()
        await control.begin()
        if watch is not None:
            self._watching = asyncio.create_task(watch.run(), name="watch variants_dir")
        self._loaded = True
        self._health.look()
        if not settings.listen_while_loading:
            await self._listen(server)

    async def turn_away(self) -> None:
        """Take no more requests, and refuse those on their way until there are none."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + min(LAST_CALLS_S, self._settings.drain_timeout_s)
        await self._refuse()
        while loop.time() < ends:
            before = self._admission.turned_away
            await asyncio.sleep(QUIET_S)
            if self._admission.turned_away == before:
                break

    async def stop(self) -> None:
        """Answer what was accepted, within `drain_timeout_s`; refuse what comes; then stop."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._settings.drain_timeout_s
        await self._refuse()
        if self._grpc is not None:
            # Takes no more calls, and waits for those that run; but one that watches the server's
            # health never ends, so it is cut short once all images have been answered. The first
            # `stop` waits without a limit of its own: of two whose limits end together, one would
            # cancel the calls of a server that the other has destroyed, and crash.
            stopping = asyncio.create_task(self._grpc.stop(NO_LIMIT_S), name="stop gRPC")
            while not stopping.done() and loop.time() < ends:
                if self._inference is None or self._inference.idle:
                    ends = min(ends, loop.time() + LAST_REPLIES_S)
                    await asyncio.wait([stopping], timeout=ends - loop.time())
                    break
                await asyncio.wait([stopping], timeout=DRAIN_POLL_S)
            await self._grpc.stop(None)
            await stopping
        if self._watching is not None:
            self._watching.cancel()
        if self._self_tests is not None:
            self._self_tests.close()
        if self._control is not None:
            self._control.close()
        await self._devices.close()
        self._decode_pool.close()
        self._outbox.close()
        self._health.close()
        if self._lag is not None:
            self._lag.close()
        if self._metrics_server is not None:
            await self._metrics_server.close()
        if self._tracing is not None:
            await self._tracing.close()

    @property
    def metrics_url(self) -> str | None:
        """Where metrics are served over HTTP; None if they are not."""
        return None if self._metrics_server is None else self._metrics_server.url

    def snapshot(self) -> ServerSnapshot:
        """Return the state of all parts, once started; call it on the event loop."""
        assert self._parts is not None
        cancelled = {} if self._metrics is None else self._metrics.cancelled_by_stage
        return take_snapshot(self._parts, self._unready() is None, cancelled, self._events.errors)

    def _export(self, variants: VariantRegistry) -> None:
        """Serve metrics, and say how the server is, if that is asked for."""
        metrics, address = self._metrics, self._settings.metrics_listen
        if metrics is None or address is None:
            return
        metrics.init_series(spec.name for spec in variants.specs)
        variants.on_loaded(lambda name: metrics.init_series([name]))
        variants.on_removed(metrics.forget)
        metrics.registry.register(GaugeCollector(self.snapshot))
        self._lag = LoopLagProbe(metrics.lag)
        self._metrics_server = MetricsServer(address, metrics.registry, self._dead, self._unready)

    def _dead(self) -> str | None:
        """Say why the server is lost; None if it is not."""
        return None if self.fault is None else str(self.fault)

    def _unready(self) -> str | None:
        """Say why the server takes no images; None if it does."""
        if (stopped := self._stopped()) is not None:
            return stopped
        if not self._loaded or self._variants is None:
            return "the variants are being loaded"
        default = self._variants.default
        problem = self._problem_of(default)
        return None if problem is None else f"variant {default.name}, the default: {problem}"

    def _variants_unready(self) -> dict[str, str | None]:
        """Say the same of each variant, by its name in the health service."""
        if self._variants is None:
            return {}
        stopped = self._stopped()
        return {
            f"{_INFERENCE.full_name}/{one.name}": stopped or self._problem_of(one)
            for one in self._variants.specs
        }

    def _stopped(self) -> str | None:
        """Say why the server takes no images for any variant; None if it does."""
        return "the server is shutting down" if self._admission.draining else self._dead()

    def _problem_of(self, spec: VariantSpec) -> str | None:
        assert self._variants is not None  # the spec is one of them
        held = self._variants.loaded_variant(spec)
        return "it is being loaded" if held is None else held.queue.health.problem

    def _variant_control(self, variants: VariantRegistry, traffic: Traffic) -> VariantControl:
        settings, directory = self._settings, self._settings.variants_dir
        return VariantControl(
            variants,
            partial(load_variant, settings, self._devices),
            Budget(settings.max_variants_bytes, settings.evict_variants),
            settings.drain_timeout_s,
            None if directory is None else VariantsDirectory(directory),
            traffic.naming,
        )

    def _directory_watcher(
        self, variants: VariantRegistry, control: VariantControl
    ) -> DirectoryWatcher | None:
        every_s = self._settings.watch_variants_s
        if not every_s or control.directory is None:
            return None
        return DirectoryWatcher(control.directory, variants, control, every_s)

    async def _listen(self, server: grpc.aio.Server) -> None:
        self.addresses = await listen(server, self._settings, self.certificates)
        await server.start()
        log.info("listening on %s", ", ".join(self.addresses))

    async def _refuse(self) -> None:
        """Say to who asks for the health, and to who calls, that no more requests are taken."""
        if self._inference is not None:
            self._inference.drain()
        self._health.look()

    def _on_broken(self, fault: FatalError) -> None:
        self.fault = self.fault or fault
        self._health.look()
        self.broken.set()


def _metrics() -> Metrics:
    methods = {
        method.name: method.server_streaming
        for service in (_INFERENCE, _VARIANT)
        for method in service.methods
    }
    of_image = [method.name for method in _INFERENCE.methods if not method.server_streaming]
    try:
        release = version("resnet50-serving")
    except PackageNotFoundError:  # run from its sources
        release = "unknown"
    return Metrics(methods, of_image, release)


def _add_channelz(boundary: Boundary, server: grpc.aio.Server) -> None:
    """Let admins see what gRPC knows of its connections and calls."""
    from grpc_channelz.v1 import channelz, channelz_pb2_grpc

    boundary.add(
        channelz_pb2_grpc.add_ChannelzServicer_to_server,
        channelz.aio.ChannelzServicer(),
        server,
        ADMIN,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        requests=settings.max_requests,
        bytes=settings.max_request_bytes,
        streams=settings.max_streams,
        uploads=settings.max_uploads,
        requests_per_caller=settings.max_requests_per_caller,
        bytes_per_caller=settings.max_request_bytes_per_caller,
        streams_per_caller=settings.max_streams_per_caller,
        uploads_per_caller=settings.max_uploads_per_caller,
        rate_per_caller=settings.max_rate_per_caller,
    )


def _tracing(settings: Settings) -> Tracing | None:
    if settings.otlp_endpoint is None:
        return None
    from resnet50_server.telemetry.tracing import Tracing

    methods = {
        method.name: f"{service.full_name}/{method.name}"
        for service in (_INFERENCE, _VARIANT)
        for method in service.methods
    }
    return Tracing(settings.otlp_endpoint, settings.trace_ratio, methods)


def _patience(settings: Settings) -> Patience:
    return Patience(
        upload_idle_timeout_s=settings.upload_idle_timeout_s,
        upload_timeout_s=settings.upload_timeout_s,
        stream_idle_timeout_s=settings.stream_idle_timeout_s,
        max_frames_in_flight=settings.max_frames_in_flight,
        # One batch on the device, one that fills meanwhile.
        frames_in_flight=2 * settings.max_batch_size,
    )
