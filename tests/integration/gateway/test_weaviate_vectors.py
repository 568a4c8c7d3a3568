"""Vectors of existing Weaviate collections: torchvision on images squashed to 224 x 224."""

from __future__ import annotations

import base64
import io
import re
import shlex
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from resnet50_server.cli.main import main
from tests.support import weights
from tests.support.gateways import client, gateway
from tests.support.serving import server_processes

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "weaviate.md"


def import_command() -> list[str]:
    """Return the arguments of the page's command that imports the weights."""
    text = PAGE.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^resnet50-server (variants import .*)$", text, re.MULTILINE)
    return shlex.split(line)


def reference(state, image: bytes) -> np.ndarray:
    """Return the vector that the original inference container computes."""
    steps = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels = steps(Image.open(io.BytesIO(image)).convert("RGB"))[None]
    _, embeddings = weights.run(weights.torchvision_model(state), pixels)
    return embeddings[0].numpy()


def test_the_imported_variant_computes_the_original_vectors(tmp_path, photo, monkeypatch):
    # The smallest limit of the servers that ran in this process, and Pillow decodes here, too.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    state = weights.trained_like(seed=3)
    checkpoint, variant = tmp_path / "resnet50.pth", tmp_path / "img2vec"
    torch.save(state, checkpoint)
    command = import_command()
    places = {"resnet50-0676ba61.pth": str(checkpoint), "img2vec/": str(variant)}
    assert main([places.get(word, word) for word in command]) == 0
    arguments = ("--variants", f"img2vec={variant}", "--engine", "torch", "--device", "cpu")
    with server_processes() as start:
        address = start(*arguments).wait_until_listening()
        with gateway(address) as url, client(url) as http:
            body = {"id": "1_0", "image": base64.b64encode(photo).decode()}
            vector = np.float32(http.post("/vectors", json=body).json()["vector"])
    expected = reference(state, photo)
    cosine = vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected)
    assert cosine > 0.9999
