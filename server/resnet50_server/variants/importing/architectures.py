"""Name the network that a state dict belongs to, by its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Keys that only one family of networks has, with the family's name; the first match counts.
_FAMILIES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(^|\.)visual\.(conv1|attnpool|layer1)\.|(^|\.)attnpool\.", "CLIP's modified ResNet"),
        (r"(^|\.)lora_[AB]\.|\.lora_(down|up)\.", "a LoRA adapter"),
        (r"\.weight_fake_quant\.|activation_post_process", "a network trained for int8 (QAT)"),
        (r"(^|\.)stem\.conv1\.norm\.|(^|\.)res2\.0\.conv1\.", "a ResNet of Detectron2"),
        (r"(^|\.)stages\.0\.blocks\.0\.norm1\.weight$", "a ResNetV2 (BiT)"),
        (r"relative_position_bias_table$", "a Swin Transformer"),
        (
            r"(^|\.)(cls_token|class_token)$|(^|\.)(patch_embed|conv_proj)\.|patch_embeddings",
            "a vision transformer",
        ),
        (
            r"(^|\.)(stages\.0\.blocks\.0\.(gamma|conv_dw)|features\.1\.0\.layer_scale)",
            "a ConvNeXt",
        ),
        (r"(^|\.)denseblock1\.", "a DenseNet"),
        (r"(^|\.)(Conv2d_1a_3x3|Mixed_5b|inception3a)\.", "an Inception network"),
        (r"(^|\.)trunk_output\.|(^|\.)s1\.b1\.conv1\.", "a RegNet"),
        (
            r"(^|\.)(_blocks\.0\._depthwise_conv|blocks\.0\.0\.conv_dw|features\.1\.0\.block\.0\.0)\.",
            "an EfficientNet or MobileNet",
        ),
        (r"(^|\.)features\.1\.conv\.0\.", "a MobileNetV2"),
        (r"(^|\.)features\.0\.weight$", "a VGG or AlexNet"),
        (r"(^|\.)model\.\d+\.(cv1|cv2|dfl|conv)\.", "a YOLO network"),
        (
            r"(^|\.)(bert|encoder\.layer\.0\.attention|h\.0\.attn|layers\.0\.self_attn)\.",
            "a language model",
        ),
    )
)
# Keys below the blocks of a ResNet that other kinds of block have.
_BLOCKS = tuple(
    (re.compile(r"(^|\.)layer[1-4]\.\d+\." + pattern), name)
    for pattern, name in (
        (r"(eca|se\.conv)\.", "an ECA-ResNet"),
        (r"se(_module)?\.", "an SE-ResNet (squeeze and excitation)"),
        (r"(cbam|ca|sa|ChannelGate|SpatialGate)\.", "a ResNet with attention in its blocks"),
        (r"conv2\.(conv|fc1|bn0|radix)", "a ResNeSt or SK-ResNet"),
        (r"aa\.|(conv\d|downsample)\.\d\.filt$", "a ResNet with anti-aliased downsampling"),
        (r"(convs|bns)\.\d", "a Res2Net"),
        (r"shortcut\.", "a ResNet for CIFAR"),
    )
)
_DILATED = re.compile(r"(?:^|\.)(?:classifier\.0\.convs|aux_classifier|decode_head|aspp)\.")
# Blocks of the four layers: the depth with bottlenecks, and with basic blocks.
_BOTTLENECKS: dict[tuple[int, ...], int] = {
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
    (2, 2, 2, 2): 26,
}
_BASIC: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34, (1, 1, 1, 1): 10}


def other_network(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of the network that a state dict is of, unless that may be ResNet50.

    Args:
        tensors: A state dict, with torchvision's names if it is a ResNet.
    """
    for key in tensors:
        for pattern, name in _BLOCKS:
            if pattern.search(key):
                return name
    if "layer1.0.conv1.weight" in tensors:
        return _other_resnet(tensors)
    for pattern, name in _FAMILIES:
        if any(pattern.search(key) for key in tensors):
            return name
    return None


def _other_resnet(tensors: Mapping[str, Any]) -> str | None:
    depths = tuple(
        len({key.split(".")[1] for key in tensors if key.startswith(f"layer{number}.")})
        for number in range(1, 5)
    )
    if "layer1.0.conv3.weight" not in tensors:
        depth = _BASIC.get(depths)
        return f"resnet{depth}" if depth else f"a ResNet with {sum(depths)} basic blocks"
    if (depth := _BOTTLENECKS.get(depths)) is None:
        return f"a ResNet with {sum(depths)} bottleneck blocks"
    width, group_width = (_size(tensors, "layer1.0.conv2.weight", axis) for axis in (0, 1))
    if width and group_width and width != group_width:
        return f"resnext{depth}_{width // group_width}x{group_width}d"
    if width and width != 64:
        return f"wide_resnet{depth}_2" if width == 128 else f"a resnet{depth} of width {width}"
    if depth != 50:
        return f"resnet{depth}"
    return _other_resnet50(tensors)


def _other_resnet50(tensors: Mapping[str, Any]) -> str | None:
    """Name the ResNets of 50 layers whose blocks are right and whose other parts are not."""
    shortcut = tensors.get("layer1.0.downsample.1.weight")
    averaged = shortcut is not None and getattr(shortcut, "ndim", 1) == 4
    if any(key.startswith("attnpool.") for key in tensors):
        return "CLIP's modified ResNet-50"
    if "conv1.0.weight" in tensors:
        kind = "resnet50d" if averaged else "resnet50c or resnet50s"
        return f"a {kind}: a stem of three 3x3 convolutions"
    if "conv2.weight" in tensors and "conv3.weight" in tensors:
        return "a ResNet-50 with a stem of three 3x3 convolutions"
    if averaged:
        return "a ResNet-50 with average pooling in its shortcuts"
    if any(key.endswith("conv1.scale") for key in tensors):
        return "a ResNet-50 in int8"
    if any(_DILATED.search(key) for key in tensors):
        return "a segmentation network (DeepLab, FCN), whose backbone has dilated convolutions"
    if "bn1.running_mean" not in tensors:
        if "bn1.weight" in tensors:
            return "a ResNet-50 with GroupNorm, or without statistics of BatchNorm"
        return "a ResNet-50 without BatchNorm, perhaps folded into its convolutions"
    channels, kernel = (_size(tensors, "conv1.weight", axis) for axis in (1, 2))
    if channels not in (None, 3):
        return f"a ResNet-50 for images of {channels} channels"
    if kernel not in (None, 7):
        return f"a ResNet-50 for small images, with a first convolution of {kernel}x{kernel}"
    return None


def _size(tensors: Mapping[str, Any], key: str, axis: int) -> int | None:
    shape = getattr(tensors.get(key), "shape", ())
    return int(shape[axis]) if len(shape) == 4 else None
