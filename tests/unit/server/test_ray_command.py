"""`resnet50-server ray deploy`: what it refuses and prints before it needs a cluster."""

from __future__ import annotations

import pytest
import yaml

from resnet50_server.cli.main import main

SERVED = ("--", "--variants=one=random:1")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--", "--max-batch-size=0"], "max_batch_size"),
        (["--", "--max-bach-size=1"], "--max-bach-size"),
        ([*SERVED, "--listen=0.0.0.0:1"], "listen is set by each replica; set port"),
        (["--min", "2", "--max", "1", *SERVED], "max_replicas: is 1, must be at least"),
        (["--num-cpus", "0", *SERVED], "num_cpus"),
    ],
)
def test_wrong_options_are_refused_without_a_cluster(capsys, arguments, text):
    assert main(["ray", "deploy", "--address", "127.0.0.1:1", *arguments]) == 2
    said = capsys.readouterr()
    assert text in said.err
    assert len(said.err.splitlines()) == 1


def test_yaml_is_printed_without_a_cluster(capsys):
    options = ["--max", "4", "--num-gpus", "1", "--variant", "digits"]
    served = ["--variants", "one=random:1", "--oip", "--no-download"]
    assert main(["ray", "deploy", "--yaml", *options, "--", *served]) == 0
    (application,) = yaml.safe_load(capsys.readouterr().out)["applications"]
    assert application["args"] == {
        "settings": {"variants": ["one=random:1"], "oip": True, "download": False},
        "max_replicas": 4,
        "num_gpus": 1.0,
    }
    config = {"variants": ["digits"], "default": None}
    assert application["deployments"] == [{"name": "server", "user_config": config}]
