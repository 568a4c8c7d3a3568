"""Cost of video frames, decoding threads, and age of answers: python -m benchmarks.video.

cost    bytes a frame, and CPU a frame on both sides, constant answer, for 640 x 480 and 1920 x 1080
threads speed of decoding H.264 of 1920 x 1080 with a thread for each frame, against one for all
hdr     time of a 1920 x 1080 frame of 10 bits as HDR (PQ), tone-mapped, and as BT.709
age     of answered frames under delivery "latest", an engine at a third of the frame rate

The client's CPU is that of a process which decodes a clip and streams it, its baseline that of
decoding alone; the server's is that of its process. Servers are started on this machine (Linux).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import av
from PIL import Image

from benchmarks.measures import parser_of
from benchmarks.process import DECODING, cpu_s, server
from resnet50_client import Client, VideoFrame, frames_from_video

SIZES = ((640, 480), (1920, 1080))
FRAMES = 120
TURNS = 3
FPS = 30
BATCH_FRAMES = 3
AGE_S = 20.0


def make_clip(
    path: Path, width: int, height: int, frames: int, codec: str = "mpeg4", hdr: bool | None = None
) -> None:
    """Pan over a photograph.

    Args:
        path: The file.
        width: In pixels.
        height: In pixels.
        frames: Number of frames.
        codec: FFmpeg's name of the encoder.
        hdr: 10 bits: True tags them as PQ of BT.2020, False as BT.709. None: 8 bits, no tags.
    """
    photo = Image.open(str(resources.files("sklearn.datasets.images") / "china.jpg"))
    large = photo.resize((width * 5 // 4, height * 5 // 4), Image.Resampling.BICUBIC)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = width * height * 8
        if hdr is not None:
            stream.pix_fmt = "yuv420p10le"
            context = stream.codec_context
            context.colorspace, context.color_trc, context.color_primaries = (
                (9, 16, 9) if hdr else (1, 1, 1)
            )
        for number in range(frames):
            left, top = width * number // frames // 4, height * number // frames // 4
            picture = large.crop((left, top, left + width, top + height))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


def decode(clip: Path, thread_type: str = "SLICE") -> None:
    """Decode and give nothing: what any way of sending pays."""
    with av.open(clip) as container:
        container.streams.video[0].thread_type = thread_type
        for _ in container.decode(video=0):
            pass


def measure_cost(folder: Path) -> None:
    """Stream each clip both ways, in turn."""
    for width, height in SIZES:
        clip = folder / f"{width}x{height}.mp4"
        make_clip(clip, width, height, FRAMES)
        costs: dict[str, list[tuple[float, float]]] = {"raw": [], "jpeg": []}
        sizes: dict[str, float] = {}
        decoding = []
        with server(*DECODING) as (address, pid), Client(address) as client:
            client.wait_until_ready()
            for turn in range(TURNS + 1):
                before = time.process_time()
                decode(clip)
                baseline = time.process_time() - before
                for encoding, figures in costs.items():
                    taken: list[int] = []
                    before, before_server = time.process_time(), cpu_s(pid)
                    for answer in client.classify_stream(counted(clip, encoding, taken)):
                        if answer.error:
                            raise answer.error
                    ours, theirs = time.process_time() - before, cpu_s(pid) - before_server
                    sizes[encoding] = statistics.mean(taken)
                    if turn:  # the first warms up
                        figures.append(((ours - baseline) / FRAMES, theirs / FRAMES))
                if turn:
                    decoding.append(baseline / FRAMES)
        print(
            f"cost  {width} x {height}: decoding {statistics.median(decoding) * 1e3:.2f} ms of"
            f" client CPU a frame, in each case; median of {TURNS} turns of {FRAMES} frames"
        )
        for encoding, figures in costs.items():
            ours, theirs = (statistics.median(one) * 1e3 for one in zip(*figures, strict=True))
            print(
                f"cost  {width} x {height} {encoding:4}: {sizes[encoding] / 1024:.0f} KiB a frame,"
                f" client CPU {ours:.2f} ms (make + send), server CPU {theirs:.2f} ms"
            )
        pairs = list(zip(costs["raw"], costs["jpeg"], strict=True))
        client_ratio, server_ratio = (
            statistics.median(raw[side] / jpeg[side] for raw, jpeg in pairs) for side in (0, 1)
        )
        print(
            f"cost  {width} x {height} raw / jpeg: bytes {sizes['raw'] / sizes['jpeg']:.1f}, client"
            f" CPU {client_ratio:.2f}, server CPU {server_ratio:.2f}"
        )


def counted(clip: Path, encoding: str, taken: list[int]) -> Iterator[VideoFrame]:
    """Give a clip's frames and note their sizes in bytes."""
    for frame in frames_from_video(clip, encoding=encoding):  # type: ignore[arg-type]
        taken.append(len(frame.image) if isinstance(frame.image, bytes) else frame.image.nbytes)
        yield frame


