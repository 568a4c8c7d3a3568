"""`resnet50` and text that others chose: nothing of it reaches a terminal that it would obey."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest
from typer.testing import CliRunner, Result

import resnet50_bench
import resnet50_cli
from resnet50_cli.app import app
from resnet50_cli.connection_options import servers_of_options
from resnet50_cli.output import printable
from resnet50_client import InvalidImageError
from resnet50_client._profiles import ENVIRONMENT
from resnet50_client.testing import FakeServer
from tests.support.exporting import Exported, exporting
from tests.support.pictures import encode, photo_like
from tests.support.puppet_server import Puppet, puppet_server
from tests.support.secured import Files, bundle, server_credentials

# A title, a cleared screen, a C1 sequence, markup, an emoji, text that runs backwards, DEL, and a
# line of its own.
EVIL = (
    "\x1b]0;title\x07\x1b[2J\x9b31m[bold]cat[/bold] :smile: \u202egnp\u202c\u2066\u2069\u200e\u200f"
    "\u061c\x7f\u2028\r\nfake.jpg: cat 99%"
)
SEEN = "[bold]cat[/bold] :smile:"  # where it is shown, it is all there
QUICK = ("--duration-s", "0.05", "--warm-up-s", "0", "--concurrency", "1")
EVERY = {
    "classify": ("classify", "PHOTO"),
    "embed": ("embed", "PHOTO", "--out", "OUT", "--restart"),
    "evaluate": ("evaluate", "LABELLED"),
    "stream": ("stream", "PHOTOS", "--fps", "1000"),
    "health": ("health",),
    "variants": ("variants",),
    "variants show": ("variants", "show"),
    "variants load": ("variants", "load", "digits"),
    "variants unload": ("variants", "unload", "digits"),
    "variants default": ("variants", "default", "digits"),
    "variants split": ("variants", "split", "digits", "pets", "--canary", "1"),
    "variants splits": ("variants", "splits"),
    "variants unsplit": ("variants", "unsplit", "digits"),
    "bench": ("bench", "PHOTO", *QUICK),
    "bench upload": ("bench", "PHOTO", "--shape", "upload", *QUICK),
    "bench stream": ("bench", "PHOTO", "--shape", "stream", *QUICK),
    "top": ("top", "--once", "--interval-s", "0.1", "--metrics", "METRICS"),
}


@pytest.fixture
def places(tmp_path, metrics) -> dict[str, str]:
    """Values of the placeholders in a command."""
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    photo.write_bytes(encode(photo_like(16, 16)))
    labelled = tmp_path / "labelled" / "0" / "a.png"
    labelled.parent.mkdir(parents=True)
    labelled.write_bytes(photo.read_bytes())
    return {
        "LABELLED": str(labelled.parent.parent),
        "PHOTO": str(photo),
        "PHOTOS": str(photo.parent),
        "OUT": str(tmp_path / "vectors.npz"),
        "METRICS": metrics,
    }


@pytest.fixture(scope="module")
def metrics() -> Iterator[str]:
    exported = Exported(version=EVIL)
    exported.load(EVIL, default=True, digest=EVIL)
    exported.answer(EVIL, 4)
    exported.busy.labels(EVIL).inc()
    exported.shed.labels(EVIL).inc()
    with exporting(exported) as address:
        yield address


def run(command: Sequence[str], places: dict[str, str], **environment: str) -> Result:
    """Run a command here; unlike a process of its own, it costs no second."""
    outer = {name: None for name in os.environ if name.startswith("RESNET50_")}
    done = CliRunner().invoke(
        app,
        [places.get(part, part) for part in command],
        env=outer | {"COLUMNS": "1000", "TERM": "dumb"} | environment,
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def assert_tame(text: str) -> None:
    assert {one for one in text if not one.isprintable()} <= {"\n"}
    assert not [line for line in text.splitlines() if line.startswith("fake")]


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", EVERY)
def test_nothing_that_a_server_says_steers_the_terminal(command, as_json, places):
    with puppet_server(Puppet(EVIL)) as address:
        asked = (*EVERY[command], "--server", address, *(["--json"] if as_json else []))
        done = run(asked, places)
    assert done.exit_code == 0, done.output
    assert_tame(done.output)
    if as_json and done.stdout:
        for line in done.stdout.splitlines():
            json.loads(line)
    elif command not in ("health", "embed"):
        assert SEEN in done.output, done.output


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", EVERY)
def test_nothing_in_a_refusal_steers_the_terminal(command, as_json, places):
    with puppet_server(Puppet(EVIL, fails=grpc.StatusCode.FAILED_PRECONDITION)) as address:
        asked = (*EVERY[command], "--server", address, *(["--json"] if as_json else []))
        done = run(asked, places)
    assert_tame(done.output)
    if command != "top":  # which shows what metrics say all the same
        assert done.exit_code == 1
        assert SEEN in done.stderr, done.output


@pytest.mark.parametrize("command", ["classify", "embed", "evaluate"])
def test_nothing_in_the_error_of_an_image_steers_the_terminal(command, places):
    with FakeServer() as server:
        server.script(InvalidImageError(EVIL, field="image"))
        done = run((*EVERY[command], "--server", server.address), places)
    assert done.exit_code == 1
    assert_tame(done.output)
    assert SEEN in done.stderr


def test_nothing_in_the_error_of_a_frame_steers_the_terminal(places):
    with puppet_server(Puppet(EVIL, frames="failed")) as address:
        done = run((*EVERY["stream"], "--server", address), places)
    assert done.exit_code == 1
    assert_tame(done.output)
    assert SEEN in done.stderr


def test_names_of_files_are_shown_as_they_are_and_steer_nothing(places):
    folder = Path(places["PHOTOS"])
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\x1b[2Jcat\xff.png")
    with puppet_server(Puppet("cat")) as address:
        done = run(("classify", "PHOTOS", "--server", address), places)
    assert_tame(done.output)
    assert r"\x1b[2Jcat\udcff.png: cat" in done.stdout


@contextlib.contextmanager
def answering_with(reason: str) -> Iterator[str]:
    """Answer HTTP requests with a status whose words are `reason`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500, reason)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_http_status_text_is_escaped_for_the_terminal(places):
    with answering_with("\x1b[2J\x9bcat") as address:
        done = run(("top", "--once", "--metrics", address), places)
    assert done.exit_code == 3
    assert_tame(done.output)
    assert r"HTTP status 500 \x1b[2J\x9bcat" in done.stderr


