"""The examples for tables, data loaders and video, and their variations, against a real server."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from resnet50_client import Client, frames_from_video
from tests.support.examples import run_example
from tests.support.pictures import encode, photo_like

RGB = np.asarray(photo_like(64, 48))
PNG = encode(Image.fromarray(RGB))


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """Five images, the third of which is invalid."""
    for number in range(5):
        content = b"text" if number == 2 else encode(photo_like(64, 48, number))
        (tmp_path / f"{number}.png").write_bytes(content)
    return [str(tmp_path / f"{number}.png") for number in range(5)]


def test_table_gets_vectors_and_the_error_of_a_bad_image(untrained_server, paths, tmp_path):
    table, out = tmp_path / "photos.csv", tmp_path / "photos.parquet"
    pd.DataFrame({"path": paths, "price": range(5)}).to_csv(table, index=False)
    said = run_example("bulk_to_parquet", table, out, "--server", untrained_server)
    assert said == f"{out}: 1 images failed\n"
    rows = pq.read_table(out)
    vectors = rows.schema.field("vector").type
    assert (vectors.list_size, vectors.value_type) == (2048, "float")
    assert rows["price"].to_pylist() == list(range(5))
    assert [vector.is_valid for vector in rows["vector"]] == [True, True, False, True, True]
    assert [error is None for error in rows["error"].to_pylist()] == [True, True, False, True, True]
    with Client(untrained_server) as client:
        expected = client.embed(paths[4]).vector
    np.testing.assert_allclose(rows["vector"][4].as_py(), expected, rtol=1e-4, atol=1e-4)


def test_column_of_a_filtered_frame_is_embedded(untrained_server, paths):
    frame = pd.DataFrame({"path": paths}).drop(2)  # its index has a gap
    with Client(untrained_server) as client:
        batch = client.embed_batch(frame["path"])
    assert np.stack(list(batch.vectors)).shape == (4, 2048) and not batch.errors


def test_workers_of_a_data_loader_preprocess(untrained_server, paths):
    good = [path for path in paths if "2.png" not in path]
    lines = run_example("dataloader", *good, "--workers", 1, "--server", untrained_server)
    assert [line.split(": ")[0] for line in lines.splitlines()] == good


class Tensors(Dataset):
    """Images as uint8 tensors [3, height, width]."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(RGB.copy()).permute(2, 0, 1)


class Vectors(Dataset):
    """Vectors that each worker gets from the server itself."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> np.ndarray:
        return self.client.embed(PNG, timeout_s=60).vector


def test_batches_of_a_data_loader_are_images(untrained_server):
    with Client(untrained_server) as client:
        expected = client.embed(PNG).vector
        images = chain.from_iterable(DataLoader(Tensors(), batch_size=3))
        vectors = [result.vector for result in client.embed_many(images)]
    np.testing.assert_allclose(vectors, [expected] * 8, rtol=1e-4, atol=1e-4)


def test_worker_of_a_data_loader_uses_the_client(untrained_server):
    with Client(untrained_server) as client:
        expected = client.embed(PNG).vector
        loader = DataLoader(
            Vectors(client), batch_size=2, num_workers=1, multiprocessing_context="spawn"
        )
        vectors = np.concatenate([batch.numpy() for batch in loader])
    np.testing.assert_allclose(vectors, [expected] * 4, rtol=1e-4, atol=1e-4)


def test_arrays_of_opencv_are_the_image_they_show(untrained_server):
    bgr = cv2.imdecode(np.frombuffer(PNG, np.uint8), cv2.IMREAD_COLOR)
    encoded = cv2.imencode(".png", bgr)[1]
    with Client(untrained_server) as client:
        expected = client.embed(PNG).vector
        for image in (encoded.reshape(-1), encoded.reshape(-1, 1)):
            np.testing.assert_allclose(client.embed(image).vector, expected, rtol=1e-4, atol=1e-4)
        vector = client.embed(bgr, pixel_format="BGR").vector
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)


def test_orientation_of_exif_is_applied_to_every_form(untrained_server, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    upright = np.rot90(RGB, -1)
    with Client(untrained_server) as client:
        expected = client.embed(np.ascontiguousarray(upright)).vector
        for image in (path, path.read_bytes(), Image.open(path), upright):
            np.testing.assert_allclose(client.embed(image).vector, expected, rtol=1e-4, atol=1e-4)


def test_gray_arrays_are_images_and_floats_are_explained(untrained_server):
    gray = RGB[:, :, 0]
    with Client(untrained_server) as client:
        expected = client.embed(np.repeat(gray[:, :, None], 3, axis=2)).vector
        for image in (gray, gray[:, :, None]):
            np.testing.assert_allclose(client.embed(image).vector, expected, rtol=1e-4, atol=1e-4)
        for image in (RGB / 255, torch.rand(3, 48, 64)):
            with pytest.raises(ValueError, match=r"float(32|64).*uint8"):
                client.embed(image)


def test_opencv_camera_is_classified_to_its_end(untrained_server, clip):
    lines = run_example("opencv_camera", clip, "--server", untrained_server).splitlines()
    counts = [int(part.split()[0]) for part in lines[-1].split(", ")]
    assert counts[0] + counts[2] == 10 and counts[1] == 0, lines[-1]


# Instead of the program: the same arguments, the same bytes.
FFMPEG = """#!{python}
import sys
import av

arguments = sys.argv[1:]
assert arguments[-3:] == ["-f", "rawvideo", "-"] and "rgb24" in arguments, arguments
width, height = arguments[arguments.index("-vf") + 1].split("scale=")[1].split(":")
with av.open(arguments[arguments.index("-i") + 1]) as container:
    for frame in container.decode(video=0):
        pixels = frame.to_ndarray(format="rgb24", width=int(width), height=int(height))
        sys.stdout.buffer.write(pixels.tobytes())
"""


def test_raw_video_of_a_pipe_is_classified(untrained_server, clip, tmp_path):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(FFMPEG.format(python=sys.executable))
    program.chmod(0o755)
    said = run_example("ffmpeg_pipe", clip, "--server", untrained_server, path=program.parent)
    lines = said.splitlines()
    times = [f"{number / 5:.1f}" for number in range(10)]
    assert [line.split(" s: ")[0] for line in lines] == times
    assert all("%" in line for line in lines)


def test_container_in_a_pipe_is_classified(untrained_server, clip):
    copy = "import shutil, sys; shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer)"
    with (
        subprocess.Popen([sys.executable, "-c", copy, str(clip)], stdout=subprocess.PIPE) as pipe,
        Client(untrained_server) as client,
    ):
        answers = list(client.classify_stream(frames_from_video(pipe.stdout), top_k=1))
    assert [answer.error for answer in answers] == [None] * 10
