"""Classify what OpenCV captures: python examples/opencv_camera.py [CAMERA] [--server SERVER].

CAMERA is a camera's number, a URL or a file. Needs opencv-python. Without OpenCV, see camera.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator

import cv2
import numpy as np
from numpy.typing import NDArray

from resnet50_client import Client


def frames(camera: int | str) -> Generator[NDArray[np.uint8], None, None]:
    """Yield frames, uint8 [height, width, 3] BGR, until the camera ends."""
    capture = cv2.VideoCapture(camera)
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()  # also when the stream is closed or cancelled


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("camera", nargs="?", default="0", metavar="CAMERA", help="default: 0")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    options = parser.parse_args()
    camera = int(options.camera) if options.camera.isdecimal() else options.camera
    with (
        Client(options.server) as client,
        # OpenCV's arrays are BGR. Without `pixel_format` red and blue would be swapped.
        client.classify_stream(
            frames(camera), pixel_format="BGR", delivery="latest", top_k=1
        ) as stream,
    ):
        for answer in stream:
            if answer.result is not None:
                print(answer.result.top)
            elif answer.error is not None:
                print(answer.error)
        print(stream.stats)


if __name__ == "__main__":
    main()
