"""Messages of the contract as JSON.

Members are named as in protobuf's JSON. Numbers are numbers, also those of 64 bits, and the values
of an embedding are an array; an error is as in problem details.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from resnet50.v1 import result_pb2

from .problems import problem_of_status

EMBEDDING = result_pb2.Embedding.DESCRIPTOR.full_name
STATUS = "google.rpc.Status"
_DTYPES: dict[int, np.dtype[Any]] = {
    result_pb2.EMBEDDING_TYPE_FLOAT32: np.dtype("<f4"),
    result_pb2.EMBEDDING_TYPE_FLOAT16: np.dtype("<f2"),
}

_JSON_TYPES = {
    FieldDescriptor.CPPTYPE_STRING: "string",  # bytes as well, which are base64
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
}
_COMPONENT = "#/components/schemas/"


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


def add_schemas(
    schemas: dict[str, Any], message: Descriptor, *, original_names: bool = False
) -> None:
    """Add the JSON Schema of what `to_json` returns of a message, and of those within it.

    Args:
        schemas: By name of message or enum; those that are there are kept.
        message: The message.
        original_names: As for `to_json`.
    """
    if message.name in schemas:
        return
    properties: dict[str, Any] = {}
    schemas[message.name] = {
        "type": "object",
        "required": [
            field.name if original_names else field.json_name
            for field in message.fields
            if not field.has_presence
        ],
        "properties": properties,
    }
    for field in message.fields:
        value: dict[str, Any]
        if message.full_name == EMBEDDING and field.name == "values":
            value = {"type": "array", "items": {"type": "number"}}
        else:
            value = _schema_of(schemas, field, original_names)
            if field.is_repeated:
                value = {"type": "array", "items": value}
        properties[field.name if original_names else field.json_name] = value


def _schema_of(
    schemas: dict[str, Any], field: FieldDescriptor, original_names: bool
) -> dict[str, Any]:
    """Return the schema of one value of a field."""
    if field.message_type is not None:
        if field.message_type.full_name == STATUS:
            return {"$ref": _COMPONENT + "Error"}
        add_schemas(schemas, field.message_type, original_names=original_names)
        return {"$ref": _COMPONENT + field.message_type.name}
    if field.enum_type is not None:
        names = [value.name for value in field.enum_type.values]
        schemas.setdefault(field.enum_type.name, {"type": "string", "enum": names})
        return {"$ref": _COMPONENT + field.enum_type.name}
    return {"type": _JSON_TYPES.get(field.cpp_type, "integer")}
