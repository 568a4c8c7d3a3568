from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import resnet50_server.cli.serve
import resnet50_server.settings
from resnet50_server.cli.main import app, main
from resnet50_server.settings import ENV_PREFIX, Settings
from resnet50_settings.groups import groups_of
from tests.support.faults import unprivileged

VARIANT = ("--variants", "x=random:0")


class Served:
    """Stands where a server would start; `resnet50-server serve` gives it its settings."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []

    async def __call__(self, settings: Settings) -> int:
        self.settings.append(settings)
        return 0

    def by(self, *arguments: str) -> Settings:
        """Return the settings that these flags give."""
        assert main(["serve", *arguments]) == 0
        return self.settings[-1]


@pytest.fixture
def served(monkeypatch) -> Iterator[Served]:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    served = Served()
    monkeypatch.setattr(resnet50_server.cli.serve, "serve", served)
    yield served
    gc.enable()  # which `serve` does


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text("max_batch_size = 11\nmax_queue_size = 12\nmax_requests = 13\n")
    return path


def test_flag_beats_environment_beats_file_beats_default(served, config, monkeypatch):
    monkeypatch.setenv("RESNET50_MAX_BATCH_SIZE", "21")
    monkeypatch.setenv("RESNET50_MAX_QUEUE_SIZE", "22")
    settings = served.by(*VARIANT, "--config", str(config), "--max-batch-size", "31")
    assert (settings.max_batch_size, settings.max_queue_size, settings.max_requests) == (31, 22, 13)
    assert settings.max_queue_delay_ms == 0.0


def test_environment_names_the_file(served, config, monkeypatch):
    monkeypatch.setenv("RESNET50_CONFIG", str(config))
    assert served.by(*VARIANT).max_requests == 13


def test_lists_are_repeated_flags_or_comma_separated(served, monkeypatch):
    monkeypatch.setenv("RESNET50_VARIANTS", "IMAGENET1K_V1, x=random:0,")
    monkeypatch.setenv("RESNET50_LISTEN", "127.0.0.1:1,unix:/tmp/a")
    settings = served.by()
    assert settings.variants == ["IMAGENET1K_V1", "x=random:0"]
    assert settings.listen == ["127.0.0.1:1", "unix:/tmp/a"]
    settings = served.by("--variants", "a=random:1", "--variants", "b=random:2")
    assert settings.variants == ["a=random:1", "b=random:2"]


def test_file_holds_lists_and_numbers(served, tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('variants = ["a=random:1", "b=random:2"]\nmax_queue_delay_ms = 1.5\n')
    settings = served.by("--config", str(path))
    assert settings.variants == ["a=random:1", "b=random:2"]
    assert settings.max_queue_delay_ms == 1.5


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "0.0.0.0:65535", "[::1]:50051", "host.example:1", "unix:/run/x.sock"]
)
def test_address_is_accepted(served, address):
    assert served.by(*VARIANT, "--listen", address).listen == [address]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["variants", "--variants IMAGENET1K_V2", "random:0"]),
        ([*VARIANT, "--listen", "127.0.0.1"], ["listen", "'127.0.0.1'", "host:port"]),
        ([*VARIANT, "--listen", ":50051"], ["listen", "':50051'"]),
        ([*VARIANT, "--listen", "127.0.0.1:65536"], ["listen", "65536"]),
        ([*VARIANT, "--listen", "unix:"], ["listen", "unix:PATH"]),
        ([*VARIANT, "--tls-cert", "a.pem"], ["tls_cert", "tls_key"]),
        ([*VARIANT, "--tls-key", "a.key"], ["tls_key", "tls_cert"]),
        ([*VARIANT, "--tls-client-ca", "ca.pem"], ["tls_client_ca", "tls_cert", "tls_key"]),
        (
            [*VARIANT, "--max-batch-size", "many"],
            ["max_batch_size", "integer", "(--max-batch-size)"],
        ),
        ([*VARIANT, "--max-batch-size", "0"], ["max_batch_size", "greater than or equal to 1"]),
        ([*VARIANT, "--max-queue-delay-ms", "-1"], ["max_queue_delay_ms"]),
        ([*VARIANT, "--drain-timeout-s", "inf"], ["drain_timeout_s", "finite"]),
        ([*VARIANT, "--max-rate-per-caller", "inf"], ["max_rate_per_caller", "finite"]),
        ([*VARIANT, "--device", "tpu"], ["device", "cuda"]),
        ([*VARIANT, "--precision", "fp8"], ["precision", "bf16"]),
        ([*VARIANT, "--engine", "magic"], ["engine", "torch"]),
        ([*VARIANT, "--max-receive-bytes", "9999"], ["max_receive_bytes", "9999", "4194304"]),
        ([*VARIANT, "--max-decode-pixels", "9999"], ["max_decode_pixels", "9999", "50000000"]),
        (
            [*VARIANT, "--response-cache-bytes", "64"],
            ["response_cache_bytes", "64", "1048576", "0 to disable the cache"],
        ),
        ([*VARIANT, "--config", "/no/such.toml"], ["config", "/no/such.toml"]),
        ([*VARIANT, "--max-batchsize", "3"], ["--max-batchsize"]),
        ([*VARIANT, "--listen"], ["--listen", "requires an argument"]),
        ([*VARIANT, "--otlp-endpoint", "h:4317"], ["otlp_endpoint", "'h:4317'", "http://"]),
        ([*VARIANT, "--trace-ratio", "1.5"], ["trace_ratio", "less than or equal to 1"]),
        ([*VARIANT, "more"], ["more"]),
    ],
    ids=" ".join,
)
def test_wrong_flag_is_one_clear_line_and_no_server(served, capsys, arguments, parts):
    assert_refused(served, capsys, arguments, parts)


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        (
            *("RESNET50_MAX_BATCHSIZE", "3"),
            ["environment", "RESNET50_MAX_BATCHSIZE; did you mean RESNET50_MAX_BATCH_SIZE?"],
        ),
        ("resnet50_max_batchsize", "3", ["resnet50_max_batchsize", "environment"]),
        (
            *("RESNET50_MAX_BATCH_SIZE", "many"),
            ["max_batch_size", "integer", "in the environment, RESNET50_MAX_BATCH_SIZE"],
        ),
        ("RESNET50_DOWNLOAD", "perhaps", ["download"]),
        ("RESNET50_VARIANTS", ",", ["variants"]),
        ("RESNET50_LISTEN", ",", ["listen"]),
    ],
)
def test_wrong_environment_is_one_clear_line_and_no_server(
    served, capsys, monkeypatch, name, value, parts
):
    monkeypatch.setenv(name, value)
    arguments = [] if name == "RESNET50_VARIANTS" else list(VARIANT)
    assert_refused(served, capsys, arguments, parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"max_batchsize = 3", ["config", "max_batchsize; did you mean max_batch_size?"]),
        (b"[serve]\nmax_batch_size = 3", ["serve"]),
        (b'max_batch_size = "many"', ["max_batch_size", "integer", "file that --config names"]),
        (b"max_batch_size 3", ["config", "server.toml", "line 1"]),
        (b"\xff\xfe", ["config", "server.toml"]),
    ],
)
def test_wrong_file_is_one_clear_line_and_no_server(served, capsys, config, content, parts):
    config.write_bytes(content)
    assert_refused(served, capsys, [*VARIANT, "--config", str(config)], parts)


def test_unreadable_config_is_one_line_and_exit_2(served, capsys, config):
    config.chmod(0)
    with unprivileged():
        assert main(["serve", *VARIANT, "--config", str(config)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"resnet50-server: config: {config}")
    assert "Permission denied" in errors
    assert errors.count("\n") == 1


def test_each_problem_is_a_line_of_its_own(served, capsys, monkeypatch):
    monkeypatch.setenv("RESNET50_MAX_BATCH_SIZE", "many")
    assert main(["serve", *VARIANT, "--precision", "fp8", "--max-queue-size=0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[1].rstrip(":") for line in lines) == [
        *("max_batch_size", "max_queue_size", "precision")
    ]


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(
        r"resnet50-server (\d+\.\d+\S*|.*from its sources)\n", capsys.readouterr().out
    )


def assert_refused(served: Served, capsys, arguments: list[str], parts: list[str]) -> None:
    assert main(["serve", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("resnet50-server: ")
    assert errors.count("\n") == 1, errors
    for part in parts:
        assert part in errors
    assert served.settings == []


def test_help_has_every_setting_in_the_panel_of_its_group(served):
    shown = help_of("serve")
    texts = re.split("|".join(f"─ {title} ─" for title in groups_of(Settings)), shown)
    panels = dict(zip(groups_of(Settings), texts[1:], strict=True))
    for title, names in groups_of(Settings).items():
        text = " ".join(panels[title].replace("│", " ").split())
        for name in names:
            assert f"--{name.replace('_', '-')} " in text
            assert Settings.model_fields[name].description in text
    assert "--listen TEXT" in " ".join(shown.split())
    assert "Default: 32." in shown
    assert served.settings == []


@pytest.mark.parametrize("command", ["", "variants", "tokens", "tokens new", "variants show"])
def test_help_of_every_command_is_shown(command):
    assert f"Usage: resnet50-server {command}".rstrip() in help_of(*command.split())


def test_flags_are_completed_in_the_shell(capsys, monkeypatch):
    monkeypatch.setenv("_RESNET50_SERVER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "resnet50-server serve --max-ba")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 0
    assert capsys.readouterr().out.split() == ["--max-batch-size"]


def help_of(*command: str) -> str:
    """Return the help of a command, on a terminal that is wide enough for a line per option."""
    done = CliRunner().invoke(
        app, [*command, "--help"], prog_name="resnet50-server", env={"COLUMNS": "600"}
    )
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "RESNET50_SERVICE_HOST",
        "RESNET50_SERVICE_PORT",
        "RESNET50_SERVICE_PORT_GRPC",
        "RESNET50_PORT",
        "RESNET50_PORT_50051_TCP_ADDR",
    ],
)
def test_kubernetes_service_variables_are_ignored(served, monkeypatch, name):
    monkeypatch.setenv(name, "tcp://10.0.0.1:50051")
    assert main(["serve", *VARIANT]) == 0


def test_empty_environment_value_sets_nothing(served, monkeypatch):
    monkeypatch.setenv("RESNET50_MAX_BATCH_SIZE", "")
    assert main(["serve", *VARIANT]) == 0
    assert served.settings[-1].max_batch_size == 32


def test_tracing_without_opentelemetry_says_what_to_install(served, capsys, monkeypatch):
    monkeypatch.setattr(resnet50_server.settings, "OTLP_EXPORTER", "not_there.exporter")
    arguments = [*VARIANT, "--otlp-endpoint", "http://localhost:4317"]
    assert_refused(served, capsys, arguments, ["otlp_endpoint", "the extra [otel]"])
