"""Tensors of the Open Inference Protocol over REST, as messages of its gRPC form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from resnet50.oip.messages import message_class

from .json_input import decode_image
from .problems import invalid

BINARY_SIZE = "binary_data_size"
BINARY = "binary_data"
BINARY_OUTPUT = "binary_data_output"
MAX_DEPTH = 8
_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}


def request_message(
    name: str, version: str, header: dict[str, Any], binary: bytes
) -> tuple[Any, dict[str, bool]]:
    """Return a ModelInferRequest, and which outputs are wanted in binary form, by name.

    The name "" stands for outputs that are not listed.

    Args:
        name: The model.
        version: Its version.
        header: The JSON.
        binary: The tensors behind it.

    Raises:
        Problem: A member is wrong; names it.
    """
    # KServe's client repeats the model of the path in `model_name` and `model_version`.
    _only(header, ("id", "parameters", "inputs", "outputs", "model_name", "model_version"), "")
    request_id = header.get("id", "")
    if not isinstance(request_id, str):
        raise invalid("id", "must be a text")
    parameters = _object(header.get("parameters"), "parameters")
    as_binary = {"": bool(parameters.pop(BINARY_OUTPUT, False))}
    message = message_class("ModelInferRequest")(
        model_name=name, model_version=version, id=request_id
    )
    _add_parameters(message.parameters, parameters, "parameters")
    offset = 0
    for index, tensor in enumerate(_listed(header.get("inputs"), "inputs")):
        offset += _add_input(message, _object(tensor, f"inputs[{index}]"), index, binary, offset)
    if offset != len(binary):
        raise invalid(
            "body",
            f"has {len(binary)} bytes behind its JSON; {BINARY_SIZE} of the inputs add up to"
            f" {offset}",
        )
    for index, output in enumerate(_listed(header.get("outputs"), "outputs")):
        field = f"outputs[{index}]"
        output = _object(output, field)
        _only(output, ("name", "parameters"), field)
        wanted = message.outputs.add(name=_text(output.get("name"), f"{field}.name"))
        parameters = _object(output.get("parameters"), f"{field}.parameters")
        as_binary[wanted.name] = bool(parameters.pop(BINARY, as_binary[""]))
        _add_parameters(wanted.parameters, parameters, f"{field}.parameters")
    return message, as_binary


def response_parts(response: Any, as_binary: dict[str, bool]) -> tuple[dict[str, Any], list[bytes]]:
    """Return the JSON of a ModelInferResponse, and the tensors that follow it in binary form."""
    outputs: list[dict[str, Any]] = []
    contents: list[bytes] = []
    for tensor, content in zip(response.outputs, response.raw_output_contents, strict=True):
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if as_binary.get(tensor.name, as_binary[""]):
            output["parameters"] = {BINARY_SIZE: len(content)}
            contents.append(content)
        elif tensor.datatype == "BYTES":
            output["data"] = [one.decode("utf-8", "replace") for one in _elements(content)]
        else:
            output["data"] = np.frombuffer(content, _DTYPES[tensor.datatype]).tolist()
        outputs.append(output)
    header: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        header["id"] = response.id
    header["parameters"] = {
        key: getattr(value, value.WhichOneof("parameter_choice") or "bool_param")
        for key, value in response.parameters.items()
    }
    header["outputs"] = outputs
    return header, contents


def _add_input(message: Any, tensor: dict[str, Any], index: int, binary: bytes, offset: int) -> int:
    """Add an input; return how many of the binary bytes it has."""
    field = f"inputs[{index}]"
    _only(tensor, ("name", "shape", "datatype", "parameters", "data"), field)
    shape = _listed(tensor.get("shape"), f"{field}.shape")
    if any(type(size) is not int or not 0 <= size < 2**31 for size in shape):
        raise invalid(f"{field}.shape", "must be a list of whole numbers from 0 on")
    datatype = _text(tensor.get("datatype"), f"{field}.datatype")
    parameters = _object(tensor.get("parameters"), f"{field}.parameters")
    size = parameters.pop(BINARY_SIZE, None)
    added = message.inputs.add(
        name=_text(tensor.get("name"), f"{field}.name"), datatype=datatype, shape=shape
    )
    _add_parameters(added.parameters, parameters, f"{field}.parameters")
    if "shared_memory_region" in parameters:
        return 0  # the server refuses it
    if size is None:
        data = _listed(tensor.get("data"), f"{field}.data")
        message.raw_input_contents.append(_raw(data, datatype, shape, f"{field}.data"))
        return 0
    if "data" in tensor:
        raise invalid(f"{field}.data", f"is given beside {BINARY_SIZE}; leave one of them out")
    if type(size) is not int or not 0 <= size <= len(binary) - offset:
        raise invalid(
            f"{field}.parameters.{BINARY_SIZE}",
            f"is {str(size)[:32]}, but {len(binary) - offset} bytes are left behind the JSON",
        )
    message.raw_input_contents.append(binary[offset : offset + size])
    return size


def _raw(data: list[Any], datatype: str, shape: list[int], field: str) -> bytes:
    """Return the raw form of a tensor's JSON; of an unknown datatype b"", which is refused."""
    if datatype not in ("BYTES", *_DTYPES):
        return b""
    flat = list(_flat(data, field))
    if len(flat) != math.prod(shape):
        raise invalid(field, f"has {len(flat)} elements, its shape {shape} has {math.prod(shape)}")
    if datatype == "BYTES":
        files = [decode_image(one, f"{field}[{index}]") for index, one in enumerate(flat)]
        return b"".join(len(one).to_bytes(4, "little") + one for one in files)
    for index, one in enumerate(flat):
        if type(one) not in (int, float):
            raise invalid(f"{field}[{index}]", "must be a number")
        if datatype == "UINT8" and not (type(one) is int and 0 <= one <= 255):
            raise invalid(f"{field}[{index}]", "must be a whole number, 0 to 255")
    try:
        return np.array(flat, _DTYPES[datatype]).tobytes()
    except OverflowError:
        raise invalid(field, "has a number that float32 cannot hold") from None


def _flat(data: list[Any], field: str, depth: int = 1) -> Iterator[Any]:
    if depth > MAX_DEPTH:
        raise invalid(field, f"has lists within lists more than {MAX_DEPTH} deep")
    for one in data:
        if isinstance(one, list):
            yield from _flat(one, field, depth + 1)
        else:
            yield one


def _elements(content: bytes) -> Iterator[bytes]:
    """Yield the elements of the raw form of a BYTES tensor."""
    start = 0
    while start < len(content):
        end = start + 4 + int.from_bytes(content[start : start + 4], "little")
        yield content[start + 4 : end]
        start = end


def _add_parameters(target: Any, parameters: dict[str, Any], field: str) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        elif isinstance(value, str):
            target[name].string_param = value
        else:
            raise invalid(f"{field}.{name[:64]}", "must be a text, a number, true or false")


def _object(value: Any, field: str) -> dict[str, Any]:
    """Return a copy of an object; {} for a member that is absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(field, "must be an object")
    return dict(value)


def _listed(value: Any, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(field, "must be a list")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise invalid(field, "must be a text")
    return value


def _only(content: dict[str, Any], known: tuple[str, ...], field: str) -> None:
    for name in content:
        if name not in known:
            where = f"{field}.{name[:64]}" if field else name[:64]
            raise invalid(where, f"is no member here; there are {', '.join(known)}")
