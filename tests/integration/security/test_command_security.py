"""`resnet50` over TLS, with tokens: from flags, from the environment, from a profile."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest
from typer.testing import CliRunner

from resnet50_cli.app import app
from tests.support import processes
from tests.support.pictures import encode, photo_like
from tests.support.secured import Files, bundle, fronting, server_credentials

TOKEN = "a-very-secret-token"
QUICK = ("--duration-s", "0.2", "--warm-up-s", "0", "--json")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encode(photo_like(32, 32)))
    return folder


async def resnet50(*arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    outer = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
    done = await asyncio.to_thread(
        processes.run,
        *("resnet50", *arguments),
        environment=outer | {f"RESNET50_{name}": str(one) for name, one in environment.items()},
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


def commands(photos, tmp_path) -> list[tuple[object, ...]]:
    return [
        ("health",),
        ("variants",),
        ("classify", photos),
        ("embed", photos, "--out", tmp_path / "vectors.npz"),
        ("stream", photos, "--fps", "1000"),
        ("bench", photos, *QUICK),
        ("bench", photos, "--shape", "upload", *QUICK),
        ("bench", photos, "--shape", "stream", *QUICK),
    ]


async def test_every_command_goes_through_mtls_with_a_token(ca, photos, tmp_path):
    certificate = Files(tmp_path).client(ca, "operator")
    profile = tmp_path / "profiles.toml"
    (tmp_path / "token").write_text(TOKEN)
    async with fronting(server_credentials(ca, clients=bundle(ca))) as front:
        front.tokens = {TOKEN}
        profile.write_text(
            f"[profiles.prod]\nserver = '{front.address}'\nca = 'ca.pem'\ncert = 'client.pem'\n"
            "key = 'client.key'\ntoken_file = 'token'\npriority = 'bulk'\n"
        )
        Files(tmp_path).ca(ca)
        for command in commands(photos, tmp_path):
            begun = len(front.seen)
            done = await resnet50(*command, "--profile", "prod", "--profile-file", profile)
            assert done.returncode == 0, (command, done.stderr)
            calls = front.seen[begun:]
            assert calls, command
            assert {one.client for one in calls} == {"operator"}
            assert {one.metadata.get("authorization") for one in calls} == {f"Bearer {TOKEN}"}
            assert {one.metadata.get("x-priority") for one in calls} == {"bulk"}
    assert certificate["key"].exists()


async def test_flags_and_environment_say_the_same_as_a_profile(ca, tmp_path):
    files = Files(tmp_path)
    certificate = files.client(ca, "operator")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    async with fronting(server_credentials(ca, "models", clients=bundle(ca))) as front:
        front.tokens = {TOKEN}
        flags = {
            "--server": front.address,
            "--ca": files.ca(ca),
            "--cert": certificate["cert"],
            "--key": certificate["key"],
            "--server-name": "models",
            "--token-file": token,
            "--priority": "bulk",
        }
        done = await resnet50("health", *(part for pair in flags.items() for part in pair))
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
        environment = {key.strip("-").upper().replace("-", "_"): v for key, v in flags.items()}
        done = await resnet50("health", **environment)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
        environment.pop("TOKEN_FILE")
        done = await resnet50("health", **environment, TOKEN=TOKEN)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
    assert [one.metadata["x-priority"] for one in front.seen] == ["bulk"] * 3


async def test_flag_beats_the_environment_which_beats_the_profile(tmp_path):
    profile = tmp_path / "profiles.toml"
    profile.write_text("[profiles.x]\nserver = '127.0.0.1:1'\ntoken_file = 'absent'\n")
    (tmp_path / "flag").write_text("of-the-flag")
    async with fronting() as front:
        environment = {
            "PROFILE": "x",
            "PROFILE_FILE": profile,
            "SERVER": front.address,
            "TOKEN": "of-the-environment",
        }
        assert (await resnet50("health", **environment)).returncode == 0
        done = await resnet50("health", "--token-file", tmp_path / "flag", **environment)
        assert done.returncode == 0, done.stderr
    assert front.authorizations == ["Bearer of-the-environment", "Bearer of-the-flag"]


async def test_tls_flag_trusts_the_authorities_of_grpc(ca, tmp_path, monkeypatch):
    roots = Files(tmp_path).ca(ca)
    async with fronting(server_credentials(ca)) as front:
        for flag, trusted, expected in (
            (["--tls"], True, 0),
            (["--tls"], False, 3),
            (["--no-tls"], True, 3),
            ([], True, 3),
        ):
            if trusted:
                monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(roots))
            else:
                monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
            done = await resnet50("health", *flag, "--server", front.address)
            assert done.returncode == expected, done.stderr
            assert ("TLS" in done.stderr) == (expected == 3)


async def test_what_is_wrong_is_one_line_and_an_exit_code(tmp_path):
    absent = tmp_path / "absent.pem"
    async with fronting() as front:
        front.tokens = {TOKEN}
        at = {"SERVER": front.address}
        for arguments, environment, status, told in (
            (["--ca", absent], at, 1, "ca: No such file or directory"),
            (["--cert", absent], at, 2, "cert, key: a client certificate needs both"),
            (["--profile", "x", "--profile-file", absent], at, 1, "profile file: No such file"),
            ([], at, 1, "authorization: missing"),
            ([], at | {"TOKEN": "wrong"}, 1, "authorization: the token is unknown"),
            ([], {"SERVER": "models.example:1", "TOKEN": TOKEN}, 2, "in plaintext"),
            ([], at | {"TLS": "perhaps"}, 2, "RESNET50_TLS: tls: must be true or false"),
        ):
            done = await resnet50("health", *arguments, **environment)
            assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
            assert told in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        *("classify", "embed", "stream", "bench", "health"),
        *(f"variants {name}" for name in ("list", "show", "load", "unload", "default")),
    ],
)
def test_a_token_cannot_be_given_where_others_see_it(name):
    told = CliRunner().invoke(
        app, [*name.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"}
    )
    words = set(told.stdout.split())
    assert {"--server", "--profile", "--ca", "--cert", "--key", "--token-file"} <= words
    assert "--token" not in words
