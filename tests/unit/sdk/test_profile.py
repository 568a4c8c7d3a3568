from __future__ import annotations

import pytest

from resnet50_client._profiles import ENVIRONMENT, Profile, profile_file
from resnet50_client.testing import FakeServer
from tests.support.clients import classify_once


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def written(tmp_path):
    """Write the user's profile file; give what does."""
    path = tmp_path / "config" / "resnet50" / "profiles.toml"
    path.parent.mkdir(parents=True)

    def write(text: str, mode: int = 0o600):
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


PROD = """
[profiles.prod]
server = ["models-1.example:443", "models-2.example:443"]
server_name = "models.example"
ca = "ca.pem"
cert = "/etc/client.pem"
key = "~/client.key"
token_file = "secrets/token"
timeout_s = 5
priority = "bulk"

[profiles.local]
server = "unix:/run/r.sock"
"""


def test_profile_is_read_with_its_paths_from_its_folder(written, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    folder = written(PROD).parent
    assert Profile.named("prod").arguments() == {
        "server": ("models-1.example:443", "models-2.example:443"),
        "server_name": "models.example",
        "ca": str(folder / "ca.pem"),
        "cert": "/etc/client.pem",
        "key": "/home/someone/client.key",
        "token_file": str(folder / "secrets" / "token"),
        "timeout_s": 5.0,
        "priority": "bulk",
    }
    assert Profile.named("local").arguments() == {"server": ("unix:/run/r.sock",)}


def test_file_is_the_argument_or_the_environments_or_the_users(written, tmp_path, monkeypatch):
    assert profile_file() == written("[profiles.a]\nserver = 'users:1'")
    other, third = tmp_path / "other.toml", tmp_path / "third.toml"
    other.write_text("[profiles.a]\nserver = 'environments:1'")
    third.write_text("[profiles.a]\nserver = 'arguments:1'")
    assert Profile.named("a").server == ("users:1",)
    monkeypatch.setenv("RESNET50_PROFILE_FILE", str(other))
    assert Profile.named("a").server == ("environments:1",)
    assert Profile.named("a", third).server == ("arguments:1",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^profile: .*profiles\.toml has no \[profiles\.prod\]; it has none"),
        ("[profiles.a]\n[profiles.b]", "it has 'a', 'b'"),
        ("[profiles.prod]\nservers = 'a'", r"\[profiles\.prod\] servers: is unknown; known are"),
        ("[profile.prod]\nserver = 'a'", "has 'profile'; only \\[profiles"),
        ("profiles = 5", "has no tables"),
        ("[profiles]\nprod = 5", "has no tables"),
        ("[profiles.prod]\nserver = 5", "server: must be an address or a list"),
        ("[profiles.prod]\nserver = ['a', 5]", "server: must be an address or a list"),
        ("[profiles.prod]\ntimeout_s = '5'", "timeout_s: must be a number"),
        ("[profiles.prod]\ntimeout_s = 0", "timeout_s: must be a number of seconds above 0"),
        ("[profiles.prod]\ntimeout_s = true", "timeout_s: must be a number"),
        ("[profiles.prod]\ntls = 'yes'", "tls: must be true or false"),
        ("[profiles.prod]\nca = 5", "ca: must be text"),
        ("[profiles.prod]\ntoken = ''", "token: must be text, and not empty"),
        ("a = " + 5000 * "[" + 5000 * "]", "is not TOML"),
        ("[profiles.prod]\ntoken = hidden-secret", r"is not TOML \(at line 2, column 9\)"),
    ],
)
def test_wrong_profiles_are_refused_by_name(written, text, message):
    written(text)
    with pytest.raises(ValueError, match=message) as error:
        Profile.named("prod")
    assert "hidden-secret" not in str(error.value)


def test_profile_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"profile file: No such file.*profiles\.toml"):
        Profile.named("prod")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_token_in_a_file_that_others_may_open_is_refused(written, mode):
    written("[profiles.prod]\nserver = 'a:1'\n[profiles.test]\ntoken = 'hidden'", mode)
    with pytest.raises(ValueError, match=rf"mode {mode:04o}\): chmod 600"):
        Profile.named("prod")


def test_file_that_holds_no_token_may_be_open_to_others(written):
    written("[profiles.prod]\nserver = 'a:1'\ntoken_file = 'token'", 0o644)
    assert Profile.named("prod").server == ("a:1",)
    written("[profiles.prod]\ntoken = 'hidden'", 0o400)
    assert Profile.named("prod").token == "hidden"


