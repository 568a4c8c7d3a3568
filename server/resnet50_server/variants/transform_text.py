"""Read a transform from the text of a torchvision preset or `Compose`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

from resnet50_server.errors import WeightsError
from resnet50_server.images.transform import (
    ANTIALIAS_OPTIONAL,
    Interpolation,
    LongerSide,
    Transform,
)
from resnet50_server.runtime.texts import shortened

from .call_text import Call, Value, parse_call

# Names of arguments, in their order.
STEPS: dict[str, tuple[str, ...]] = {
    "Resize": ("size", "interpolation", "max_size", "antialias"),
    "CenterCrop": ("size",),
    "Normalize": ("mean", "std", "inplace"),
    "ToTensor": (),
    "MaybeToTensor": (),  # timm's
    "PILToTensor": (),
    "ToImage": (),
    "ToImageTensor": (),
    "ToPureTensor": (),
    "ToPILImage": ("mode",),
    "ConvertImageDtype": ("dtype",),
    "ConvertDtype": ("dtype",),
    "ToDtype": ("dtype", "scale"),
    "RGB": (),
    "Identity": (),
}
PRESET = ("crop_size", "resize_size", "mean", "std", "interpolation", "antialias")
LISTS = ("Compose", "Sequential")
TO_TENSOR = ("ToTensor", "MaybeToTensor", "PILToTensor", "ToImage", "ToImageTensor")
TRAINING = (
    *("AutoAugment", "AugMix", "RandAugment", "TrivialAugmentWide", "ColorJitter", "MixUp"),
    *("CutMix", "JPEG", "GaussianBlur", "GaussianNoise", "ElasticTransform", "ScaleJitter"),
)
# Pillow's numbers of its methods, by which old releases of torchvision name them.
PILLOW_METHODS = ("nearest-exact", "lanczos", "bilinear", "bicubic", "box", "hamming")
ADVICE = "paste what print(transform) shows of the evaluation transform"


def parse_transform_text(text: str) -> Transform:
    """Return the transform that a text describes; the text is never evaluated.

    Args:
        text: The output of `print` for torchvision's `ImageClassification` preset, a `Compose` of
            its transforms (v1 or v2), or a `Sequential`; or the source code of one.

    Raises:
        WeightsError: It describes none, or one that the server does not have; says which step.
    """
    try:
        call = parse_call(text)
    except ValueError as error:
        raise WeightsError(f"transform text: {shortened(str(error))}; {ADVICE}") from error
    try:
        if call.name == "partial" and call.positional:
            # As in `ResNet50_Weights`: partial(<class 'ImageClassification'>, crop_size=224).
            call = Call(str(call.positional[0]), call.positional[1:], call.named)
        transform = _preset(call) if call.name == "ImageClassification" else _composed(call)
        if problems := transform.problems():
            raise ValueError("; ".join(problems))
    except ValueError as error:
        raise WeightsError(f"transform text: {shortened(str(error))}") from error
    return transform


def _preset(call: Call) -> Transform:
    arguments = _arguments(call, PRESET)
    crop, resize = _size(arguments, "crop_size"), _size(arguments, "resize_size", 256)
    return Transform(
        resize=resize,
        crop=crop,
        mean=_three(arguments, "mean", (0.485, 0.456, 0.406)),
        std=_three(arguments, "std", (0.229, 0.224, 0.225)),
        # Images come from Pillow, which antialiases in any case.
        interpolation=_interpolation(arguments, tensor=False),
    )


def _composed(call: Call) -> Transform:
    reader = _Reader(_flattened(call))
    for step in reader.steps:
        reader.read(step)
    return reader.transform()


def _flattened(call: Call) -> list[Call]:
    """Return the steps of a `Compose`, and of others within it; a single transform is a step."""
    if call.name not in LISTS:
        return [call]
    values: list[Value] = [*call.positional, *call.named.values()]
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if wrong := [value for value in values if not isinstance(value, Call)]:
        raise ValueError(f"{call.name} contains {wrong[0]!r}, which is not a transform; {ADVICE}")
    return [step for value in values if isinstance(value, Call) for step in _flattened(value)]


class _Reader:
    """Collects the fields of a transform from its steps, in their order.

    Args:
        steps: All of them.
    """

    def __init__(self, steps: list[Call]) -> None:
        self.steps = steps
        self._seen: set[str] = set()
        self._fields: dict[str, Any] = {"resize": None, "crop": None}
        self._mean, self._std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        # Whether each conversion to float scales to 0..1; of further ones, of floats, none does.
        self._scales: set[bool] = set()
        # Without a conversion to tensors images are read as such.
        self._tensor = not any(step.name in TO_TENSOR for step in steps)

    def read(self, step: Call) -> None:
        """Read one step.

        Raises:
            ValueError: The server does not do it, or not in this place.
        """
        name = step.name
        if name.startswith("Random") or name in TRAINING:
            raise ValueError(f"{name} is random: it belongs to training; {ADVICE}")
        if name not in STEPS:
            raise ValueError(_unknown(name))
        arguments = _arguments(step, STEPS[name])
        if name in TO_TENSOR:
            self._tensor = True
        readers: dict[str, Callable[[dict[str, Value]], None]] = {
            "Resize": self._resize,
            "CenterCrop": self._crop,
            "Normalize": self._normalize,
        }
        if name in readers:
            if name in self._seen:
                raise ValueError(f"{name} is there twice; the server does it once")
            readers[name](arguments)
        elif name in ("ToTensor", "MaybeToTensor", "ConvertImageDtype", "ConvertDtype"):
            self._convert(arguments, scale=True)
        elif name == "ToDtype":
            self._convert(arguments, scale=arguments.get("scale", False) is True)
        self._seen.add(name)

    def transform(self) -> Transform:
        """Return the transform, whose numbers are still to be checked.

        Raises:
            ValueError: The steps do not say all of it.
        """
        if len(self._scales) != 1:
            raise ValueError(
                "no step says whether pixels are scaled to 0 to 1 (ToTensor, or ToDtype with"
                f" scale=True) or stay at 0 to 255 (ToDtype without); {ADVICE}"
                if not self._scales
                else "has a ToDtype that scales and one that does not, and the types are not shown;"
                " write dtype=torch.uint8 into the one that makes no floats"
            )
        return Transform(
            **self._fields,
            mean=self._mean,
            std=self._std,
            input_range=(0, 1 if True in self._scales else 255),
        )

    def _resize(self, arguments: dict[str, Value]) -> None:
        self._refuse_after("Resize", "CenterCrop", "Normalize")
        longest = arguments.get("max_size")
        if arguments.get("size") is None and isinstance(longest, int):
            self._fields["resize"] = LongerSide(longest)
        elif longest is not None:
            raise ValueError(
                f"Resize has size and max_size={longest}, which the server does not have together;"
                " write variant.json by hand with the one that applies"
            )
        else:
            self._fields["resize"] = _size(arguments, "size")
        method = _interpolation(arguments, self._tensor)
        self._fields["interpolation"] = method
        # Pillow always antialiases. "warn" is the default of torchvision 0.15.
        if self._tensor and method in ANTIALIAS_OPTIONAL:
            self._fields["antialias"] = arguments.get("antialias", True) is True

    def _crop(self, arguments: dict[str, Value]) -> None:
        self._refuse_after("CenterCrop", "Normalize")
        size = _size(arguments, "size")
        # `print` shows a CenterCrop(224) as (224, 224).
        square = isinstance(size, tuple) and size[0] == size[1]
        self._fields["crop"] = size[0] if isinstance(size, tuple) and square else size

    def _normalize(self, arguments: dict[str, Value]) -> None:
        self._mean, self._std = _three(arguments, "mean"), _three(arguments, "std")

    def _convert(self, arguments: dict[str, Value], *, scale: bool) -> None:
        floats = bool(self._seen & {"ToTensor", "MaybeToTensor"})
        if not floats and "uint8" not in str(arguments.get("dtype")):
            self._scales.add(scale)

    def _refuse_after(self, name: str, *earlier: str) -> None:
        for one in earlier:
            if one in self._seen:
                raise ValueError(f"{name} comes after {one}; the server does it before")


def _unknown(name: str) -> str:
    if name in ("FiveCrop", "TenCrop"):
        return f"{name} makes several images of one; the server takes one: use CenterCrop"
    if "pad" in name.lower():
        return (
            f"{name}: the server pads to a square or to the crop only; write variant.json by hand"
            ' with "pad_to_square": true, or "resize": {"longer_side": 224} and "crop": 224'
        )
    if name == "Grayscale":
        return f"{name}: the server does not convert to grey; feed the network colours in training"
    return (
        f"{name!r} is not a step that is known, which are {', '.join(STEPS)}; write variant.json by"
        ' hand (a function that makes BGR of RGB is "channel_order": "BGR")'
    )


def _arguments(call: Call, names: tuple[str, ...]) -> dict[str, Value]:
    """Return a call's arguments by name."""
    if len(call.positional) > len(names) or call.named.keys() - set(names):
        unknown = [*(call.named.keys() - set(names)), *map(str, call.positional[len(names) :])]
        raise ValueError(f"{call.name} has {unknown[0]!r}, which is not an argument of it")
    return dict(zip(names, call.positional, strict=False)) | call.named