def measure_threads(folder: Path) -> None:
    """Decode a clip both ways, in turn."""
    clip = folder / "threads.mp4"
    make_clip(clip, 1920, 1080, FRAMES, "libx264")
    times_s: dict[str, list[float]] = {"SLICE": [], "AUTO": []}
    for _ in range(TURNS):
        for thread_type, taken in times_s.items():
            began = time.perf_counter()
            decode(clip, thread_type)
            taken.append(time.perf_counter() - began)
    for thread_type, taken in times_s.items():
        print(
            f"threads  1920 x 1080 H.264, {thread_type:5}:"
            f" {FRAMES / statistics.median(taken):.0f} frames/s; median of {TURNS} turns"
        )
    ratios = [one / other for one, other in zip(times_s["SLICE"], times_s["AUTO"], strict=True)]
    print(f"threads  AUTO / SLICE: {statistics.median(ratios):.2f} times as fast")


def measure_hdr(folder: Path) -> None:
    """Read the same pixels with and without tone mapping, in turn."""
    times_s: dict[bool, list[float]] = {False: [], True: []}
    clips = {hdr: folder / f"hdr-{hdr}.mp4" for hdr in times_s}
    for hdr, clip in clips.items():
        make_clip(clip, 1920, 1080, FRAMES // 4, "libx264", hdr)
    for _ in range(TURNS):
        for hdr, clip in clips.items():
            began = time.perf_counter()
            count = sum(1 for _ in frames_from_video(clip))
            times_s[hdr].append((time.perf_counter() - began) / count)
    for hdr, taken in times_s.items():
        print(
            f"hdr   1920 x 1080, 10 bits, {'PQ, tone-mapped' if hdr else 'BT.709'}:"
            f" {statistics.median(taken) * 1e3:.1f} ms a frame; median of {TURNS} turns"
        )


def measure_age(folder: Path) -> None:
    """Play a clip as a camera would; an answer's age is counted from when its frame was given."""
    clip = folder / "age.mp4"
    make_clip(clip, 640, 480, round(AGE_S * FPS))
    batch_s = BATCH_FRAMES / FPS
    given: list[float] = []

    def live() -> Iterator[VideoFrame]:
        start = time.perf_counter()
        for frame in frames_from_video(clip, encoding="jpeg"):
            time.sleep(max(0.0, start + frame.time_s - time.perf_counter()))
            given.append(time.perf_counter())
            yield frame

    timed = ("--engine", "timed", "--timed-alpha-ms", str(batch_s * 1e3), "--timed-beta-ms", "0")
    with server(*timed) as (address, _), Client(address) as client:
        client.wait_until_ready()
        ages, dropped = [], 0
        for answer in client.classify_stream(live(), delivery="latest"):
            if answer.error:
                raise answer.error
            if answer.dropped:
                dropped += 1
            else:
                ages.append(time.perf_counter() - given[answer.frame_id])
    ages.sort()
    figures = {"median": ages[len(ages) // 2], "p99": ages[int(0.99 * len(ages))], "max": ages[-1]}
    print(
        f"age   {FPS} frames/s of 640 x 480 JPEG, batches of {batch_s * 1e3:.0f} ms: {len(given)}"
        f" given = {len(ages)} answered + {dropped} dropped"
    )
    print(
        "age   of answered frames: "
        + ", ".join(
            f"{name} {age_s * 1e3:.0f} ms = {age_s / batch_s:.2f} batch times"
            for name, age_s in figures.items()
        )
    )


def main() -> None:
    """Run what was asked for, or all."""
    measures = {
        "cost": measure_cost,
        "threads": measure_threads,
        "hdr": measure_hdr,
        "age": measure_age,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in parser_of(__doc__, measures).parse_args().what or measures:
            measures[name](Path(folder))


if __name__ == "__main__":
    main()