def test_environment_is_read_and_beats_the_profile_that_it_names(written, monkeypatch):
    folder = written(PROD).parent
    monkeypatch.setenv("RESNET50_PROFILE", "prod")
    monkeypatch.setenv("RESNET50_SERVER", "a:1, b:2  c:3")
    monkeypatch.setenv("RESNET50_TLS", "yes")
    monkeypatch.setenv("RESNET50_INSECURE_TOKEN", "0")
    monkeypatch.setenv("RESNET50_TIMEOUT_S", "2.5")
    monkeypatch.setenv("RESNET50_CA", "")  # empty says nothing
    monkeypatch.setenv("RESNET50_VARIANT", "IMAGENET1K_V1")
    monkeypatch.setenv("RESNET50_COMPRESSION", "gzip")
    monkeypatch.setenv("RESNET50_WAIT_FOR_READY", "1")
    known = Profile.of_environment().arguments()
    assert known["server"] == ("a:1", "b:2", "c:3")
    assert known["tls"] is True and known["insecure_token"] is False
    assert (known["timeout_s"], known["priority"]) == (2.5, "bulk")
    assert known["ca"] == str(folder / "ca.pem")
    assert (known["variant"], known["compression"]) == ("IMAGENET1K_V1", "gzip")
    assert known["wait_for_ready"] is True


def test_environment_without_a_profile_reads_no_file(written, monkeypatch):
    written("nonsense")
    monkeypatch.setenv("RESNET50_SERVER", "a:1")
    assert Profile.of_environment() == Profile(server=("a:1",))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TLS", "perhaps", "^RESNET50_TLS: tls: must be true or false"),
        ("WAIT_FOR_READY", "maybe", "^RESNET50_WAIT_FOR_READY: wait_for_ready: must be true or"),
        ("SERVER", "unix-me@host:1", "^RESNET50_SERVER: server: must be host:port"),
        ("TIMEOUT_S", "soon", "^RESNET50_TIMEOUT_S: timeout_s: must be a number"),
        ("PROFILE", "prod", "^profile: "),
    ],
)
def test_wrong_environment_is_refused_by_name(written, monkeypatch, name, value, message):
    written("")
    monkeypatch.setenv(f"RESNET50_{name}", value)
    with pytest.raises(ValueError, match=message):
        Profile.of_environment()


def test_flags_beat_the_environment_which_beats_the_profile(written, monkeypatch):
    written("[profiles.x]\nserver = 'p:1'\nca = '/p'\nserver_name = 'p'\npriority = 'bulk'")
    monkeypatch.setenv("RESNET50_PROFILE", "absent")
    monkeypatch.setenv("RESNET50_SERVER", "e:1")
    monkeypatch.setenv("RESNET50_CA", "/e")
    flags = Profile(server=("f:1",)).with_defaults("x", None)
    assert flags == Profile(server=("f:1",), ca="/e", server_name="p", priority="bulk")


def test_tokens_and_certificates_are_taken_whole_from_one_place(monkeypatch):
    monkeypatch.setenv("RESNET50_TOKEN", "hidden")
    monkeypatch.setenv("RESNET50_CERT", "/e.pem")
    monkeypatch.setenv("RESNET50_KEY", "/e.key")
    flags = Profile(token_file="/f").with_defaults(None, None)
    assert flags == Profile(token_file="/f", cert="/e.pem", key="/e.key")
    assert Profile(cert="/f.pem").with_defaults(None, None) == Profile(
        cert="/f.pem", token="hidden"
    )


async def test_token_of_a_program_beats_the_token_file_of_its_environment(
    kind, tmp_path, monkeypatch
):
    (tmp_path / "token").write_text("of-the-environment")
    monkeypatch.setenv("RESNET50_TOKEN_FILE", str(tmp_path / "token"))
    with FakeServer() as server:
        await classify_once(kind.from_environment(server=server.address, token="own"))
    assert server.received[0].metadata["authorization"] == "Bearer own"


def test_file_without_the_name_of_a_profile_is_refused(written):
    path = written(PROD)
    with pytest.raises(ValueError, match=r"profiles\.toml is not read without a profile"):
        Profile().with_defaults(None, path)


def test_profile_does_not_show_its_token():
    assert "hidden" not in repr(Profile(token="hidden"))


async def test_clients_are_made_of_profile_and_environment(kind, written, monkeypatch):
    with FakeServer() as one, FakeServer() as other:
        written(f"[profiles.x]\nserver = '{one.address}'\ntoken = 'hidden'")
        monkeypatch.setenv("RESNET50_PROFILE", "x")
        for server, make in ((one, lambda: kind.from_profile("x")), (other, kind.from_environment)):
            monkeypatch.setenv("RESNET50_SERVER", other.address)
            assert (await classify_once(make())).top
            (received,) = server.received
            assert received.metadata["authorization"] == "Bearer hidden"
    assert "localhost:50051" in repr(kind())
