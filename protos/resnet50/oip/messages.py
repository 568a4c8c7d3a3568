"""Messages of the Open Inference Protocol, in a descriptor pool of their own.

protos/oip/open_inference.proto says why they are not stubs.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SET = descriptor_pb2.FileDescriptorSet.FromString(
    files(__package__).joinpath("open_inference.binpb").read_bytes()
)
_POOL = descriptor_pool.DescriptorPool()
for _file in _SET.file:
    _POOL.AddSerializedFile(_file.SerializeToString())

SERVICE = _POOL.FindServiceByName("inference.GRPCInferenceService")
METHODS = {method.name: f"{SERVICE.full_name}/{method.name}" for method in SERVICE.methods}
STREAMS = frozenset(method.name for method in SERVICE.methods if method.server_streaming)


def message_class(name: str) -> type[Any]:
    """Return the class of a message, by its name in the protocol."""
    found: type[Any] = message_factory.GetMessageClass(
        _POOL.FindMessageTypeByName(f"{SERVICE.file.package}.{name}")
    )
    return found


def reflection_pool(services: tuple[str, ...]) -> descriptor_pool.DescriptorPool:
    """Return a pool with the protocol and the files of other services, for server reflection.

    Args:
        services: Full names of services in protobuf's default pool.
    """
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        pool.AddSerializedFile(file.serialized_pb)

    for service in services:
        add(descriptor_pool.Default().FindServiceByName(service).file)
    add(SERVICE.file)
    return pool
