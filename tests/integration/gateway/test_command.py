"""The command `resnet50-gateway`: help, version, wrong usage."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from resnet50_gateway.command import app, main
from resnet50_gateway.settings import Settings
from resnet50_settings.groups import groups_of


def test_help_has_every_setting_in_the_panel_of_its_group():
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "600"})
    assert done.exit_code == 0
    titles = list(groups_of(Settings))
    texts = re.split("|".join(f"─ {title} ─" for title in titles), done.stdout)
    panels = dict(zip(titles, texts[1:], strict=True))
    for title, names in groups_of(Settings).items():
        text = " ".join(panels[title].replace("│", " ").split())
        for name in names:
            assert f"--{name.replace('_', '-')} " in text
            assert Settings.model_fields[name].description in text
    assert "--version" in texts[0]
    assert "Default: 127.0.0.1:8080." in done.stdout
    assert "Exit codes: 0" in done.stdout


def test_version_is_that_of_the_description(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"resnet50-gateway \S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "environment", "parts"),
    [
        (["--max-bodybytes", "1"], {}, ["--max-bodybytes", "resnet50-gateway --help"]),
        (["--max-body-bytes", "1"], {}, ["max_body_bytes: ", "(--max-body-bytes)"]),
        (["--listen", "here"], {}, ["listen: 'here' is not host:port"]),
        (["--metrics-listen", "9464"], {}, ["metrics_listen: '9464' is not host:port"]),
        (["--server", "a:1", "--server", "b"], {}, ["server: 'b' is neither host:port nor unix:"]),
        ([], {"MAX_IMAGES": "x"}, ["max_images: ", "RESNET50_GATEWAY_MAX_IMAGES"]),
        ([], {"MAX_IMAGE": "1"}, ["did you mean RESNET50_GATEWAY_MAX_IMAGES?"]),
        (["--tls-cert", "a.pem"], {}, ["tls_cert: needs tls_key"]),
        (["--keep-alive-s", "inf"], {}, ["keep_alive_s: ", "finite"]),
    ],
)
def test_wrong_usage_is_one_line_with_its_source(
    capsys, monkeypatch, arguments, environment, parts
):
    for name, value in environment.items():
        monkeypatch.setenv(f"RESNET50_GATEWAY_{name}", value)
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("resnet50-gateway: ")
    assert errors.count("\n") == 1, errors
    for part in parts:
        assert part in errors
