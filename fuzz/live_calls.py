"""Calls that a live server is sent: mutated images, and mutated messages of every RPC."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz import seed_images, seeds
from fuzz.message_mutations import mutated_messages
from fuzz.mutations import mutated
from fuzz.seeds import INFERENCE
from resnet50.v1 import image_pb2, inference_pb2

# Of an upload: with more of them the sender is what is tried.
MOST_CHUNKS = 2000
MAX_UINT32 = 2**32 - 1


@dataclass(frozen=True)
class Sent:
    """A call.

    Attributes:
        name: Its kind and number.
        path: Of the RPC.
        messages: Serialized.
    """

    name: str
    path: str
    messages: list[bytes]

    def write(self, path: Path) -> None:
        """Keep it in a file."""
        packed = [base64.b64encode(message).decode() for message in self.messages]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"path": self.path, "messages": packed}))

    @classmethod
    def read(cls, path: Path) -> Sent:
        """Return what was kept in a file."""
        kept = json.loads(path.read_text())
        messages = [base64.b64decode(message) for message in kept["messages"]]
        return cls(path.stem, kept["path"], messages)


class Source:
    """Makes calls of numbers.

    Args:
        seed: Of all of them.
        photos: Files that are mutated beside those that are made.
    """

    def __init__(self, seed: int, photos: tuple[bytes, ...] = ()) -> None:
        self.seed = seed
        self._files = [*seed_images.images(24).values(), *seed_images.images(200).values(), *photos]
        self._raw = list(seed_images.raw_images().values())
        self._calls = [call for calls in seeds.calls().values() for call in calls]
        self._oip_calls = seeds.oip_calls()
        self._messages = [
            message for _, messages in (*self._calls, *self._oip_calls) for message in messages
        ]

    def make(self, name: str) -> Sent:
        """Make a call.

        Args:
            name: "image:5", "message:5" or "oip:5".
        """
        draw = Random(f"{self.seed}:{name}")
        if not name.startswith("image"):
            of_kind = self._oip_calls if name.startswith("oip") else self._calls
            path, messages = draw.choice(of_kind)
            return Sent(name, path, mutated_messages(draw, messages, self._messages))
        if draw.random() < 0.15:
            return Sent(name, *_single(draw, image_pb2.Image(raw=self._lying(draw))))
        content = mutated(draw, draw.choice(self._files), self._files)
        way = draw.choice(("Classify", "Embed", "Upload", "Upload", "Stream", "Stream"))
        if way == "Upload":
            return Sent(name, *_upload(draw, content))
        image = image_pb2.Image(encoded=content)
        if way == "Stream":
            return Sent(name, *_frames(draw, image))
        return Sent(name, *_single(draw, image))

    def _lying(self, draw: Random) -> image_pb2.RawImage:
        """Return a raw image whose numbers are not those of its pixels."""
        raw = image_pb2.RawImage()
        raw.CopyFrom(draw.choice(self._raw))
        numbers = (0, 1, 2, 7, 8, 16, 255, 1000, 4096, 65535, 65536, 2**31, 2**32 - 1)
        for _ in range(draw.choice((1, 1, 2, 3))):
            match draw.randrange(7):
                case 0:
                    raw.width = draw.choice((*numbers, min(raw.width + 1, MAX_UINT32)))
                case 1:
                    raw.height = draw.choice((*numbers, min(raw.height + 1, MAX_UINT32)))
                case 2:
                    raw.row_stride_bytes = draw.choice(
                        (*numbers, min(raw.row_stride_bytes + 1, MAX_UINT32))
                    )
                case 3:
                    raw.pixel_format = draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 99))  # type: ignore[assignment]
                case 4:
                    raw.color_matrix = draw.choice((0, 1, 2, 3, 4, 99))  # type: ignore[assignment]
                case 5:
                    raw.color_range = draw.choice((0, 1, 2, 3, 99))  # type: ignore[assignment]
                case _:
                    length = len(raw.pixels) + draw.choice((-100, -1, 1, 100))
                    raw.pixels = (raw.pixels + bytes(100))[: max(0, length)]
        return raw


def _single(draw: Random, image: image_pb2.Image) -> tuple[str, list[bytes]]:
    kind = draw.choice(("Classify", "Embed"))
    request = getattr(inference_pb2, kind + "Request")(image=image)
    return INFERENCE + kind, [request.SerializeToString()]


def _upload(draw: Random, content: bytes) -> tuple[str, list[bytes]]:
    kind = draw.choice(("Classify", "Embed"))
    part = getattr(inference_pb2, kind + "UploadRequest")
    options = getattr(inference_pb2, kind + "UploadOptions")()
    length = max(draw.choice((100, 1000, 65536)), len(content) // MOST_CHUNKS)
    chunks = [content[at : at + length] for at in range(0, len(content), length)]
    parts = [part(options=options), *(part(chunk=chunk) for chunk in chunks)]
    return INFERENCE + kind + "Upload", [one.SerializeToString() for one in parts]


def _frames(draw: Random, image: image_pb2.Image) -> tuple[str, list[bytes]]:
    kind = draw.choice(("Classify", "Embed"))
    part = getattr(inference_pb2, kind + "StreamRequest")
    config = getattr(inference_pb2, kind + "StreamConfig")()
    good = seed_images.raw_images()["PIXEL_FORMAT_RGB padded by 0"]
    frames = [image, image_pb2.Image(raw=good), image]
    parts = [part(config=config)]
    parts += [
        part(frame=inference_pb2.Frame(frame_id=number, image=one))
        for number, one in enumerate(frames)
    ]
    return INFERENCE + kind + "Stream", [one.SerializeToString() for one in parts]
