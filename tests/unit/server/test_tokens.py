from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from resnet50_server.auth.tokens import MAX_TOKENS, Token, Tokens, read_tokens
from resnet50_server.cli.main import main
from resnet50_server.errors import UnusableSetting
from resnet50_server.runtime import file_changes, file_lock
from tests.support.serving import until

SECRET = "r50_vhRyQvRA5QPb1gD5GJGJNZ1Xy2a4kOe7mCk1rNvWxhE"


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def entry(name: str, secret: str, scopes: str = '["infer"]', more: str = "") -> str:
    return f'[[token]]\nname = "{name}"\nsha256 = "{sha256(secret)}"\nscopes = {scopes}\n{more}\n'


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(entry("cameras", SECRET))
    return path


def replace(path: Path, content: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(content)
    os.replace(new, path)


# Finding


def test_each_secret_finds_its_token_only(path):
    path.write_text(
        entry("cameras", SECRET)
        + entry("ops", "ops-secret", '["admin", "infer"]')
        + entry("old", "old-secret", more="expires = 2020-01-31")
    )
    tokens = Tokens(path)
    assert tokens.find(SECRET) == Token("cameras", frozenset({"infer"}))
    assert tokens.find("ops-secret") == Token("ops", frozenset({"admin", "infer"}))
    # Also one that has expired: who asks is told so.
    expires_at = datetime(2020, 1, 31, tzinfo=timezone.utc).timestamp()
    assert tokens.find("old-secret") == Token("old", frozenset({"infer"}), expires_at)
    for secret in ("", SECRET[:-1], SECRET + "A", SECRET.lower(), sha256(SECRET), "\udcff"):
        assert tokens.find(secret) is None


def test_digests_that_begin_alike_are_told_apart(path):
    # The SHA-256 of both begin with the same four bytes.
    one, other = f"secret-{23564:032d}", f"secret-{52296:032d}"
    assert sha256(one)[:8] == sha256(other)[:8]
    path.write_text(entry("cameras", one))
    tokens = Tokens(path)
    assert tokens.find(one) is not None
    assert tokens.find(other) is None


def test_expiry_may_be_a_time_with_its_offset(path):
    path.write_text(entry("x", SECRET, more="expires = 2030-06-01T12:00:00+02:00"))
    token = Tokens(path).find(SECRET)
    assert token.expires_at == datetime(2030, 6, 1, 10, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize("zone", ["EAST-9", "WEST+9"])
def test_expiry_date_begins_at_midnight_utc_in_any_time_zone(path, monkeypatch, zone):
    path.write_text(entry("x", SECRET, more="expires = 2030-06-01"))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", zone)
        time.tzset()
        token = Tokens(path).find(SECRET)
    time.tzset()
    assert token.expires_at == datetime(2030, 6, 1, tzinfo=timezone.utc).timestamp()


def test_as_many_tokens_as_allowed_are_all_found(path):
    path.write_text("".join(entry(f"t{one}", f"secret-{one}") for one in range(MAX_TOKENS)))
    tokens = Tokens(path)
    names = [tokens.find(f"secret-{one}").name for one in range(MAX_TOKENS)]
    assert names == [f"t{one}" for one in range(MAX_TOKENS)]


# Reading again


def test_file_is_read_again_within_a_second_of_use(path, clock):
    tokens = Tokens(path, clock)
    replace(path, entry("cameras", "another secret"))
    clock.now_s += 0.9
    assert tokens.find(SECRET)
    assert tokens.find("another secret") is None
    clock.now_s += 0.2
    assert tokens.find(SECRET) is None
    assert tokens.find("another secret").name == "cameras"


async def test_file_whose_disk_hangs_holds_up_no_call(path, clock, monkeypatch):
    """The event loop asks, and must not wait for the disk."""
    tokens, reading, released = Tokens(path, clock), threading.Event(), threading.Event()

    def hang(path: Path) -> dict[bytes, Token]:
        reading.set()
        released.wait(60)
        return read_tokens(path)

    monkeypatch.setattr("resnet50_server.auth.tokens.read_tokens", hang)
    replace(path, entry("cameras", "another secret"))
    clock.now_s += 1.1
    try:
        assert tokens.find(SECRET)  # as before, until it is read
        assert await asyncio.to_thread(reading.wait, 60)
        clock.now_s += 1.1
        assert tokens.find(SECRET)
    finally:
        released.set()
    await until(lambda: tokens.find("another secret"))
    assert tokens.find(SECRET) is None


def test_file_that_does_not_change_is_not_read_again(path, clock, monkeypatch):
    tokens, reads = Tokens(path, clock), []
    monkeypatch.setattr("resnet50_server.runtime.file_changes.MTIME_GRANULARITY_NS", 0)
    monkeypatch.setattr(
        "resnet50_server.auth.tokens.read_tokens", lambda path: reads.append(1) or read_tokens(path)
    )
    for _ in range(10):
        clock.now_s += 1.1
        assert tokens.find(SECRET)
    assert len(reads) == 1  # the first look after it was written


@pytest.mark.parametrize(("age_s", "read_again"), [(0.5, True), (5.0, False)])
def test_recently_changed_file_is_reread_despite_its_mtime(
    path, clock, monkeypatch, age_s, read_again
):
    """Written twice within one tick of the file system's clock, to the same length, in place."""
    tokens = Tokens(path, clock)
    found = path.stat()
    monkeypatch.setattr(file_changes, "os", SimpleNamespace(stat=lambda path: found))
    monkeypatch.setattr(
        file_changes, "time", SimpleNamespace(time_ns=lambda: found.st_ctime_ns + int(age_s * 1e9))
    )
    clock.now_s += 1.1
    tokens.find(SECRET)
    path.write_text(entry("cameras", "another secret"))
    clock.now_s += 1.1
    assert (tokens.find("another secret") is not None) == read_again


def test_one_recently_changed_file_is_enough_to_read_all_again(monkeypatch):
    changed_s = {Path("recent"): 99.5, Path("old"): 10.0}

    def stat(path: Path) -> SimpleNamespace:
        return SimpleNamespace(
            st_ctime_ns=int(changed_s[path] * 1e9), st_size=1, st_ino=1, st_dev=1
        )

    monkeypatch.setattr(file_changes, "os", SimpleNamespace(stat=stat))
    monkeypatch.setattr(file_changes, "time", SimpleNamespace(time_ns=lambda: 100 * 10**9))
    for paths in (changed_s, reversed(changed_s)):
        files = file_changes.FileChangeDetector(*paths)
        assert [files.changed() for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(
    "broken", [entry("x", "y") + "[[token]\n", "", None], ids=["torn", "empty", "missing"]
)
def test_broken_token_file_keeps_the_tokens_and_logs_once(path, clock, caplog, broken):
    tokens = Tokens(path, clock)
    if broken is None:
        path.unlink()
    else:
        replace(path, broken)
    for _ in range(3):
        clock.now_s += 1.1
        assert tokens.find(SECRET)
    (complaint,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert str(path) in complaint.getMessage()
    assert "continuing with the previous tokens" in complaint.getMessage()

    replace(path, entry("cameras", "third secret"))
    clock.now_s += 1.1
    assert tokens.find("third secret")
    assert tokens.find(SECRET) is None


def test_file_that_its_disk_failed_to_read_is_read_again_though_it_looks_the_same(
    path, clock, monkeypatch
):
    monkeypatch.setattr("resnet50_server.runtime.file_changes.MTIME_GRANULARITY_NS", 0)
    tokens, fails = Tokens(path, clock), True

    def read(path: Path) -> dict[bytes, Token]:
        if fails:
            raise UnusableSetting("tokens_file", "cannot be read") from OSError(5, "I/O error")
        return read_tokens(path)

    monkeypatch.setattr("resnet50_server.auth.tokens.read_tokens", read)
    replace(path, entry("cameras", "another secret"))
    clock.now_s += 1.1
    assert tokens.find(SECRET)
    fails = False
    clock.now_s += 1.1
    assert tokens.find(SECRET) is None
    assert tokens.find("another secret")


def test_token_file_is_checked_again_after_any_error(path, clock, monkeypatch):
    def fail(_: file_changes.FileChangeDetector) -> bool:
        raise RuntimeError("out of threads")

    tokens = Tokens(path, clock)
    with monkeypatch.context() as failing:
        failing.setattr(file_changes.FileChangeDetector, "changed", fail)
        clock.now_s += 1.1
        assert tokens.find(SECRET)
    replace(path, entry("cameras", "another secret"))
    clock.now_s += 1.1
    assert tokens.find("another secret")


def test_file_without_tokens_takes_none(path, clock):
    tokens = Tokens(path, clock)
    replace(path, "# all are revoked\n")
    clock.now_s += 1.1
    assert tokens.find(SECRET) is None


# Files that are refused


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[[token]\n", ["not TOML", "line 1"]),
        ("\udcff", ["not TOML"]),
        ("[token]\nname = 'x'\n", ["[[token]]", "two pairs"]),
        ("a = " + 5000 * "[" + 5000 * "]", ["is not TOML"]),
        ("[[tokens]]\nname = 'x'\n", ["tokens is unknown", "[[token]]"]),
        (entry("a b", SECRET), ["token 1", "name", "1 to 64 letters"]),
        (entry("x", SECRET) + entry("x", "other"), ["token 2", "name", "x"]),
        (entry("x", SECRET) + entry("y", SECRET), ["token 2", "sha256", "x"]),
        (entry("x", SECRET, "[]"), ["token 1", "scopes"]),
        (entry("x", SECRET, '["root"]'), ["token 1", "scopes", "'infer' or 'admin'"]),
        (entry("x", SECRET, more='expires = "2027-01-31"'), ["expires", "without quotation"]),
        (entry("x", SECRET, more="expires = 2027-01-31T12:00:00"), ["expires", "offset"]),
        (entry("x", SECRET, more="expired = 2027-01-31"), ["token 1", "expired"]),
        ('[[token]]\nname = "x"\nscopes = ["infer"]\n', ["token 1", "sha256", "required"]),
        (
            "".join(entry(f"t{number}", f"{number}") for number in range(MAX_TOKENS + 1)),
            [f"{MAX_TOKENS + 1} tokens", f"{MAX_TOKENS} at most"],
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:40],
)
def test_file_that_is_not_sound_is_refused_with_the_reason(path, content, parts):
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(UnusableSetting) as refused:
        Tokens(path)
    for part in ["tokens_file", str(path), *parts]:
        assert part in str(refused.value)


@pytest.mark.parametrize("key", ["sha256", "name", "scopes", "expires", "secret"])
def test_secret_in_a_wrong_place_is_not_repeated(path, key):
    fields = {"name": '"x"', "sha256": f'"{sha256("x")}"', "scopes": '["infer"]'}
    fields[key] = f'["{SECRET}"]' if key == "scopes" else f'"{SECRET} "'
    path.write_text("[[token]]\n" + "".join(f"{key} = {value}\n" for key, value in fields.items()))
    with pytest.raises(UnusableSetting) as refused:
        Tokens(path)
    error: BaseException | None = refused.value
    while error is not None:
        assert SECRET not in str(error)
        error = None if error.__suppress_context__ else error.__cause__ or error.__context__


def test_file_that_every_user_can_write_is_refused(path, clock, caplog):
    path.chmod(0o666)
    with pytest.raises(UnusableSetting, match="writable by every user of this machine: chmod o-w"):
        Tokens(path)
    # Hashes only: every user may read it.
    path.chmod(0o644)
    tokens = Tokens(path, clock)
    path.write_text(entry("mallory", "chosen"))
    path.chmod(0o666)
    clock.now_s += 1.1
    assert tokens.find("chosen") is None
    assert "chmod o-w" in caplog.text


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UnusableSetting, match=r"tokens_file: .*nope.*No such file"):
        Tokens(tmp_path / "nope")


def test_secrets_are_in_no_log_and_no_repr(path, clock, caplog):
    caplog.set_level(logging.DEBUG)
    tokens = Tokens(path, clock)
    replace(path, entry("cameras", SECRET) + entry("ops", "ops-secret"))
    clock.now_s += 1.1
    shown = [repr(tokens), repr(tokens.find(SECRET)), repr(tokens.find("ops-secret")), caplog.text]
    assert "cameras, ops" in caplog.text
    for secret in (SECRET, sha256(SECRET), "ops-secret"):
        assert not any(secret in text for text in shown)


# The command


def test_new_token_is_printed_and_its_hash_stored(tmp_path, capsys):
    path = tmp_path / "new.toml"
    assert main(["tokens", "new", "cameras", "--file", str(path)]) == 0
    shown = capsys.readouterr()
    secret = shown.out.strip()
    assert len(secret.split()) == 1
    assert secret not in shown.err + path.read_text()
    tokens = Tokens(path)
    assert tokens.find(secret) == Token("cameras", frozenset({"infer"}))

    more = ["--scope", "admin", "--scope", "infer", "--expires", "2031-01-02"]
    assert main(["tokens", "new", "ops", "--file", str(path), *more]) == 0
    second = capsys.readouterr().out.strip()
    assert second != secret
    tokens = Tokens(path)
    assert tokens.find(secret).name == "cameras"
    expires_at = datetime(2031, 1, 2, tzinfo=timezone.utc).timestamp()
    assert tokens.find(second) == Token("ops", frozenset({"admin", "infer"}), expires_at)


def test_new_token_without_a_file_is_an_entry_to_paste(path, capsys):
    assert main(["tokens", "new", "ops", "--scope", "admin"]) == 0
    secret, pasted = capsys.readouterr().out.split("\n", 1)
    path.write_text(path.read_text() + pasted)
    assert Tokens(path).find(secret) == Token("ops", frozenset({"admin"}))
    assert Tokens(path).find(SECRET)


def test_list_shows_names_scopes_and_expiry_and_no_hashes(path, capsys):
    path.write_text(entry("cameras", SECRET) + entry("old", "x", more="expires = 2020-01-31"))
    assert main(["tokens", "list", "--file", str(path)]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line for line in shown.splitlines() if line.split()}
    assert "infer" in rows["cameras"] and "never" in rows["cameras"]
    assert "2020-01-31" in rows["old"] and "has expired" in rows["old"]
    assert sha256(SECRET)[:8] not in shown


def left_behind(path):
    """Return what is in the directory of a file of tokens beside it and its lock."""
    lock = path.with_name(f".{path.name}.lock")
    return [one for one in path.parent.iterdir() if one not in (path, lock)]


def test_command_waits_for_another_that_changes_the_file(path, monkeypatch):
    waits = threading.Event()
    monkeypatch.setattr(file_lock.log, "info", lambda *_: waits.set())
    arguments = ["tokens", "revoke", "cameras", "--file", str(path)]
    with ThreadPoolExecutor() as threads:
        with FileLock(path.with_name(f".{path.name}.lock")):
            status = threads.submit(main, arguments)
            assert waits.wait(60)
            assert "cameras" in path.read_text()
        assert status.result(60) == 0


@pytest.mark.parametrize("revoked", ["first", "second", "third"])
def test_revoked_token_leaves_the_others_and_what_people_wrote(path, capsys, revoked):
    names = ["first", "second", "third"]
    path.write_text("# ours\n" + "".join(entry(name, name, more=f"# of {name}") for name in names))
    path.chmod(0o640)
    assert main(["tokens", "revoke", revoked, "--file", str(path)]) == 0
    tokens = Tokens(path)
    for name in names:
        assert (tokens.find(name) is None) == (name == revoked)
        assert (f"# of {name}" in path.read_text()) == (name != revoked)
    assert path.read_text().startswith("# ours\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert left_behind(path) == []


def test_last_token_can_be_revoked_and_a_new_one_made(path, capsys):
    assert main(["tokens", "revoke", "cameras", "--file", str(path)]) == 0
    assert Tokens(path).find(SECRET) is None
    capsys.readouterr()
    assert main(["tokens", "new", "cameras", "--file", str(path)]) == 0
    assert Tokens(path).find(capsys.readouterr().out.strip())


def test_commands_follow_a_link_to_the_file(path, tmp_path, capsys):
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert main(["tokens", "revoke", "cameras", "--file", str(link)]) == 0
    assert link.is_symlink()
    assert read_tokens(path) == {}


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["new", "a b"], 2, "1 to 64 letters"),
        (["new", "x", "--scope", "root"], 2, "infer"),
        (["new", "x", "--expires", "soon"], 2, "soon"),
        (["new", "cameras", "--file", "FILE"], 1, "cameras"),
        (["revoke", "unknown", "--file", "FILE"], 1, "no token 'unknown'"),
        (["revoke", "x", "--file", "/no/such/file"], 1, "/no/such"),
        (["list", "--file", "/no/such/file"], 1, "/no/such/file"),
        (["new", "x", "--file", "/no/such/file"], 1, "/no/such"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_command_says_why_and_changes_nothing(path, capsys, arguments, status, part):
    before = path.read_bytes()
    arguments = [str(path) if one == "FILE" else one for one in arguments]
    assert main(["tokens", *arguments]) == status
    shown = capsys.readouterr()
    assert part in shown.err
    assert shown.out == ""
    assert path.read_bytes() == before
    assert left_behind(path) == []


@pytest.mark.parametrize("arguments", [("new", "ops"), ("revoke", "cameras"), ("list",)])
def test_file_of_another_encoding_is_told_and_kept(path, capsys, arguments):
    path.write_bytes("# Kameras am Zürichsee\n".encode("latin-1") + path.read_bytes())
    before = path.read_bytes()
    assert main(["tokens", *arguments, "--file", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("resnet50-server: ") and "utf-8" in shown.err.lower()
    assert path.read_bytes() == before


def test_write_that_fails_leaves_the_file_as_it_was(path, monkeypatch, capsys):
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["tokens", "new", "ops", "--file", str(path)]) == 1
    shown = capsys.readouterr()
    assert "No space left" in shown.err
    assert shown.out == ""
    assert path.read_bytes() == before
    assert left_behind(path) == []
