"""Bearer tokens: a file of their hashes, read again when it changes.

The file is TOML, with an entry for each token (`resnet50-server tokens new` makes them):

    [[token]]
    name = "cameras"
    sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    scopes = ["infer"]
    expires = 2027-01-31    # optional: refused from this day on, UTC; or a time with its offset
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from resnet50_server.errors import UnusableSetting

from .file_watch import FileChangeDetector

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

# How often, at most, it is looked whether the file has changed.
LOOK_EVERY_S = 1.0
# What a file of sensible length holds.
MAX_TOKENS = 1000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Token:
    """What is known of a token. Its secret is not.

    Attributes:
        name: Whose it is.
        scopes: What it allows: "infer", "admin".
        expires_at: From when on it is refused, in Unix seconds; None for never.
    """

    name: str
    scopes: frozenset[str]
    expires_at: float | None = None


def hash_of(secret: str) -> bytes:
    """Return the SHA-256 of a secret.

    Not a slow hash such as bcrypt: those make guessing dear where people choose the secret. Ours
    have 256 random bits, which nobody guesses at any speed, and each call pays for its hash.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def checked_name(name: str) -> str:
    """Return a token's name.

    Raises:
        ValueError: It could not be told from what surrounds it in a log.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("is not 1 to 64 letters, digits and ._-")
    return name


class Tokens:
    """The tokens of a file; used on an event loop, or without one.

    On a loop the file is looked at, and read again, in a thread: its disk may hang. A new file
    takes the place of the old one whole, and only if it is sound; otherwise the tokens that were
    read before go on being taken, and the log says why.

    Args:
        path: The file.
        clock: Tells the time since some moment, in seconds.

    Raises:
        UnusableSetting: The file is not sound; why.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._file = FileChangeDetector(path)
        self._complaint = ""
        self._file.changed()
        self._look_at = clock() + LOOK_EVERY_S
        self._looking = False
        self._tokens = read_tokens(path)
        self._announce()

    def find(self, secret: str) -> Token | None:
        """Return the token with this secret, also if it has expired; None if there is none."""
        if self._clock() >= self._look_at and not self._looking:
            self._look_at = self._clock() + LOOK_EVERY_S
            self._looking = True
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._look()
            else:
                loop.run_in_executor(None, self._look)
        # How long this takes tells something of the secret's hash at most, from which nobody comes
        # to a secret.
        return self._tokens.get(hash_of(secret))

    def _look(self) -> None:
        try:
            if self._file.changed():
                self._reload()
        except Exception:
            log.exception("tokens_file: %s could not be looked at; trying again", self._path)
        finally:
            self._looking = False

    def _reload(self) -> None:
        try:
            tokens = read_tokens(self._path)
        except UnusableSetting as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("%s; going on with the tokens that were read before", error)
            return
        self._complaint = ""
        if tokens != self._tokens:
            self._tokens = tokens
            self._announce()

    def _announce(self) -> None:
        names = (
            ", ".join(token.name for token in self._tokens.values()) or "none, so no call is taken"
        )
        log.info("tokens_file: %s: %s", self._path, names)


def read_tokens(path: Path) -> dict[bytes, Token]:
    """Read a file of tokens, by their hashes.

    Raises:
        UnusableSetting: The file cannot be read, or is not what it should be.
    """
    try:
        # Whoever can write this file makes tokens.
        if os.name == "posix" and path.stat().st_mode & stat.S_IWOTH:
            raise _unusable(path, "every user of this machine can write it: chmod o-w")
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    if not content:
        # Who replaces it in two steps, emptying it first, has not meant to revoke everything.
        raise _unusable(path, "is empty; where no token is to be taken, let it hold a comment")
    return parse_tokens(path, content)


def parse_tokens(path: Path, content: bytes) -> dict[bytes, Token]:
    """Do what `read_tokens` does with what the file holds, or is going to hold."""
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:  # TOML's and Unicode's errors
        raise _unusable(path, f"is not TOML: {error}") from error
    entries = document.pop("token", [])
    if document:
        raise _unusable(path, f"{next(iter(document))} means nothing; entries begin with [[token]]")
    if not isinstance(entries, list):
        raise _unusable(path, "entries begin with [[token]], in two pairs of brackets")
    if len(entries) > MAX_TOKENS:
        raise _unusable(path, f"has {len(entries)} tokens; {MAX_TOKENS} at most")
    tokens: dict[bytes, Token] = {}
    names: set[str] = set()
    for number, entry in enumerate(entries, 1):
        try:
            digest, token = _Entry.model_validate(entry).parsed()
            if token.name in names:
                raise ValueError(f"name: {token.name} is the name of another one")
            if digest in tokens:
                raise ValueError(f"sha256: is also that of {tokens[digest].name}")
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            # Never what was found there: someone may have put the secret in the hash's place.
            reason = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
            where = ".".join(str(part) for part in problem["loc"])
            raise _unusable(path, f"token {number}: {where}: {reason}") from None
        except ValueError as error:
            raise _unusable(path, f"token {number}: {error}") from error
        names.add(token.name)
        tokens[digest] = token
    return tokens


def _unusable(path: Path, reason: str) -> UnusableSetting:
    return UnusableSetting("tokens_file", f"{path}: {reason}")


def _moment(value: object) -> datetime:
    """Return when a token expires; a day begins at midnight, UTC."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs its offset, such as 2027-01-31T12:00:00Z")
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
    raise ValueError("is not a date, such as 2027-01-31, without quotation marks")


def _digest(value: object) -> object:
    if not isinstance(value, str) or len(value) != 64:
        raise ValueError("is not a SHA-256 in 64 hexadecimal digits")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise ValueError("is not a SHA-256 in 64 hexadecimal digits") from None


class _Entry(BaseModel):
    """An entry of the file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, AfterValidator(checked_name)]
    sha256: Annotated[bytes, BeforeValidator(_digest)]
    scopes: Annotated[list[Literal["infer", "admin"]], Field(min_length=1)]
    expires: Annotated[datetime, BeforeValidator(_moment)] | None = None

    def parsed(self) -> tuple[bytes, Token]:
        """Return what the server works with."""
        expires_at = self.expires.timestamp() if self.expires is not None else None
        return self.sha256, Token(self.name, frozenset(self.scopes), expires_at)
