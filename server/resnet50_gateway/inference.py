"""Calls of the contract that classify or embed one image, or several."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resnet50.v1 import image_pb2, inference_pb2

from .exchange import Exchange
from .problems import Problem

SERVICE: Final = "/resnet50.v1.InferenceService"
CHUNK_BYTES = 2**20
# Of a message beside its image: options, tags and lengths.
MESSAGE_OVERHEAD = 4096


@dataclass(frozen=True)
class Task:
    """A method of the contract, with its batch, upload and stream.

    Attributes:
        name: "Classify" or "Embed", the prefix of its messages.
        options: Class of its options.
    """

    name: str
    options: Any

    def message(self, kind: str) -> Any:
        """Return the class of a message, such as "BatchRequest"."""
        return getattr(inference_pb2, f"{self.name}{kind}")

    def path(self, kind: str = "") -> str:
        """Return the path of a method: "", "Batch", "Upload" or "Stream"."""
        return f"{SERVICE}/{self.name}{kind}"


CLASSIFY = Task("Classify", inference_pb2.ClassifyOptions)
EMBED = Task("Embed", inference_pb2.EmbedOptions)


async def infer(
    task: Task, image: bytes, options: Any, exchange: Exchange, max_message_bytes: int
) -> Any:
    """Return the response for one image file, uploaded in chunks if it is large.

    Args:
        task: Classify or embed.
        image: An encoded image.
        options: Of the task.
        exchange: The request.
        max_message_bytes: Of the servers.

    Raises:
        Problem: The call failed.
    """
    if len(image) + MESSAGE_OVERHEAD <= max_message_bytes:
        request = task.message("Request")(options=options, image=image_pb2.Image(encoded=image))
        content = await exchange.call(task.path(), request.SerializeToString())
    else:
        content = await exchange.upload(task.path("Upload"), _chunks(task, image, options))
    return task.message("Response").FromString(content)


async def infer_batch(
    task: Task,
    images: Sequence[bytes],
    options: Any,
    exchange: Exchange,
    max_message_bytes: int,
) -> Any:
    """Return a batch response with one result for each image, in their order.

    Images that do not fit into one message are sent in several calls.

    Args:
        task: Classify or embed.
        images: Encoded images.
        options: Of the task.
        exchange: The request.
        max_message_bytes: Of the servers.

    Raises:
        Problem: A call failed as a whole.
    """

    async def of_group(group: Sequence[bytes]) -> Any:
        if len(group) == 1 and len(group[0]) + MESSAGE_OVERHEAD > max_message_bytes:
            return await _alone(task, group[0], options, exchange, max_message_bytes)
        request = task.message("BatchRequest")(
            options=options, images=[image_pb2.Image(encoded=image) for image in group]
        )
        content = await exchange.call(task.path("Batch"), request.SerializeToString())
        return task.message("BatchResponse").FromString(content)

    groups = _groups(images, max_message_bytes - MESSAGE_OVERHEAD)
    if len(groups) == 1:
        return await of_group(groups[0])
    whole = task.message("BatchResponse")()
    for response in await _all_or_none([of_group(group) for group in groups]):
        if not whole.HasField("variant") and response.HasField("variant"):
            whole.variant.CopyFrom(response.variant)
        whole.results.extend(response.results)
    return whole


async def _all_or_none(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return the results of calls made at once; if one fails, the others have ended as well.

    Raises:
        Problem: One failed. The memory of the images may be released now.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _alone(
    task: Task, image: bytes, options: Any, exchange: Exchange, max_message_bytes: int
) -> Any:
    """Return a batch response of one image that is uploaded, with its error if it is invalid."""
    batch = task.message("BatchResponse")()
    result = batch.results.add()
    try:
        response = await infer(task, image, options, exchange, max_message_bytes)
    except Problem as problem:
        if problem.code != "INVALID_ARGUMENT":
            raise
        result.error.code = 3
        result.error.message = problem.message
        for detail in problem.details:
            result.error.details.add().CopyFrom(detail)
        return batch
    batch.variant.CopyFrom(response.variant)
    outcome = "classification" if task is CLASSIFY else "embedding"
    getattr(result, outcome).CopyFrom(getattr(response, outcome))
    result.timing.CopyFrom(response.timing)
    result.image_warnings.extend(response.image_warnings)
    return batch


def _groups(images: Sequence[bytes], room: int) -> list[list[bytes]]:
    """Return the images in groups that fit into a message, in their order."""
    groups: list[list[bytes]] = []
    left = -1
    for image in images:
        size = len(image) + 16  # tags and lengths of two messages
        if size > left:
            groups.append([])
            left = room
        groups[-1].append(image)
        left -= size
    return groups


def _chunks(task: Task, image: bytes, options: Any) -> list[bytes]:
    """Return the messages of an upload."""
    first = task.message("UploadOptions")(options=options)
    request = task.message("UploadRequest")
    view = memoryview(image)
    return [
        request(options=first).SerializeToString(),
        *(
            request(chunk=bytes(view[start : start + CHUNK_BYTES])).SerializeToString()
            for start in range(0, len(image), CHUNK_BYTES)
        ),
    ]
