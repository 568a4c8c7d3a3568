"""The gRPC server: its services, each behind a guard, and its addresses."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from resnet50.v1 import inference_pb2, inference_pb2_grpc, variant_pb2, variant_pb2_grpc
from resnet50_server.auth.identity import ADMIN, INFER, Authenticator
from resnet50_server.events import ServerEvents
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.quotas import Limits
from resnet50_server.settings import Settings

from .drain import stop_when_idle
from .guard import RpcGuard
from .health import HealthReporter
from .inference_service import InferenceServicer
from .listen import listen, server_options
from .receive_slots import ReceiveSlots
from .send_buffer import SendBuffer
from .variant_service import VariantServicer

if TYPE_CHECKING:
    from resnet50_server.auth.tls import TlsReloader

    from .oip.service import OipServicer

log = logging.getLogger(__name__)

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_VARIANT = variant_pb2.DESCRIPTOR.services_by_name["VariantService"]
INFERENCE_SERVICE = _INFERENCE.full_name
SERVICES = (INFERENCE_SERVICE, _VARIANT.full_name)
# Full names of all methods, by their short ones.
METHODS = {
    method.name: f"{service.full_name}/{method.name}"
    for service in (_INFERENCE, _VARIANT)
    for method in service.methods
}
STREAMS = frozenset(
    method.name
    for service in (_INFERENCE, _VARIANT)
    for method in service.methods
    if method.server_streaming
)
# Methods about a single image, and that of the Open Inference Protocol, which fails as a whole.
IMAGE_METHODS = (
    *(
        method.name
        for method in _INFERENCE.methods
        if not method.server_streaming and "images" not in method.input_type.fields_by_name
    ),
    "ModelInfer",
)
# Of the variants' service; its other methods are for administrators.
PUBLIC_METHODS = ("ListVariants", "GetVariant")
# Services that are not about images: variants, reflection, channelz; and health checks. Of each:
# messages that arrive at once, and streams that may receive one each.
SIDE_SERVICES, SIDE_RECEIVED, SIDE_STREAMS, PROBE_STREAMS = 2, 8, 8, 256
# For variants, reflection and channelz; the streams of the latter two may receive large messages.
ADMIN_LIMITS = Limits(
    requests=256, requests_per_caller=64, streams=SIDE_STREAMS, streams_per_caller=SIDE_STREAMS // 2
)
# For health checks. Watching health is a stream that never ends.
PROBE_LIMITS = Limits(
    requests=256,
    requests_per_caller=64,
    streams=PROBE_STREAMS,
    streams_per_caller=PROBE_STREAMS // 4,
)
# Their requests are small and arrive with the call.
SMALL_RECEIVE_TIMEOUT_S = 2.0


def methods(settings: Settings) -> dict[str, str]:
    """Return the full names of all methods, by their short ones."""
    if not settings.oip:
        return METHODS
    from resnet50.oip.messages import METHODS as OIP_METHODS

    return METHODS | OIP_METHODS


def streaming_methods(settings: Settings) -> dict[str, bool]:
    """Return which methods answer with a stream, by their short names."""
    streams = STREAMS
    if settings.oip:
        from resnet50.oip.messages import STREAMS as OIP_STREAMS

        streams |= OIP_STREAMS
    return {name: name in streams for name in methods(settings)}


class GrpcServer:
    """The gRPC server with all services.

    Args:
        settings: Its limits and addresses.
        authenticator: Identifies callers.
        admission: For images.
        events: Receive every call but health checks.
        inference: Service for images.
        variants: Service for variants.
        health: Reports health.
        oip: Service of the Open Inference Protocol; None if it is off.

    Attributes:
        receiving: Requests about images that are being received.
        unsent: Responses that clients have not taken.
        addresses: The bound addresses.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        admission: Admission,
        events: ServerEvents,
        inference: InferenceServicer,
        variants: VariantServicer,
        health: HealthReporter,
        oip: OipServicer | None = None,
    ) -> None:
        self._settings = settings
        self._oip = oip
        self._authenticator = authenticator
        self._inference = inference
        self.receiving = ReceiveSlots(
            settings.max_receive_bytes,
            settings.max_receive_bytes_per_caller,
            settings.max_message_bytes,
            settings.max_requests,
            settings.receive_timeout_s,
        )
        self.unsent = SendBuffer(settings.max_send_bytes, settings.send_timeout_s)
        self.addresses: list[str] = []
        self._server = grpc.aio.server(options=server_options(settings))
        self._add_inference(admission, events)
        self._add_admin(variants, events)
        self._add_health(health)

    async def listen(self, certificates: TlsReloader | None) -> None:
        """Bind the addresses of the settings and accept calls; see `listen.listen`."""
        self.addresses = await listen(self._server, self._settings, certificates)
        await self._server.start()
        log.info("accepting connections at %s", ", ".join(self.addresses))

    async def stop(self, timeout_s: float) -> None:
        """Accept no more calls, wait for those in flight, then cancel the rest.

        Args:
            timeout_s: The most that calls in flight may take, in seconds.
        """
        await stop_when_idle(self._server, lambda: self._inference.idle, timeout_s)
        self.unsent.close()

    def _add_inference(self, admission: Admission, events: ServerEvents) -> None:
        guard = RpcGuard(self._authenticator, admission, self.receiving, self.unsent, events)
        add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        guard.add(add, self._inference, self._server, INFER, pass_call=True)
        self._add_oip(guard, "inference", INFER)

    def _add_admin(self, variants: VariantServicer, events: ServerEvents) -> None:
        """Add variants, reflection and channelz: with limits of their own, also during a drain."""
        guard, server = self._guard(ADMIN_LIMITS, events), self._server
        admin = {one.name: ADMIN for one in _VARIANT.methods if one.name not in PUBLIC_METHODS}
        add = variant_pb2_grpc.add_VariantServiceServicer_to_server
        guard.add(add, variants, server, INFER, admin)
        self._add_oip(guard, "metadata", INFER)
        self._add_oip(guard, "loading", ADMIN)
        add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        guard.add(add, self._reflection(), server, INFER)
        if self._settings.channelz:
            from grpc_channelz.v1 import channelz, channelz_pb2_grpc

            add = channelz_pb2_grpc.add_ChannelzServicer_to_server
            guard.add(add, channelz.aio.ChannelzServicer(), server, ADMIN)

    def _add_health(self, reporter: HealthReporter) -> None:
        guard = self._guard(PROBE_LIMITS, ServerEvents())
        add = health_pb2_grpc.add_HealthServicer_to_server
        guard.add(add, reporter.servicer, self._server, None)
        self._add_oip(guard, "health", None)
        guard.add_unknown_methods(self._server)

    def _add_oip(self, guard: RpcGuard, group: str, scope: str | None) -> None:
        """Add methods of the Open Inference Protocol, if it is on; see `oip.registration`."""
        if self._oip is not None:
            from .oip.registration import METHOD_GROUPS, add_methods

            add = partial(add_methods, METHOD_GROUPS[group])
            guard.add(add, self._oip, self._server, scope, pass_call=True)

    def _reflection(self) -> reflection.aio.ReflectionServicer:
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        if self._oip is None:
            return reflection.aio.ReflectionServicer(names)
        from resnet50.oip.messages import SERVICE, reflection_pool

        return reflection.aio.ReflectionServicer(
            (*names, SERVICE.full_name), pool=reflection_pool(names)
        )

    def _guard(self, limits: Limits, events: ServerEvents) -> RpcGuard:
        largest = self._settings.max_message_bytes
        receiving = ReceiveSlots(
            SIDE_RECEIVED * largest,
            SIDE_RECEIVED // 2 * largest,
            largest,
            limits.requests,
            min(SMALL_RECEIVE_TIMEOUT_S, self._settings.receive_timeout_s),
        )
        return RpcGuard(self._authenticator, Admission(limits), receiving, self.unsent, events)
