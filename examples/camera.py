"""Classify a camera until Enter is pressed: python examples/camera.py [CAMERA] [--server SERVER].

Start a server first, in another terminal: make serve. CAMERA is a camera's number, a URL or a
file. Needs resnet50-serving[video].
"""

from __future__ import annotations

import argparse
import sys
import threading

from resnet50_client import CallCancelledError, Classification, Client, Stream, frames_from_video


def cancel_at_enter(stream: Stream[Classification]) -> None:
    """Cancel the stream when a line is typed; runs in a thread."""
    if sys.stdin.readline():  # not at the end of the input
        stream.cancel()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("camera", nargs="?", default="0", metavar="CAMERA", help="default: 0")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    options = parser.parse_args()
    camera = int(options.camera) if options.camera.isdecimal() else options.camera
    frames = frames_from_video(camera)
    with (
        Client(options.server) as client,
        client.classify_stream(frames, delivery="latest", top_k=1) as stream,
    ):
        threading.Thread(target=cancel_at_enter, args=[stream], daemon=True).start()
        print("press Enter to stop", flush=True)
        try:
            for answer in stream:
                if answer.error is not None:
                    print(f"{answer.source.time_s:.2f} s: {answer.error}")
                elif answer.result is not None:
                    age_ms = 1e3 * answer.latency_s
                    print(f"{answer.source.time_s:.2f} s: {answer.result.top}, {age_ms:.0f} ms old")
        except CallCancelledError:
            print("stopped")
    print(stream.stats)


if __name__ == "__main__":
    main()
