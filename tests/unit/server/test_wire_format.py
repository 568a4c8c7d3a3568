"""Fields of a message are counted before it is parsed."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from resnet50.oip.messages import message_class
from resnet50.v1 import image_pb2, inference_pb2
from resnet50_server.api.wire_format import MAX_FIELDS, bounded
from resnet50_server.errors import InvalidRequest

BATCH = inference_pb2.ClassifyBatchRequest
EMPTY_IMAGE = b"\x12\x00"


def parser(message):
    return bounded(message.FromString, message.DESCRIPTOR)


def test_batch_within_the_limit_is_parsed():
    images = [image_pb2.Image(encoded=b"\x12\x00" * 100_000)] * 3
    request = BATCH(options=inference_pb2.ClassifyOptions(top_k=2**31), images=images)
    assert parser(BATCH)(request.SerializeToString()) == request


def test_elements_up_to_the_limit_are_parsed():
    assert len(parser(BATCH)(EMPTY_IMAGE * MAX_FIELDS).images) == MAX_FIELDS


def test_one_element_more_is_refused_unparsed():
    with pytest.raises(InvalidRequest, match=rf"more than {MAX_FIELDS} fields.*send fewer"):
        parser(BATCH)(EMPTY_IMAGE * (MAX_FIELDS + 1))


def test_packed_numbers_count_by_their_bytes():
    request = message_class("ModelInferRequest")
    shape = request(inputs=[{"shape": [1] * (MAX_FIELDS - 2)}]).SerializeToString()
    assert len(parser(request)(shape).inputs[0].shape) == MAX_FIELDS - 2
    longer = request(inputs=[{"shape": [1] * MAX_FIELDS}]).SerializeToString()
    with pytest.raises(InvalidRequest, match=f"more than {MAX_FIELDS} fields"):
        parser(request)(longer)


def test_messages_without_repeated_fields_are_not_walked():
    request = inference_pb2.ClassifyRequest
    assert parser(request) == request.FromString


@pytest.mark.parametrize(
    "content",
    [
        b"\x12",  # a length is missing
        b"\x12\x05abc",  # longer than the message
        b"\x12" + b"\x80" * 11,  # a length of too many bytes
        b"\x13\x14" + EMPTY_IMAGE * (MAX_FIELDS + 1),  # a group before too many
        b"\x0d\x00",  # four bytes, one is there
    ],
)
def test_malformed_content_is_a_decode_error(content):
    with pytest.raises(DecodeError):
        parser(BATCH)(content)
