"""`resnet50-server tokens`: create, list and revoke bearer tokens."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from resnet50_server.auth.tokens import Token, checked_name, digest_of, parse_tokens, read_tokens
from resnet50_server.errors import UnusableSetting
from resnet50_server.runtime.file_lock import file_lock

# Lets scanners for leaked secrets know one when they see it.
PREFIX = "r50_"


tokens = typer.Typer(help="Create, list and revoke bearer tokens.")


class Scope(str, Enum):
    """Permissions of a token."""

    INFER = "infer"
    ADMIN = "admin"


def _checked(name: str) -> str:
    try:
        return checked_name(name)
    except ValueError as error:
        raise typer.BadParameter(f"{name!r} {error}") from error


ExistingFile = Annotated[Path, typer.Option("--file", help="The file of tokens.")]


@contextlib.contextmanager
def _errors_shown(file: Path | None) -> Iterator[None]:
    """Print the errors of a file of tokens, and exit with status 1."""
    try:
        yield
    except UnusableSetting as error:
        print(f"resnet50-server: {error}", file=sys.stderr)
    except OSError as error:
        print(f"resnet50-server: {file}: {error.strerror}", file=sys.stderr)
    except UnicodeDecodeError as error:
        print(
            f"resnet50-server: {file}: is not UTF-8 (byte {error.start}): save it as UTF-8",
            file=sys.stderr,
        )
    else:
        return
    raise typer.Exit(1)


@tokens.command()
def new(
    name: Annotated[
        str, typer.Argument(callback=_checked, help="Owner of the token, for logs and errors.")
    ],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="Permission of the token; repeat for several. Default: infer."),
    ] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="First day on which it is rejected."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Add the token to this file. Default: print an entry to paste."),
    ] = None,
) -> None:
    """Create a token. Its secret is printed once and stored nowhere; files contain its hash."""
    with _errors_shown(file):
        _new(name, scope or [Scope.INFER], expires, file)


@tokens.command("list")
def list_tokens(file: ExistingFile) -> None:
    """List the tokens of a file."""
    with _errors_shown(file):
        _list(file)


@tokens.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Owner of the token.")], file: ExistingFile
) -> None:
    """Remove a token from a file."""
    with _errors_shown(file):
        _revoke(name, file)


def _new(name: str, scopes: list[Scope], expires: datetime | None, file: Path | None) -> None:
    import tomlkit

    secret = PREFIX + secrets.token_urlsafe(32)
    entry = tomlkit.table()
    entry["name"] = name
    entry["sha256"] = digest_of(secret).hex()
    entry["scopes"] = list(dict.fromkeys(one.value for one in scopes))
    if expires is not None:
        entry["expires"] = expires.date()
    document = tomlkit.document()
    document["token"] = tomlkit.aot()
    document["token"].append(entry)
    content = document.as_string()
    if file is None:
        print(secret)
        print(f"\n{content}", end="")
        return
    path = _resolved(file)
    with _locked(path):
        # The file is not parsed and written again, so that its present content stays unchanged.
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        gap = "\n" if before.endswith("\n") else "\n\n"
        _replace(path, f"{before}{gap if before else ''}{content}")
    print(secret)
    print(f"added {name} to {file}; this secret is not shown again", file=sys.stderr)


def _list(path: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "scopes", "expires"):
        table.add_column(heading, no_wrap=True)
    for token in read_tokens(path).values():
        table.add_row(token.name, ", ".join(sorted(token.scopes)), _expiry(token))
    Console(soft_wrap=True).print(table)


def _expiry(token: Token) -> str:
    if token.expires_at is None:
        return "never"
    moment = datetime.fromtimestamp(token.expires_at, timezone.utc)
    expired = " (has expired)" if moment <= datetime.now(timezone.utc) else ""
    return f"{moment:%Y-%m-%d %H:%M} UTC{expired}"


def _revoke(name: str, file: Path) -> None:
    import tomlkit

    path = _resolved(file)
    with _locked(path):
        names = [token.name for token in read_tokens(path).values()]
        if name not in names:
            raise UnusableSetting("tokens_file", f"{file}: has no token {name!r}")
        # Comments beside the other entries are kept.
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
        if len(names) == 1:
            del document["token"]
        else:
            del document["token"][names.index(name)]
        _replace(path, document.as_string().rstrip("\n") + "\n")
    print(f"{name} is revoked: a server that uses {file} refuses it within a second")


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
    """Replace the file of tokens atomically."""
    parse_tokens(path, content.encode())
    before = path.stat() if path.exists() else None
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
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
