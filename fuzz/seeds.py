"""Messages to mutate: valid requests of every RPC, wrong ones, replies and files of settings."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from fuzz import seed_images
from resnet50.oip.messages import SERVICE, message_class
from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    result_pb2,
    variant_pb2,
)
from resnet50_server.api.status import to_status
from resnet50_server.errors import InvalidImage, Overloaded, TransformMismatch, VariantNotFound
from tests.support.oip import files_request, infer_request
from tests.support.pictures import encode, photo_like

INFERENCE = "/resnet50.v1.InferenceService/"
VARIANTS = "/resnet50.v1.VariantService/"


def calls(image: bytes | None = None) -> dict[str, list[tuple[str, list[bytes]]]]:
    """Return valid calls of every RPC: its path, and the messages that it sends.

    Args:
        image: That they ask about; default: a small JPEG.

    Returns:
        Calls by the name of their RPC.
    """
    encoded = image or encode(photo_like(24, 16), "JPEG", quality=30)
    pictured = image_pb2.Image(encoded=encoded)
    raw = image_pb2.Image(raw=seed_images.raw_images()["PIXEL_FORMAT_NV12 padded by 4"])
    classify = inference_pb2.ClassifyOptions(
        variant="tiny", top_k=3, min_probability=0.1, include_embedding=True
    )
    embed = inference_pb2.EmbedOptions(l2_normalize=True, type=result_pb2.EMBEDDING_TYPE_FLOAT16)
    made: dict[str, list[tuple[str, list[bytes]]]] = {}

    def add(path: str, *messages: Any) -> None:
        sent = [message.SerializeToString() for message in messages]
        made.setdefault(path.rpartition("/")[2], []).append((path, sent))

    for kind, options in (("Classify", classify), ("Embed", embed)):
        request = getattr(inference_pb2, kind + "Request")
        add(INFERENCE + kind, request(options=options, image=pictured))
        add(INFERENCE + kind, request(options=options, image=raw))
        add(INFERENCE + kind, request(image=pictured))
        add(INFERENCE + kind, request(options=options, image=seed_images.preprocessed()))
        batch = getattr(inference_pb2, kind + "BatchRequest")
        add(INFERENCE + kind + "Batch", batch(options=options, images=[pictured, raw, pictured]))
        add(INFERENCE + kind + "Batch", batch(images=[seed_images.preprocessed(), raw]))
        part = getattr(inference_pb2, kind + "UploadRequest")
        wanted = getattr(inference_pb2, kind + "UploadOptions")
        digest = hashlib.sha256(encoded).digest()
        chunks = [encoded[:10], encoded[10:100], encoded[100:]]
        add(
            INFERENCE + kind + "Upload",
            part(options=wanted(options=options, sha256=digest)),
            *(part(chunk=chunk) for chunk in chunks),
        )
        add(INFERENCE + kind + "Upload", part(options=wanted()), part(chunk=encoded))
        crop = seed_images.preprocessed().preprocessed
        add(
            INFERENCE + kind + "Upload",
            part(options=wanted(transform_digest=crop.transform_digest)),
            *(part(chunk=chunk) for chunk in (crop.pixels[:1000], crop.pixels[1000:])),
        )
        frame = getattr(inference_pb2, kind + "StreamRequest")
        config = getattr(inference_pb2, kind + "StreamConfig")
        for delivery, window in (
            (inference_pb2.DELIVERY_ORDERED, 2),
            (inference_pb2.DELIVERY_LATEST, 0),
        ):
            add(
                INFERENCE + kind + "Stream",
                frame(config=config(options=options, delivery=delivery, max_in_flight=window)),
                *(
                    frame(frame=inference_pb2.Frame(frame_id=number, image=shown))
                    for number, shown in ((0, pictured), (1, raw), (2, seed_images.preprocessed()))
                ),
            )
    add(VARIANTS + "ListVariants", variant_pb2.ListVariantsRequest())
    add(VARIANTS + "GetVariant", variant_pb2.GetVariantRequest(name="tiny"))
    add(VARIANTS + "GetVariant", variant_pb2.GetVariantRequest())
    add(VARIANTS + "LoadVariant", variant_pb2.LoadVariantRequest(name="broken"))
    add(VARIANTS + "LoadVariant", variant_pb2.LoadVariantRequest(name="other", replace=True))
    add(VARIANTS + "UnloadVariant", variant_pb2.UnloadVariantRequest(name="tiny"))
    add(VARIANTS + "UnloadVariant", variant_pb2.UnloadVariantRequest(name="other"))
    add(VARIANTS + "SetDefaultVariant", variant_pb2.SetDefaultVariantRequest(name="tiny"))
    split = variant_pb2.TrafficSplit(
        variant="tiny", candidate="second", canary_percent=5, shadow_percent=10
    )
    add(VARIANTS + "SetTrafficSplit", variant_pb2.SetTrafficSplitRequest(split=split))
    add(VARIANTS + "ListTrafficSplits", variant_pb2.ListTrafficSplitsRequest())
    add(VARIANTS + "DeleteTrafficSplit", variant_pb2.DeleteTrafficSplitRequest(variant="tiny"))
    return made


def oip_calls() -> list[tuple[str, list[bytes]]]:
    """Return valid calls of every RPC of the Open Inference Protocol."""
    service = f"/{SERVICE.full_name}/"
    photo = photo_like(24, 16)
    file, pixels = encode(photo, "JPEG", quality=30), np.asarray(photo)
    # The network's input: black, which is -mean / std.
    crop = np.full((1, 3, 32, 32), -1, np.float32)
    labels = files_request(file, outputs=("PROBABILITIES",), model_name="tiny")
    labels.outputs[0].parameters["classification"].int64_param = 2
    hurried = files_request(file, file, id="two")
    hurried.parameters["timeout"].int64_param = 60_000_000
    hurried.parameters["priority"].uint64_param = 2
    typed = infer_request("UINT8", [1, 16, 24, 3], None)
    typed.inputs[0].contents.uint_contents.append(
        b"".join(bytes([one]) if one < 128 else bytes([one, 1]) for one in pixels.tobytes())
    )
    infer = [
        labels,
        hurried,
        typed,
        infer_request("UINT8", [1, 16, 24, 3], pixels.tobytes(), "EMBEDDING"),
        infer_request("FP32", [1, 3, 32, 32], crop.tobytes()),
    ]
    made = [(f"{service}ModelInfer", [request.SerializeToString()]) for request in infer]
    made.append((f"{service}ModelStreamInfer", [one.SerializeToString() for one in infer]))
    for method in SERVICE.methods:
        named = {"name", "model_name"} & set(method.input_type.fields_by_name)
        if method.name not in ("ModelInfer", "ModelStreamInfer"):
            request = message_class(method.input_type.name)(**dict.fromkeys(named, "tiny"))
            made.append((f"{service}{method.name}", [request.SerializeToString()]))
    return made


def wrong_calls() -> list[tuple[str, list[bytes]]]:
    """Return calls in which one thing is wrong, and all else is as it should be."""
    pictured = image_pb2.Image(encoded=encode(photo_like(24, 16), "JPEG", quality=30))
    chunk = inference_pb2.ClassifyUploadRequest(chunk=pictured.encoded)
    classify, embed = inference_pb2.ClassifyOptions, inference_pb2.EmbedOptions
    upload, stream = inference_pb2.ClassifyUploadRequest, inference_pb2.ClassifyStreamRequest
    upload_options = inference_pb2.ClassifyUploadOptions
    config = inference_pb2.ClassifyStreamConfig()
    delivered = inference_pb2.ClassifyStreamConfig(delivery=9)  # type: ignore[arg-type]
    frames = [
        stream(frame=inference_pb2.Frame(frame_id=number, image=pictured)) for number in (1, 0)
    ]
    made: list[tuple[str, list[Any]]] = [
        *(
            ("Classify", [inference_pb2.ClassifyRequest(options=options, image=pictured)])
            for options in (
                *(classify(top_k=4), classify(top_k=2**32 - 1), classify(variant="none")),
                *(classify(min_probability=math.nan), classify(min_probability=-1.0)),
            )
        ),
        *(
            ("Embed", [inference_pb2.EmbedRequest(options=options, image=pictured)])
            for options in (embed(type=7), embed(variant="x" * 100))  # type: ignore[arg-type]
        ),
        *(
            ("Classify", [inference_pb2.ClassifyRequest(options=options, image=one)])
            for options, one in seed_images.wrong_preprocessed()
        ),
        ("ClassifyUpload", [chunk]),
        ("ClassifyUpload", [upload(options=upload_options(sha256=b"short")), chunk]),
        ("ClassifyUpload", [upload(options=upload_options(sha256=bytes(32))), chunk]),
        ("ClassifyUpload", [upload(options=upload_options()), upload(chunk=b""), chunk]),
        ("ClassifyUpload", [upload(options=upload_options()), chunk, upload()]),
        ("ClassifyUpload", [upload(options=upload_options())]),
        ("ClassifyStream", frames),
        ("ClassifyStream", [stream(config=config), *frames]),
        ("ClassifyStream", [stream(config=config), frames[0], stream(config=config)]),
        ("ClassifyStream", [stream(config=delivered), frames[0]]),
    ]
    return [
        (INFERENCE + name, [message.SerializeToString() for message in messages])
        for name, messages in made
    ]


def replies() -> list[bytes]:
    """Return replies of a server, each behind the number of its kind; see `targets.replies`."""
    about: dict[str, Any] = {
        "variant": result_pb2.VariantRef(name="tiny", digest="0" * 64),
        "timing": result_pb2.Timing(
            decode_us=1, queue_us=2, compute_us=3, total_us=6, batch_size=1
        ),
    }
    embedding = result_pb2.Embedding(
        values=bytes(range(16)),
        type=result_pb2.EMBEDDING_TYPE_FLOAT32,
        dimension=4,
        space="tiny@000000000000",
    )
    half = result_pb2.Embedding(
        values=bytes(8), type=result_pb2.EMBEDDING_TYPE_FLOAT16, dimension=4, l2_normalized=True
    )
    category = result_pb2.Category(index=1, label="dog", probability=0.5)
    shown = result_pb2.Classification(categories=[category], embedding=embedding)
    dropped = result_pb2.Dropped(replaced_by_frame_id=7)
    described = variant_pb2.Variant(
        name="tiny",
        aliases=["DEFAULT"],
        state=variant_pb2.VARIANT_STATE_READY,
        digest="0" * 64,
        categories=["cat", "dog"],
        transform=variant_pb2.Transform(
            resize=36, crop=32, mean=[0.5] * 3, std=[0.5] * 3, digest="0" * 64
        ),
        published_accuracy=variant_pb2.PublishedAccuracy(dataset="own", acc_at_1=80.0),
        latency=variant_pb2.BatchLatency(alpha_ms=1.0, beta_ms=0.1),
        quantization=variant_pb2.Quantization(calibration_images=8, top_1_agreement=0.9),
    )
    errors = [
        InvalidImage("image.encoded", "is broken"),
        VariantNotFound("options.variant", "huge", ["tiny", "DEFAULT"]),
        Overloaded("max_requests", "the server is full", 0.1),
        TransformMismatch("image.preprocessed.transform_digest", "1" * 64, "0" * 64, "resize 36"),
    ]
    statuses = [to_status(error, "a-request") for error in errors]
    streamed, embedded = inference_pb2.ClassifyStreamResponse, inference_pb2.EmbedStreamResponse
    made: list[tuple[int, Any]] = [
        (0, inference_pb2.ClassifyResponse(classification=shown, **about)),
        (1, inference_pb2.EmbedResponse(embedding=embedding, **about)),
        (1, inference_pb2.EmbedResponse(embedding=half, **about)),
        (2, streamed(frame_id=0, classification=shown, **about)),
        (2, streamed(frame_id=0, dropped=dropped)),
        (2, streamed(frame_id=0, error=statuses[0])),
        (3, embedded(frame_id=0, embedding=half, **about)),
        (4, variant_pb2.ListVariantsResponse(variants=[described])),
        *((5, status) for status in statuses),
        *((6 + status.code, status) for status in statuses),
    ]
    return [bytes([kind]) + message.SerializeToString() for kind, message in made]


def files() -> list[bytes]:
    """Return tokens, variant.json, transform and config files, each behind its letter."""
    entry = (
        f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\nexpires = 2030-01-31\n'
    )
    accuracy = '{"dataset": "own", "acc_at_1": 80, "acc_at_5": null}'
    described = (
        '{"categories": ["cat", "dog"], "transform": {"resize": 36, "crop": 32,'
        ' "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},'
        f' "description": "small", "published_accuracy": {accuracy}}}'
    )
    config = (
        'listen = ["127.0.0.1:0"]\nvariants = ["IMAGENET1K_V2", "own=random:1"]\nengine = "null"\n'
        'device = "cpu"\nmax_batch_size = 8\ndecode_timeout_s = 1.5\nlog_level = "info"\n'
        'allow_plaintext = true\nmetrics_listen = "127.0.0.1:9090"\n'
    )
    squashed = (
        '{"categories": ["cat", "dog"], "transform": {"resize": [36, 48], "pad_to_square": true,'
        ' "fill": [1, 2, 3], "antialias": false, "channel_order": "BGR", "input_range": [0, 255],'
        ' "mean": [103.9, 116.8, 123.7], "std": [1, 1, 1]}}'
    )
    letterbox = described.replace('"resize": 36', '"resize": {"longer_side": 36}')
    preset = (
        "ImageClassification(\n    crop_size=[32]\n    resize_size=[36]\n    mean=[0.5, 0.5, 0.5]\n"
        "    std=[0.5, 0.5, 0.5]\n    interpolation=InterpolationMode.BILINEAR\n)"
    )
    composed = (
        "Compose(\n    Resize(size=36, interpolation=bilinear, max_size=None, antialias=True)\n"
        "    CenterCrop(size=(32, 32))\n    ToTensor()\n    Normalize(mean=[0.5], std=[0.5])\n)"
    )
    letterboxed = (
        "t = Compose([v2.Resize(None, max_size=36), CenterCrop((32, 36)), PILToTensor(),"
        " ToDtype(torch.float32), Normalize(tensor([103.9]), tensor([1.0]))])"
    )
    return [
        b"t" + entry.encode(),
        *(b"v" + one.encode() for one in (described, squashed, letterbox)),
        *(b"x" + one.encode() for one in (preset, composed, letterboxed)),
        b"c" + config.encode(),
    ]