def _size(
    arguments: dict[str, Value], name: str, default: int | None = None
) -> int | tuple[int, int]:
    """Return a side, or (height, width); one in a list is a side."""
    value: Value = arguments.get(name, default)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list) and len(value) == 2:
        height, width = value
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    raise ValueError(f"{name} is {value!r}, must be one whole number, or height and width")


def _three(
    arguments: dict[str, Value], name: str, default: tuple[float, float, float] | None = None
) -> tuple[float, float, float]:
    """Return a number for each channel; one number stands for all three."""
    value: Value = arguments.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, Call) and value.name in ("tensor", "array") and value.positional:
        value = value.positional[0]
    values = value if isinstance(value, list) else [value]
    numbers = [float(one) for one in values if isinstance(one, (int, float))]
    if len(numbers) != len(values) or len(numbers) not in (1, 3):
        raise ValueError(f"{name} is {value!r}, must be three numbers")
    return cast("tuple[float, float, float]", tuple(numbers * (3 // len(numbers))))


def _interpolation(arguments: dict[str, Value], tensor: bool) -> Interpolation:
    """Return a method; "nearest" takes other pixels of a tensor than of Pillow's images."""
    value = arguments.get("interpolation", "bilinear")
    if isinstance(value, int) and 0 <= value < len(PILLOW_METHODS):
        return cast("Interpolation", PILLOW_METHODS[value])
    method = str(value).lower().replace("_", "-")
    if method == "nearest" and not tensor:
        method = "nearest-exact"
    if method not in get_args(Interpolation):
        raise ValueError(f"interpolation is {value!r}, which the server does not have")
    return cast("Interpolation", method)
