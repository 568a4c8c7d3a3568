"""Calls of a client that openapi-python-client has generated from `/openapi.json`.

Run in an environment of its own by `make openapi-clients`; imports nothing of this project. Prints
a line of JSON: the outcome of each call.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from resnet_images import AuthenticatedClient, Client
from resnet_images.api.embedding_clients import embeddings, vectors
from resnet_images.api.images import classify, classify_batch, embed, embed_batch
from resnet_images.api.open_inference_protocol import (
    oip_all_stats,
    oip_config,
    oip_index,
    oip_infer,
    oip_model,
    oip_ready,
)
from resnet_images.api.variants import list_variants
from resnet_images.models import (
    EmbeddingsRequest,
    ImageForm,
    ImagesForm,
    InferInput,
    InferInputDatatype,
    InferRequest,
    NumberType,
    Priority,
    Problem,
    WeaviateRequest,
)
from resnet_images.types import File


def main() -> None:
    """Make the calls with the arguments URL, token, image file and its base64."""
    url, token, image, encoded = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
    content = Path(image).read_bytes()
    text = Path(encoded).read_text("ascii")

    def file(data: bytes = content) -> File:
        return File(io.BytesIO(data), file_name="photo.jpg")

    client = AuthenticatedClient(url, token=token)
    form = classify.sync(client=client, body=ImageForm(file()), top_k=2, include_embedding=True)
    body = classify.sync(client=client, body=file(), x_priority=Priority.BULK, x_timeout_ms=60_000)
    vector = embed.sync(client=client, body=file(), l2_normalize=True, type_=NumberType.FLOAT16)
    three = ImagesForm([file(), file(b"no image"), file()])
    classified = classify_batch.sync(client=client, body=three, top_k=1)
    embedded = embed_batch.sync(client=client, body=three)
    listed = list_variants.sync(client=client)
    broken = classify.sync_detailed(client=client, body=file(b"no image"))
    unauthorized = classify.sync(client=Client(url), body=file())
    missing = embed.sync(client=client, body=file(), variant="pets")
    uri = f"data:image/jpeg;base64,{text}"
    inputs = [InferInput("IMAGE", [1], InferInputDatatype.BYTES, data=[text])]
    inferred = oip_infer.sync("resnet50", client=client, body=InferRequest(inputs))
    refused = oip_infer.sync("pets", client=client, body=InferRequest(inputs))
    assert isinstance(broken.parsed, Problem)
    outcome = {
        "form": [one.label for one in form.classification.categories],
        "form embedding": len(form.classification.embedding.values),
        "body": len(body.classification.categories),
        "timing": body.timing.total_us > 0,
        "vector": len(vector.embedding.values),
        "type": vector.embedding.type_.value,
        "space": vector.embedding.space,
        "batch": [bool(one.classification) for one in classified.results],
        "batch error": classified.results[1].error.code,
        "embed batch": [bool(one.embedding) for one in embedded.results],
        "variants": [(one.name, one.state.value) for one in listed.variants],
        "error": [int(broken.status_code), broken.parsed.code, broken.parsed.field],
        "no token": [unauthorized.status, unauthorized.reason],
        "no variant": [missing.status, missing.served],
        "embeddings": len(
            embeddings.sync(client=client, body=EmbeddingsRequest(uri)).data[0].embedding
        ),
        "embeddings error": embeddings.sync(
            client=client, body=EmbeddingsRequest("a text")
        ).error.param,
        "weaviate": vectors.sync(client=client, body=WeaviateRequest(text)).dim,
        "weaviate error": vectors.sync(client=client, body=WeaviateRequest("-")).error[:5],
        "infer": [one.name for one in inferred.outputs],
        "infer error": refused.error[:10],
        "oip": [
            oip_ready.sync(client=client).ready,
            oip_model.sync("resnet50", client=client).versions,
            oip_config.sync("resnet50", client=client).platform != "",
            len(oip_all_stats.sync(client=client).model_stats),
            [one.state for one in oip_index.sync(client=client)],
        ],
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
