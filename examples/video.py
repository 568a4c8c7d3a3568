"""Stream a video to a server, both ways: python examples/video.py [VIDEO] [--server HOST:PORT].

Start a server first, in another terminal: make serve. Without VIDEO it makes a clip of what that
server knows: handwritten digits for the digits variant, photographs for ImageNet's.

Needs resnet50-serving[video]; the clips that it makes need scikit-learn and its pictures as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from itertools import groupby
from pathlib import Path

import av
from PIL import Image

from resnet50_client import Client, UnavailableError, frames_from_video

FPS = 30
SIDE = 96


def pictures(variant: str) -> Iterator[Image.Image]:
    """Give the pictures of a clip of some seconds: every subject is shown for a second."""
    if variant == "digits":
        from digits import digits

        subjects = digits().held_out[:6]
        side, reach = SIDE, 1
    else:
        folder = resources.files("sklearn.datasets.images")
        subjects = [Image.open(str(folder / name)) for name in ("china.jpg", "flower.jpg")]
        side, reach = 3 * SIDE, 20
    for subject in subjects:
        large = subject.convert("RGB").resize((side + 2 * reach, side + 2 * reach))
        for step in range(FPS):
            left = 2 * reach * step // FPS
            yield large.crop((left, reach, left + side, reach + side))


def make_clip(path: Path, variant: str) -> None:
    """Write a clip of what the variant knows, as MPEG-4."""
    frames = [av.VideoFrame.from_image(picture) for picture in pictures(variant)]
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def every_frame(client: Client, video: str) -> None:
    """Analyse a file: each frame is answered, in order, as fast as the server can."""
    started = time.perf_counter()
    # Raw frames: what the decoder gives, no time spent on encoding, good on one machine. With
    # encoding="jpeg", as below, a fifth of the bytes or less travels.
    answers = list(client.classify_stream(frames_from_video(video), top_k=1))
    took_s = time.perf_counter() - started
    print(f"ordered: {len(answers)} frames answered in {took_s:.1f} s")
    seen = [answer.result.top.label if answer.result else str(answer.error) for answer in answers]
    first = 0
    for label, group in groupby(seen):
        count = len(list(group))
        print(f"  frames {first} to {first + count - 1}: {label}")
        first += count


def newest_frame(client: Client, video: str) -> None:
    """Follow a camera: only the newest frame counts, older ones that wait are dropped."""
    frames = frames_from_video(video, encoding="jpeg", real_time=True)  # given when they are due
    ages_s = []
    with client.classify_stream(frames, delivery="latest", top_k=1) as stream:
        for answer in stream:
            if not answer.dropped:
                ages_s.append(answer.latency_s)
    stats = stream.stats
    print(f"latest: {stats.sent} frames sent, {len(ages_s)} answered, {stats.dropped} dropped")
    if ages_s:
        print(f"  an answered frame is {statistics.median(ages_s) * 1e3:.0f} ms old (median)")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", nargs="?", metavar="VIDEO", help="default: a clip made here")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    options = parser.parse_args()
    with Client(options.server) as client, tempfile.TemporaryDirectory() as folder:
        try:
            variant = client.get_variant().name
        except UnavailableError as error:
            sys.exit(f"{error}\nStart a server in another terminal: make serve")
        video = options.video
        if video is None:
            video = str(Path(folder) / "clip.mp4")
            make_clip(Path(video), variant)
        print(f"{video} to {options.server}, {variant}")
        every_frame(client, video)
        newest_frame(client, video)


if __name__ == "__main__":
    main()
