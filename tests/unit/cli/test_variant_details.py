"""`resnet50 variants show` as text."""

from __future__ import annotations

from resnet50_cli.variants import details
from resnet50_client.types import BatchLatency, PublishedAccuracy, Transform, Variant


def variant() -> Variant:
    return Variant(
        name="digits",
        aliases=(),
        state="ready",
        server_default=True,
        trained=False,
        digest="ab" * 32,
        parameter_count=23_528_522,
        embedding_dimension=2048,
        embedding_space="digits@abababababab",
        category_count=2,
        categories=("zero", "one"),
        transform=Transform(232, 224, (0.485, 0.456, 0.406), (0.25, 0.25, 0.25), "bilinear"),
        published_accuracy=PublishedAccuracy("MNIST", 99.25, None),
        precision="fp32",
        device="cpu",
        engine="torch",
        description="Digits.",
        quantization=None,
        latency=BatchLatency(1.5, 0.25),
        loading=None,
        last_failure=None,
        memory_bytes=2**20,
        requests=0,
    )


def test_details_of_a_variant_are_text_without_python_reprs():
    shown = dict(line.split(maxsplit=1) for line in details.lines(variant()))
    assert shown["transform"] == (
        "resize 232; crop 224; mean 0.485, 0.456, 0.406; std 0.25, 0.25, 0.25;"
        " interpolation bilinear; background none; resize_to -; resize_longer_side -;"
        " pad_to_square no; fill 0, 0, 0; input_size 0, 0; antialias yes; channel_order RGB;"
        " input_range 0, 1; digest -; exact_jpeg_pixels -"
    )
    assert shown["published_accuracy"].startswith("dataset MNIST; acc_at_1 99.25; ")
    assert (shown["server_default"], shown["trained"]) == ("yes", "no")
    assert shown["latency"] == "alpha_ms 1.5; beta_ms 0.25"
    assert shown["categories"] == "zero, one"
    assert [shown[key] for key in ("aliases", "loading", "last_failure", "problem")] == ["-"] * 4
    assert not any(sign in text for text in shown.values() for sign in "()[]{}='")
