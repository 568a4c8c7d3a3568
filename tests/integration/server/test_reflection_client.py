"""A client that was not written here: it learns the contract by reflection."""

from __future__ import annotations

import base64
import warnings

from tests.support.pictures import encode, photo_like

with warnings.catch_warnings():
    # The package's own, about its dependencies.
    warnings.simplefilter("ignore")
    from grpc_requests import Client as ReflectionClient


def test_public_client_over_reflection_gets_a_classification(null_address):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = ReflectionClient.get_by_endpoint(null_address)
        reply = client.request(
            "resnet50.v1.InferenceService",
            "Classify",
            {
                "options": {"top_k": 2},
                "image": {"encoded": base64.b64encode(encode(photo_like(32, 32)))},
            },
        )
    assert {
        "grpc.health.v1.Health",
        "resnet50.v1.InferenceService",
        "resnet50.v1.VariantService",
    } <= set(client.service_names)
    labels = [category["label"] for category in reply["classification"]["categories"]]
    assert labels == ["tench", "goldfish"]
    assert reply["variant"]["name"] == "IMAGENET1K_V2"
