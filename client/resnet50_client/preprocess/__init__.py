"""A variant's preprocessing, done by the caller: the extra `[images]`.

    preprocess = client.preprocessor()
    client.classify(preprocess("large.jpg"))

The server receives the crop that the network takes, 224 x 224 x 3 bytes of most variants, instead
of the file: fewer bytes for large photos and raw frames, and nothing to decode. Pixels are those of
the server to within one level. Pillow is imported by the first preprocessor, not by this module.
"""

from __future__ import annotations

from .._arguments import check_background
from .._preprocessed import PreprocessedImage, PreprocessedPixels
from .._types.variants import Transform, Variant
from ..errors import InvalidRequestError, UnimplementedError
from ..images import ImageInput, PixelFormat, read_image
from .geometry import METHODS, Geometry

__all__ = ["PreprocessedImage", "Preprocessor"]

_NAMED_COLORS = {"white": "#ffffff", "black": "#000000"}
_WITHOUT_ANTIALIAS = ("bilinear", "bicubic")


class Preprocessor:
    """Preprocesses images for one variant: decodes, turns upright, resizes and crops them.

    Thread-safe, and picklable for other processes, such as the workers of a DataLoader. It does
    not follow a variant that is replaced by weights with another transform: calls then raise
    TransformMismatchError, and a new preprocessor is needed.

    Set limits of your own for untrusted files: the server's limits of pixels, memory and time
    protect the server only.

    Args:
        variant: From `get_variant`; see also `Client.preprocessor`.
        background: Background of transparent pixels: "white", "black", "#rrggbb", or "none" to drop
            alpha; None for the variant's.

    Attributes:
        variant: Name of the variant.
        transform: Its transform.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
        UnimplementedError: The server is of a release that takes no preprocessed images.
        InvalidRequestError: `background` is invalid, or the transform has a step that this release
            of the SDK does not have.
    """

    def __init__(self, variant: Variant, *, background: str | None = None) -> None:
        check_background(background)
        _require_pillow()
        self._digest = _checked_digest(variant)
        self.variant: str = variant.name
        self.transform: Transform = variant.transform
        color = background or self.transform.background
        self._background = _NAMED_COLORS.get(color, color)
        self._geometry = Geometry(self.transform)

    def __call__(
        self, image: ImageInput, *, pixel_format: PixelFormat | None = None
    ) -> PreprocessedImage:
        """Preprocess one image.

        Args:
            image: As for `classify`.
            pixel_format: Layout of an array, as for `classify`.

        Returns:
            An image for any call of a client.

        Raises:
            InvalidImageError: The image cannot be decoded here with the server's pixels; the
                message says why.
            TypeError: The image's type is not supported.
            OSError: The image's file cannot be read.
        """
        content = read_image(image, pixel_format)
        if isinstance(content, PreprocessedPixels):
            raise TypeError("image: is preprocessed already")
        from .pixels import network_input

        pixels = network_input(content, self._geometry, self._background)
        return PreprocessedImage(pixels, self._digest)

    def __repr__(self) -> str:
        height, width = self.transform.input_size
        return f"Preprocessor({self.variant!r}, {height} x {width})"


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            "preprocessing needs Pillow: install resnet50-serving with the extra [images]",
            name="PIL",
        ) from error


def _checked_digest(variant: Variant) -> str:
    """Return the digest of a transform all of whose steps this release of the SDK has."""
    transform = variant.transform
    if not transform.digest:
        raise UnimplementedError(
            f"the server that describes {variant.name} takes no preprocessed images: it is of an"
            " earlier release; upgrade it, or send the images themselves"
        )
    known = transform.interpolation in METHODS
    if not transform.antialias:
        known = transform.interpolation in _WITHOUT_ANTIALIAS
    if not known or not all(transform.input_size):
        raise InvalidRequestError(
            f"variant: {variant.name} is preprocessed by a method that this release of the SDK does"
            f" not have ({transform.interpolation!r}); upgrade the SDK, or send the images"
            " themselves",
            field="variant",
        )
    return transform.digest
