"""Official weights: found, downloaded, verified."""

from __future__ import annotations

import hashlib
import socket
import threading
from pathlib import Path

import pytest
from torchvision.models import ResNet50_Weights
from torchvision.models.quantization import ResNet50_QuantizedWeights

from resnet50_server.errors import WeightsError
from resnet50_server.variants.download import official_path
from resnet50_server.variants.network import read_weights
from resnet50_server.variants.official import official_facts
from resnet50_server.variants.spec import parse_variant
from tests.support import weights

pytestmark = weights.ignore_torchs_plans_for_int8

V1, V2 = ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2
INT8_V1 = ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V1
INT8_V2 = ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V2


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("member", [V1, V2, INT8_V1, INT8_V2], ids=lambda member: member.name)
def test_missing_official_file_is_downloaded(monkeypatch, tmp_path, member, capsys):
    published = weights.publish(monkeypatch, member, weights.hollow(1000), tmp_path / "there")
    here = tmp_path / "not yet" / "here"
    state = read_weights(parse_variant(member.name), here, download=True)
    assert [path.name for path in here.iterdir() if path.suffix != ".lock"] == [published.name]
    assert state.digest == sha256(published)
    assert state.state.keys() == weights.hollow().keys()
    assert capsys.readouterr().out == ""  # stdout is for scripts that wait for `listening on`


@pytest.mark.parametrize("member", [V1, V2, INT8_V1, INT8_V2], ids=lambda member: member.name)
def test_download_of_a_wrong_hash_is_refused_and_removed(monkeypatch, tmp_path, member):
    published = weights.publish(monkeypatch, member, weights.hollow(1000), tmp_path / "there")
    published.write_bytes(published.read_bytes() + b"!")
    here = tmp_path / "here"
    with pytest.raises(WeightsError, match="hash") as refused:
        read_weights(parse_variant(member.name), here, download=True)
    assert published.name in str(refused.value)
    assert [path.suffix for path in here.iterdir()] == [".lock"]


def test_file_that_is_here_is_used_without_the_network(monkeypatch, tmp_path):
    published = weights.publish(monkeypatch, V2, weights.hollow(1000), tmp_path / "there")
    here = tmp_path / "here"
    here.mkdir()
    published.rename(here / published.name)  # nothing is left at the URL
    found = read_weights(parse_variant("IMAGENET1K_V2"), here, download=True)
    assert found.digest == sha256(here / published.name)


def test_missing_file_without_download_names_file_and_url(tmp_path):
    spec = parse_variant("IMAGENET1K_V2")
    with pytest.raises(WeightsError) as refused:
        read_weights(spec, tmp_path, download=False)
    for part in (
        str(tmp_path / "resnet50-11ad3fa6.pth"),
        "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
        *("--no-download", "--weights-dir", "NAME=DIRECTORY", "random:0"),
        "never replaced by random",
    ):
        assert part in str(refused.value)


def test_unreachable_url_says_why_and_what_else(monkeypatch, tmp_path):
    monkeypatch.setitem(
        official_facts()["variants"][V2.name], "url", (tmp_path / "nothing-11ad3fa6.pth").as_uri()
    )
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*URLError.*random:0"):
        read_weights(parse_variant("IMAGENET1K_V2"), tmp_path / "here", download=True)


def test_server_that_does_not_speak_http_is_a_failed_download(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"what?\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/resnet50-11ad3fa6.pth"
        monkeypatch.setitem(official_facts()["variants"][V2.name], "url", url)
        with pytest.raises(WeightsError, match="cannot be downloaded"):
            read_weights(parse_variant("IMAGENET1K_V2"), tmp_path, download=True)
        thread.join()


def test_half_downloaded_official_file_is_refused_by_its_hash(monkeypatch, tmp_path):
    published = weights.publish(monkeypatch, V2, weights.hollow(1000), tmp_path)
    content = published.read_bytes()
    published.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"not what torchvision published.*delete it") as refused:
        read_weights(parse_variant("IMAGENET1K_V2"), tmp_path, download=True)
    assert str(published) in str(refused.value)
    assert published == official_path(parse_variant("IMAGENET1K_V2"), tmp_path)
