"""Seeds to mutate: sound files of every format and valid requests of every RPC, all made here."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from resnet50.oip.messages import SERVICE, message_class
from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    result_pb2,
    variant_pb2,
)
from resnet50_server.api.status import to_status
from resnet50_server.errors import InvalidImage, Overloaded, TransformMismatch, VariantNotFound
from resnet50_server.images.transform import Transform
from tests.support import hostile, hostile_heif
from tests.support.oip import files_request, infer_request
from tests.support.pictures import encode, heic, photo_like, picture

INFERENCE = "/resnet50.v1.InferenceService/"
VARIANTS = "/resnet50.v1.VariantService/"


def without_times(content: bytes) -> bytes:
    """Return an ISO media file with creation times of 0, so that it is the same each time."""
    changed = bytearray(content)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        at = content.find(box) + 4
        changed[at + 4 : at + 4 + (16 if content[at] else 8)] = bytes(16 if content[at] else 8)
    return bytes(changed)


def images(side: int = 24) -> dict[str, bytes]:
    """Return files of every format and of most of its kinds, by what they are.

    Args:
        side: Their width in pixels; they are two thirds as high.
    """
    wide, high = side, side * 2 // 3
    photo, drawn = photo_like(wide, high), picture(wide, high)
    clear = drawn.convert("RGBA")
    clear.putalpha(photo.convert("L"))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    palette = drawn.quantize(16)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"

    def film() -> dict[str, Any]:  # made anew, as saving leaves traces in pictures
        return {"save_all": True, "append_images": [photo_like(wide, high, 1), drawn.copy()]}

    profile = encode_profile()
    made = {
        "jpeg": encode(photo, "JPEG"),
        "jpeg grey": encode(photo.convert("L"), "JPEG"),
        "jpeg cmyk": encode(photo.convert("CMYK"), "JPEG"),
        "jpeg progressive": encode(photo, "JPEG", progressive=True, subsampling=0),
        "jpeg exif": encode(photo, "JPEG", exif=exif, icc_profile=profile, comment=b"hello"),
        "jpeg restarts": encode(photo, "JPEG", restart_marker_rows=1),
        "jpeg mpo": encode(photo, "MPO", **film()),
        "jpeg without an end": encode(photo, "JPEG")[:-2],
        "jpeg progressive without an end": encode(photo, "JPEG", progressive=True)[:-2] + b"\0\0",
        "jpeg before a video": encode(photo, "JPEG") + b"\0\0\0\x18ftypmp42\xff\xda\xff\xd9",
        "jpeg behind padding": b"\0\r\n\xff" + encode(photo, "JPEG"),
        "jpeg with a thumbnail": hostile.with_segments(
            hostile.segment(0xE2, encode(photo, "JPEG", progressive=True)), side=24
        ),
        # Decoded at a half of its size.
        "jpeg large": encode(Image.new("RGB", (288, 288), (9, 99, 200)), "JPEG"),
        "jpeg large progressive": encode(
            Image.new("RGB", (300, 290), (9, 99, 200)), "JPEG", progressive=True
        ),
        "png": encode(photo),
        "png grey": encode(photo.convert("L")),
        "png grey alpha": encode(clear.convert("LA")),
        "png alpha": encode(clear),
        "png palette": encode(palette, transparency=b"\0\x80"),
        "png 1 bit": encode(drawn.convert("1")),
        "png 16 bits": encode(deep),
        "png interlaced": hostile.png(wide, high, lines=bytes(4 * wide * high), interlaced=True),
        "png 16 bits rgb": hostile.png(8, 8, lines=bytes(49 * 8), depth=16),
        "png exif": encode(photo, exif=exif, icc_profile=profile),
        "png text": hostile.png(
            *(8, 8),
            hostile.chunk(b"tEXt", b"Comment\0hello"),
            hostile.chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"hello")),
            hostile.chunk(b"iTXt", b"Comment\0\0\0en\0\0hello"),
            hostile.chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\n49492a00"),
            hostile.chunk(b"tRNS", bytes(6)),
            hostile.chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
            hostile.chunk(b"gAMA", struct.pack(">I", 45455)),
            lines=bytes(25 * 8),
        ),
        "png animated": encode(photo, **film()),
        "webp": encode(photo, "WEBP"),
        "webp lossless": encode(drawn, "WEBP", lossless=True),
        "webp alpha": encode(clear, "WEBP", exif=exif, icc_profile=profile),
        "webp animated": encode(photo, "WEBP", **film()),
        "gif": encode(palette, "GIF"),
        "gif transparent": encode(palette, "GIF", transparency=0, comment=b"hello"),
        "gif animated": encode(drawn, "GIF", **film(), disposal=2, loop=0),
        "gif interlaced": encode(drawn.convert("L"), "GIF", interlace=True),
        "gif of a corner": hostile.gif(wide, high, frame=(2, 2)),
        "avif": encode(photo, "AVIF"),
        "avif grey": encode(photo.convert("L"), "AVIF"),
        "avif alpha": encode(clear, "AVIF", exif=exif, icc_profile=profile),
        "avif animated": without_times(encode(photo, "AVIF", **film())),
        "heic": heic(photo),
        "heic alpha": heic(clear),
        "heic exif": heic(photo, exif=exif.tobytes()),
        "avif of a larger picture": hostile_heif.avif((wide, high), (2048, 2048)),
        "heic of a larger picture": hostile_heif.heic((wide, high), (2048, 2048)),
        "bmp": encode(photo, "BMP"),
        "bmp grey": encode(photo.convert("L"), "BMP"),
        "bmp alpha": encode(clear, "BMP"),
        "bmp 1 bit": encode(drawn.convert("1"), "BMP"),
        "bmp runs": hostile.bmp(8, 8, b"\x08\1\0\0" * 7 + b"\0\3\1\2\3\0\5\1\0\1", 1),
        "bmp runs of 4 bits": _bmp_of_4_bits(),
        "tiff": encode(photo, "TIFF"),
        "tiff lzw": encode(photo, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encode(clear, "TIFF", compression="tiff_deflate"),
        "tiff jpeg": encode(photo, "TIFF", compression="jpeg"),
        "tiff packbits": encode(drawn.convert("L"), "TIFF", compression="packbits"),
        "tiff fax": encode(drawn.convert("1"), "TIFF", compression="group4"),
        "tiff palette": encode(palette, "TIFF"),
        "tiff 16 bits": encode(deep, "TIFF"),
        "tiff floats": encode(drawn.convert("F"), "TIFF"),
        "tiff cmyk": encode(photo.convert("CMYK"), "TIFF", compression="lzma"),
        "tiff pages": encode(photo, "TIFF", **film()),
        "tiff strips": hostile.tiff(
            8, 8, content=bytes(64), rows=4, counts=[32, 32], offsets=[0, 32]
        ),
        "tiff exif": encode(photo, "TIFF", exif=exif, icc_profile=profile),
        "tiff 10 bits": _tiff_of_depth(10, 0),
        "tiff 12 bits": _tiff_of_depth(12, 1),
        "tiff 14 bits": _tiff_of_depth(14, 1),
        "bigtiff": encode(photo, "TIFF", big_tiff=True),
        "tiff of the other order": b"MM\0*\0\0\0\x08" + _big_tiff(),
    }
    return made


def encode_profile() -> bytes:
    """Return a colour profile of little more than its header."""
    return struct.pack(">I", 132) + bytes(32) + b"acsp" + bytes(92)


def _bmp_of_4_bits() -> bytes:
    whole = bytearray(hostile.bmp(8, 8, b"\x08\x12\0\0" * 8 + b"\0\1", 2))
    whole[28] = 4
    return bytes(whole)


def _tiff_of_depth(bits: int, photometric: int) -> bytes:
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, bits), (259, 3, 1, 1), (277, 3, 1, 1)]
    at = 8 + 2 + 12 * 9 + 4
    tags += [(262, 3, 1, photometric), (273, 4, 1, at), (278, 4, 1, 8), (279, 4, 1, 8 * bits)]
    return b"II*\0\x08\0\0\0" + hostile.directory(sorted(tags)) + bytes(range(8 * bits))


def _big_tiff() -> bytes:
    numbers = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    tags = [(number, kind, 1, value << 16) for number, kind, value in numbers]
    at = 8 + 2 + 12 * 9 + 4
    tags += [(273, 4, 1, at), (278, 4, 1, 8), (279, 4, 1, 64)]
    return hostile.directory(sorted(tags), order=">") + bytes(range(64))


def raw_images() -> dict[str, image_pb2.RawImage]:
    """Return raw images of every pixel format, packed and with padded rows."""
    made = {}
    for name, pixel_format in image_pb2.PixelFormat.items():
        if pixel_format == image_pb2.PIXEL_FORMAT_UNSPECIFIED:
            continue
        row = 8 * {"RGB": 3, "BGR": 3, "RGBA": 4}.get(name.removeprefix("PIXEL_FORMAT_"), 1)
        planar = name.endswith(("NV12", "I420"))
        for padding in (0, 4):
            rows = 6 * 3 // 2 if planar else 6
            made[f"{name} padded by {padding}"] = image_pb2.RawImage(
                width=8,
                height=6,
                pixel_format=pixel_format,
                row_stride_bytes=row + padding if padding else 0,
                pixels=bytes(number % 251 for number in range(rows * (row + padding))),
            )
            if planar and padding:
                made[f"{name} in BT.709, full range"] = _in_bt709(made[f"{name} padded by 4"])
    return made


def _in_bt709(raw: image_pb2.RawImage) -> image_pb2.RawImage:
    other = image_pb2.RawImage()
    other.CopyFrom(raw)
    other.color_matrix = image_pb2.COLOR_MATRIX_BT709
    other.color_range = image_pb2.COLOR_RANGE_FULL
    return other


def preprocessed() -> image_pb2.Image:
    """Return an image that the caller has preprocessed for the variant `tiny`."""
    transform = Transform(resize=36, crop=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    pixels = np.asarray(photo_like(32, 32)).tobytes()
    fields = image_pb2.PreprocessedImage(pixels=pixels, transform_digest=transform.digest)
    return image_pb2.Image(preprocessed=fields)


def calls(image: bytes | None = None) -> dict[str, list[tuple[str, list[bytes]]]]:
    """Return valid calls of every RPC: its path, and the messages that it sends.

    Args:
        image: That they ask about; default: a small JPEG.

    Returns:
        Calls by the name of their RPC.
    """
    encoded = image or encode(photo_like(24, 16), "JPEG", quality=30)
    pictured = image_pb2.Image(encoded=encoded)
    raw = image_pb2.Image(raw=raw_images()["PIXEL_FORMAT_NV12 padded by 4"])
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
        add(INFERENCE + kind, request(options=options, image=preprocessed()))
        batch = getattr(inference_pb2, kind + "BatchRequest")
        add(INFERENCE + kind + "Batch", batch(options=options, images=[pictured, raw, pictured]))
        add(INFERENCE + kind + "Batch", batch(images=[preprocessed(), raw]))
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
        crop = preprocessed().preprocessed
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
                    for number, shown in ((0, pictured), (1, raw), (2, preprocessed()))
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
            for options, one in wrong_preprocessed()
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


def wrong_preprocessed() -> list[tuple[inference_pb2.ClassifyOptions, image_pb2.Image]]:
    """Return preprocessed images of which one thing is wrong, each with the options of its call."""
    sound = preprocessed().preprocessed
    wrong = [
        *((b"", sound.transform_digest), (sound.pixels[:-1], sound.transform_digest)),
        *((sound.pixels, ""), (sound.pixels, "0" * 64), (sound.pixels, "x" * 100)),
    ]
    made = [
        (
            inference_pb2.ClassifyOptions(),
            image_pb2.Image(
                preprocessed=image_pb2.PreprocessedImage(pixels=pixels, transform_digest=digest)
            ),
        )
        for pixels, digest in wrong
    ]
    return [*made, (inference_pb2.ClassifyOptions(background="white"), preprocessed())]


def wrong_raw_images() -> list[image_pb2.RawImage]:
    """Return raw images of which one number is wrong, and the pixels are as many as it says."""
    wrong: list[dict[str, Any]] = [
        *({"width": 0}, {"height": 0}, {"width": 65536, "height": 1}, {"width": 65535}),
        *({"row_stride_bytes": 1}, {"pixel_format": 0}, {"pixel_format": 7}),
        *({"pixel_format": 5, "width": 3}, {"pixel_format": 6, "height": 3}),
        *({"color_matrix": 1}, {"color_range": 1}, {"color_matrix": 9}, {"color_range": 9}),
    ]
    made = []
    for fields in wrong:
        sound = {"width": 8, "height": 6, "pixel_format": image_pb2.PIXEL_FORMAT_RGB}
        raw = image_pb2.RawImage(**(sound | fields))
        length = raw.height * (raw.row_stride_bytes or 3 * raw.width)
        raw.pixels = bytes(length)
        made.append(raw)
    return made


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
