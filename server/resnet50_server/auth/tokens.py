"""Bearer tokens: a file of their digests, reloaded when it changes.

The file is TOML, with an entry for each token (`resnet50-server tokens new` adds them):

    [[token]]
    name = "cameras"
    sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    scopes = ["infer"]
    expires = 2027-01-31    # optional: rejected from this day on (UTC), or a time with its offset
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
from resnet50_settings.problems import reason_of

from .reloaded_files import ReloadedFiles

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

# How often, at most, the file is checked for changes.
CHECK_INTERVAL_S = 1.0
MAX_TOKENS = 1000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Token:
    """A token without its secret.

    Attributes:
        name: Names its owner.
        scopes: Allowed method groups: "infer", "admin".
        expires_at: When it expires, in Unix seconds; None for never.
    """

    name: str
    scopes: frozenset[str]
    expires_at: float | None = None


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of a secret.

    Not a slow hash such as bcrypt, which protects secrets that people choose: tokens have 256
    random bits, which cannot be guessed, and every request computes the digest.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def checked_name(name: str) -> str:
    """Return a token's name.

    Raises:
        ValueError: It has characters that would be ambiguous in a log.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("is not 1 to 64 letters, digits and ._-")
    return name


class Tokens:
    """The tokens of a file, found by their digests.

    The file is checked and reloaded in a thread if there is an event loop, since its disk may hang.
    It is reloaded only if it is valid; otherwise the previous tokens stay valid, and the log says
    why.

    Args:
        path: The file.
        clock: Returns a monotonic time, in seconds.

    Raises:
        UnusableSetting: The file is not valid; says why.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._file = ReloadedFiles(lambda: read_tokens(path), path, kept="tokens")
        self._check_at = clock() + CHECK_INTERVAL_S
        self._checking = False
        self._announce()

    def find(self, secret: str) -> Token | None:
        """Return the token with this secret, even if it has expired; None if there is none."""
        if self._clock() >= self._check_at and not self._checking:
            self._check_at = self._clock() + CHECK_INTERVAL_S
            self._checking = True
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._check()
            else:
                loop.run_in_executor(None, self._check)
        # The timing of the lookup reveals at most something about the digest, not the secret.
        return self._file.value.get(digest_of(secret))

    def _check(self) -> None:
        try:
            if self._file.reload():
                self._announce()
        except Exception:
            log.exception("tokens_file: %s could not be checked, retrying", self._path)
        finally:
            self._checking = False

    def _announce(self) -> None:
        names = (
            ", ".join(token.name for token in self._file.value.values())
            or "none: all requests are rejected"
        )
        log.info("tokens_file: %s: %s", self._path, names)


def read_tokens(path: Path) -> dict[bytes, Token]:
    """Return the tokens of a file by their digests.

    Raises:
        UnusableSetting: The file cannot be read, or is not valid; says why.
    """
    try:
        # A user who can write this file can add tokens.
        if os.name == "posix" and path.stat().st_mode & stat.S_IWOTH:
            raise _unusable(path, "is writable by every user of this machine: chmod o-w")
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    if not content:
        # It may be empty while it is being replaced; that must not revoke all tokens.
        raise _unusable(path, "is empty; to accept no token, write a comment into it")
    return parse_tokens(path, content)


def parse_tokens(path: Path, content: bytes) -> dict[bytes, Token]:
    """Return the tokens in the content of a file; see `read_tokens`."""
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # TOML's and Unicode's errors, and nesting
        raise _unusable(path, f"is not TOML: {error}") from error
    entries = document.pop("token", [])
    if document:
        raise _unusable(path, f"{next(iter(document))} is unknown; entries begin with [[token]]")
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
                raise ValueError(f"name: {token.name} is the name of another token")
            if digest in tokens:
                raise ValueError(f"sha256: is also that of {tokens[digest].name}")
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            # Without the value, which may be a secret in the wrong place.
            where = ".".join(str(part) for part in problem["loc"])
            raise _unusable(path, f"token {number}: {where}: {reason_of(problem)}") from None
        except ValueError as error:
            raise _unusable(path, f"token {number}: {error}") from error
        names.add(token.name)
        tokens[digest] = token
    return tokens


def _unusable(path: Path, reason: str) -> UnusableSetting:
    return UnusableSetting("tokens_file", f"{path}: {reason}")


def _expiry(value: object) -> datetime:
    """Return when a token expires; a date means midnight, UTC."""
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
    expires: Annotated[datetime, BeforeValidator(_expiry)] | None = None

    def parsed(self) -> tuple[bytes, Token]:
        """Return the digest and the token."""
        expires_at = self.expires.timestamp() if self.expires is not None else None
        return self.sha256, Token(self.name, frozenset(self.scopes), expires_at)
