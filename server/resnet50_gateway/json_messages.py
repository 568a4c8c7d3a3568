"""Messages of the contract as JSON.

Members are named as in protobuf's JSON. Numbers are numbers, also those of 64 bits, and the values
of an embedding are an array; an error is as in problem details.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from google.protobuf.message import Message

from resnet50.v1 import result_pb2

from .problems import problem_of_status

EMBEDDING = result_pb2.Embedding.DESCRIPTOR.full_name
STATUS = "google.rpc.Status"
_DTYPES: dict[int, np.dtype[Any]] = {
    result_pb2.EMBEDDING_TYPE_FLOAT32: np.dtype("<f4"),
    result_pb2.EMBEDDING_TYPE_FLOAT16: np.dtype("<f2"),
}


def vector_of(embedding: result_pb2.Embedding) -> np.ndarray[Any, Any]:
    """Return the values of an embedding, float32 or float16 `[dimension]`."""
    return np.frombuffer(embedding.values, _DTYPES[embedding.type])


def to_json(message: Message, *, original_names: bool = False) -> dict[str, Any]:
    """Return a message as an object of JSON.

    Fields of messages are left out if they are absent; others are always there, with their default
    if it was not sent.

    Args:
        message: The message.
        original_names: Whether members are named as in the proto, snake_case.
    """
    full_name = message.DESCRIPTOR.full_name
    if full_name == STATUS:
        return problem_of_status(message).to_json()
    content: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        name = field.name if original_names else field.json_name
        if full_name == EMBEDDING and field.name == "values":
            assert isinstance(message, result_pb2.Embedding)
            content["values"] = vector_of(message).tolist()
        elif field.is_repeated:
            content[name] = [_value(field, one, original_names) for one in value]
        else:
            content[name] = _value(field, value, original_names)
    return content


def _value(field: Any, value: Any, original_names: bool) -> Any:
    if field.message_type is not None:
        return to_json(value, original_names=original_names)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
