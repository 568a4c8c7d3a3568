"""Messages of the standard health service, in a descriptor pool of their own.

grpcio-health-checking pins protobuf's major version, and other packages register the same file in
protobuf's process-wide pool; a private pool avoids both (docs/adr/0005-health-descriptor-pool.md).
"""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

from .errors import InvalidRequestError

CHECK = "/grpc.health.v1.Health/Check"
# grpc.health.v1.HealthCheckResponse.ServingStatus
HealthStatus: TypeAlias = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]
"""Health of a service; see `Client.health`."""
STATUSES: dict[int, HealthStatus] = {
    0: "UNKNOWN",
    1: "SERVING",
    2: "NOT_SERVING",
    3: "SERVICE_UNKNOWN",
}


@functools.cache
def _messages() -> tuple[Any, Any]:
    """Return the classes of HealthCheckRequest and HealthCheckResponse."""
    # Imported here, as only health checks need them.
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    response = file.message_type.add(name="HealthCheckResponse")
    # An enum on the wire is an int32.
    response.field.add(name="status", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request_class, response_class = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.health.v1.{name}"))
        for name in ("HealthCheckRequest", "HealthCheckResponse")
    )
    return request_class, response_class


def check_request(service: str) -> bytes:
    """Return the serialised request of a check.

    Raises:
        InvalidRequestError: The name is no text.
    """
    try:
        request = _messages()[0](service=service)
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise InvalidRequestError(
            f"service: {service!r} is not a service's name: {error}", field="service"
        ) from error
    content: bytes = request.SerializeToString()
    return content


def status_of(reply: bytes) -> HealthStatus:
    """Return the status in a serialised reply: "SERVING", "NOT_SERVING", ..."""
    return STATUSES.get(_messages()[1].FromString(reply).status, "UNKNOWN")


def response(status: str) -> bytes:
    """Return the serialised response of a check, for `testing.FakeServer`."""
    number = next(number for number, name in STATUSES.items() if name == status)
    content: bytes = _messages()[1](status=number).SerializeToString()
    return content