def test_printable_keeps_what_can_be_read_and_escapes_the_rest():
    assert printable("日本 Füchse 🦊 a\tb\\n") == "日本 Füchse 🦊 a\\tb\\n"
    assert printable("\x1b\x9b\u202e\ud800\U000e0001") == r"\x1b\x9b\u202e\ud800\U000e0001"
    assert printable({"a\n": ["\r", ("\0", 1, None)]}) == {r"a\n": [r"\r", (r"\x00", 1, None)]}


@pytest.mark.parametrize("command", [("classify", "image"), ("variants",), ("--help",)], ids=str)
def test_output_that_takes_few_characters_gets_the_others_escaped(command, tmp_path):
    """Such as a pipe on Windows."""
    (tmp_path / "image").write_bytes(b"image")
    with FakeServer(categories=("\u732b",)) as server:
        chosen = {"RESNET50_SERVER": server.address, "PYTHONIOENCODING": "cp1252"}
        done = subprocess.run(
            [sys.executable, "-m", "resnet50_cli", *command],
            cwd=tmp_path,
            env=os.environ | chosen,
            capture_output=True,
            encoding="cp1252",
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
    if command[0] == "classify":
        assert done.stdout.startswith("image: \\u732b 100.0%")


def test_commands_write_through_one_module_only():
    folders = [Path(inspect.getfile(one)).parent for one in (resnet50_cli, resnet50_bench)]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        names = {
            node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        # `__main__` writes of packages without which `output` cannot be imported.
        if path.name not in ("output.py", "__main__.py"):
            assert not names & {"print", "Console", "typer.echo", "typer.secho"}, path


# Environment and profile are read by `with_servers`, which all commands share.
@pytest.mark.parametrize(
    ("command", "source"),
    [*((command, "flags") for command in EVERY), ("classify", "environment"), ("embed", "profile")],
)
def test_every_connection_option_goes_with_every_command(command, source, ca, places, tmp_path):
    files = Files(tmp_path)
    pair = files.client(ca, "operator")
    (tmp_path / "token").write_text("secret")
    puppet = Puppet("cat")
    with puppet_server(puppet, server_credentials(ca, "models", clients=bundle(ca))) as address:
        options = {
            "server": address,
            "tls": "true",
            "ca": str(files.ca(ca)),
            "cert": str(pair["cert"]),
            "key": str(pair["key"]),
            "token_file": str(tmp_path / "token"),
            "server_name": "models",
            "insecure_token": "true",
            "priority": "bulk",
            "caller_key": "alice",
        }
        profile = tmp_path / "profiles.toml"
        values = (
            f"{name} = {value if value == 'true' else json.dumps(value)}\n"
            for name, value in options.items()
        )
        profile.write_text("[profiles.prod]\n" + "".join(values))
        flags, environment = [], {}
        if source == "flags":
            for name, value in options.items():
                flag = "--" + name.replace("_", "-")
                flags += [flag] if value == "true" else [flag, value]
        elif source == "environment":
            environment = {f"RESNET50_{name.upper()}": value for name, value in options.items()}
        else:
            options |= {"profile": "prod", "profile_file": str(profile)}
            flags = ["--profile", "prod", "--profile-file", str(profile)]
        done = run((*EVERY[command], *flags), places, **environment)
    assert done.exit_code == 0, done.output
    assert puppet.metadata
    for method, metadata in puppet.metadata:
        assert metadata["authorization"] == "Bearer secret", method
        assert metadata["x-priority"] == "bulk", method
        assert metadata["x-caller-key"] == "alice", method
    if source == "profile":
        assert options.keys() == inspect.signature(servers_of_options).parameters.keys()
        # Flags of some commands, or of none.
        own = ("TOKEN", "TIMEOUT_S", "VARIANT", "COMPRESSION", "WAIT_FOR_READY")
        elsewhere = {f"RESNET50_{name}" for name in own}
        named = {f"RESNET50_{name.upper()}" for name in options}
        assert named | elsewhere == set(ENVIRONMENT)
