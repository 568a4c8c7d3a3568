"""`resnet50-server tokens`: make, list and revoke bearer tokens."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
import tempfile
from datetime import date, datetime, timezone
from pathlib import Path

import tomlkit
import tomlkit.exceptions
from rich import box
from rich.console import Console
from rich.table import Table

from resnet50_server.auth.tokens import Token, checked_name, hash_of, parse_tokens, read_tokens
from resnet50_server.errors import UnusableSetting
from resnet50_server.runtime.file_lock import file_lock

# Lets scanners for leaked secrets know one when they see it.
PREFIX = "r50_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands on `parser`."""
    actions = parser.add_subparsers(dest="action", required=True)
    new = actions.add_parser(
        "new",
        help="make a token",
        description="Make a token. Its secret is printed on stdout, and kept nowhere: what a file"
        " of tokens holds is a hash.",
    )
    new.add_argument(
        "name", metavar="NAME", type=_name, help="whose it is; shown in logs and errors"
    )
    new.add_argument(
        "--scope",
        action="append",
        choices=["infer", "admin"],
        help="what it allows; repeat for several (default: infer)",
    )
    new.add_argument(
        "--expires", type=date.fromisoformat, metavar="YYYY-MM-DD", help="refused from that day on"
    )
    new.add_argument(
        "--file", type=Path, help="add it to this file; otherwise its entry is printed, to paste"
    )
    show = actions.add_parser("list", help="the tokens of a file")
    show.add_argument("--file", type=Path, required=True)
    revoke = actions.add_parser("revoke", help="take a token out of a file")
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument("--file", type=Path, required=True)


def _name(name: str) -> str:
    try:
        return checked_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name!r} {error}") from error


def run(options: argparse.Namespace) -> int:
    """Carry out what the command line asked for; return the exit status."""
    try:
        if options.action == "new":
            return _new(options)
        if options.action == "list":
            return _list(options.file)
        return _revoke(options.name, options.file)
    except UnusableSetting as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
    except OSError as error:
        print(f"resnet50-server: {options.file}: {error.strerror}", file=sys.stderr)
    return 1


def _new(options: argparse.Namespace) -> int:
    secret = PREFIX + secrets.token_urlsafe(32)
    entry = tomlkit.table()
    entry["name"] = options.name
    entry["sha256"] = hash_of(secret).hex()
    entry["scopes"] = list(dict.fromkeys(options.scope or ["infer"]))
    if options.expires is not None:
        entry["expires"] = options.expires
    alone = tomlkit.document()
    alone["token"] = tomlkit.aot()
    alone["token"].append(entry)
    content = alone.as_string()
    if options.file is None:
        print(secret)
        print(f"\n{content}", end="")
        return 0
    path = _resolved(options.file)
    with _locked(path):
        # Not parsed and written anew: what is there stays as it is, to the byte.
        before = path.read_text() if path.exists() else ""
        gap = "\n" if before.endswith("\n") else "\n\n"
        _replace(path, f"{before}{gap if before else ''}{content}")
    print(secret)
    print(
        f"added {options.name} to {options.file}; this secret is not shown again", file=sys.stderr
    )
    return 0


def _list(path: Path) -> int:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "scopes", "expires"):
        table.add_column(heading, no_wrap=True)
    for token in read_tokens(path).values():
        table.add_row(token.name, ", ".join(sorted(token.scopes)), _expiry(token))
    Console(soft_wrap=True).print(table)
    return 0


def _expiry(token: Token) -> str:
    if token.expires_at is None:
        return "never"
    moment = datetime.fromtimestamp(token.expires_at, timezone.utc)
    expired = " (has expired)" if moment <= datetime.now(timezone.utc) else ""
    return f"{moment:%Y-%m-%d %H:%M} UTC{expired}"


def _revoke(name: str, file: Path) -> int:
    path = _resolved(file)
    with _locked(path):
        names = [token.name for token in read_tokens(path).values()]
        if name not in names:
            raise UnusableSetting("tokens_file", f"{file}: has no token {name!r}")
        # What people wrote beside the other entries stays.
        document = tomlkit.parse(path.read_text())
        if len(names) == 1:
            del document["token"]
        else:
            del document["token"][names.index(name)]
        _replace(path, document.as_string().rstrip("\n") + "\n")
    print(f"{name} is revoked: a server that uses {file} refuses it within a second")
    return 0


def _resolved(path: Path) -> Path:
    """Follow links, so that the file is replaced and not the link to it."""
    return Path(os.path.realpath(path))


def _locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a file of tokens against other commands: of two changes at once, one would be lost."""
    path.parent.stat()  # filelock would create the directory
    return file_lock(_lock_path(path), f"changes {path}")


def _lock_path(path: Path) -> Path:
    """Return a file beside the file of tokens, which itself is replaced."""
    return path.with_name(f".{path.name}.lock")


def _replace(path: Path, content: str) -> None:
    """Put a new file of tokens in the place of the old one: whole or not at all."""
    parse_tokens(path, content.encode())
    before = path.stat() if path.exists() else None
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        if before is None:
            # Hashes only: the server's user may be another one.
            os.chmod(name, 0o644)
        else:
            os.chmod(name, before.st_mode & 0o7777)
            with contextlib.suppress(OSError, AttributeError):
                os.chown(name, before.st_uid, before.st_gid)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
