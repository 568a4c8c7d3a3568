"""Classify raw video that FFmpeg writes into a pipe: python examples/ffmpeg_pipe.py URL.

FFmpeg decodes, scales and drops frames. Needs the program `ffmpeg`, and no package of Python.
"""

from __future__ import annotations

import argparse
import subprocess

from resnet50_client import Client, frames_from_raw

WIDTH, HEIGHT, FPS = 398, 224, 5


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    options = parser.parse_args()
    command = ["ffmpeg", "-loglevel", "error", "-i", options.url]
    command += ["-vf", f"fps={FPS},scale={WIDTH}:{HEIGHT}", "-pix_fmt", "rgb24"]
    command += ["-f", "rawvideo", "-"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as ffmpeg,
        Client(options.server) as client,
    ):
        assert ffmpeg.stdout is not None
        # rgb24 is "RGB". The size is that of the command: raw video has no header.
        frames = frames_from_raw(ffmpeg.stdout, WIDTH, HEIGHT, "RGB", fps=FPS)
        with client.classify_stream(frames, top_k=1) as stream:
            for answer in stream:
                print(f"{answer.source.time_s:.1f} s: {answer.error or answer.result.top}")
    if ffmpeg.returncode:
        raise SystemExit(f"ffmpeg ended with exit code {ffmpeg.returncode}")


if __name__ == "__main__":
    main()
