"""Client options from flags, environment variables and a profile file."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ._addresses import SOCKET_SCHEMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "RESNET50_"
PROFILE_NAME = ENV_PREFIX + "PROFILE"
PROFILE_FILE = ENV_PREFIX + "PROFILE_FILE"
_PATHS = ("ca", "cert", "key", "token_file")
# Options that belong together: setting one overrides all of them.
_TOGETHER = (("cert", "key"), ("token", "token_file"))
_SWITCHES = ("tls", "insecure_token", "wait_for_ready")
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Profile:
    """Arguments of a client from one or several sources; None is unset.

    Attributes:
        server: Argument of `Client`, as all others.
    """

    server: tuple[str, ...] | None = None
    timeout_s: float | None = None
    priority: str | None = None
    caller_key: str | None = None
    tls: bool | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    server_name: str | None = None
    insecure_token: bool | None = None
    variant: str | None = None
    compression: str | None = None
    wait_for_ready: bool | None = None

    def over(self, other: Profile) -> Profile:
        """Return a copy in which unset options are taken from another profile."""
        return Profile(**other.arguments(**self.arguments()))

    def arguments(self, **given: Any) -> dict[str, Any]:
        """Return the set options as arguments of a client.

        Args:
            given: Arguments that take precedence.
        """
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        for names in _TOGETHER:
            if any(given.get(name) is not None for name in names):
                known |= dict.fromkeys(names)
        return {name: value for name, value in known.items() if value is not None} | given

    @classmethod
    def of_environment(cls) -> Profile:
        """Read the environment, which takes precedence over the profile that it names.

        Raises:
            ValueError: A value is invalid, or the profile does not exist.
            OSError: The profile file cannot be read.
        """
        return cls().with_defaults(None, None)

    def with_defaults(
        self, profile: str | None, profile_file: str | os.PathLike[str] | None
    ) -> Profile:
        """Return a copy in which unset options are taken from the environment, then a profile.

        Args:
            profile: Name of the profile; None for the environment's, if any.
            profile_file: Path of the profile file; see `named`.

        Raises:
            ValueError: A value is invalid, the profile does not exist, or there is a file and no
                name.
            OSError: The profile file cannot be read.
        """
        known = self.over(_environment())
        name = profile or os.environ.get(PROFILE_NAME)
        if not name and profile_file is not None:
            raise ValueError(
                f"profile_file: {os.fspath(profile_file)} is not read without a profile: name"
                f" one, by profile or {PROFILE_NAME}"
            )
        return known.over(self.named(name, profile_file)) if name else known

    @classmethod
    def named(cls, name: str, file: str | os.PathLike[str] | None = None) -> Profile:
        """Read a profile from its file; paths in it are relative to the file's folder.

        Args:
            name: Name of its table, [profiles.NAME].
            file: Path of the file; None for `RESNET50_PROFILE_FILE`, or `profile_file()`.

        Raises:
            ValueError: The file is invalid, contains a token that others can read, or lacks the
                profile; or a key or value in it is invalid.
            OSError: The file cannot be read.
        """
        path = Path(file or os.environ.get(PROFILE_FILE) or profile_file()).expanduser()
        found = _profiles(path)
        if name not in found:
            raise ValueError(
                f"profile: {path} has no [profiles.{name}]; it has"
                f" {', '.join(map(repr, found)) or 'none'}"
            )
        try:
            values = {key: _value(key, value) for key, value in found[name].items()}
        except ValueError as error:
            raise ValueError(f"{path}: [profiles.{name}] {error}") from error
        for key in _PATHS:
            if key in values:
                values[key] = str(path.parent / Path(values[key]).expanduser())
        return cls(**values)


ENVIRONMENT = (
    PROFILE_NAME,
    PROFILE_FILE,
    *(ENV_PREFIX + one.name.upper() for one in fields(Profile)),
)
"""All environment variables of clients."""


def profile_file() -> Path:
    """Return the default path of the user's profile file."""
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming"
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "resnet50" / "profiles.toml"


def _environment() -> Profile:
    """Read the environment; empty values are unset."""
    values: dict[str, Any] = {}
    for one in fields(Profile):
        name = ENV_PREFIX + one.name.upper()
        if text := os.environ.get(name):
            try:
                values[one.name] = _value(one.name, _parsed(one.name, text))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return Profile(**values)


def _parsed(key: str, text: str) -> object:
    """Convert an environment value to its type in a file."""
    if key == "server":
        return text.replace(",", " ").split()
    if key in _SWITCHES and text.lower() in _YES + _NO:
        return text.lower() in _YES
    if key == "timeout_s":
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _profiles(path: Path) -> Mapping[str, Mapping[str, object]]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = tomllib.load(file)
    except OSError as error:
        raise OSError(error.errno, f"profile file: {error.strerror}", str(path)) from error
    # Of TOML, Unicode or nesting; may quote a line, which may contain a token.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"profile file: {path} is not TOML{_line(error)}") from None
    unknown = sorted(set(content) - {"profiles"})
    profiles = content.get("profiles", {})
    if unknown:
        raise ValueError(
            f"profile file: {path} has {unknown[0]!r}; only [profiles.NAME] is allowed"
        )
    if not isinstance(profiles, dict) or not all(isinstance(o, dict) for o in profiles.values()):
        raise ValueError(f"profile file: {path} has no tables [profiles.NAME]")
    if any("token" in one for one in profiles.values()) and _open_to_others(mode):
        raise ValueError(
            f"profile file: {path} contains a token and is readable by others (mode"
            f" {stat.S_IMODE(mode):04o}): chmod 600 it, or use token_file"
        )
    return profiles


def _open_to_others(mode: int) -> bool:
    return os.name == "posix" and bool(mode & 0o077)


def _line(error: Exception) -> str:
    """Return the position of an error in a file, without the content."""
    _, found, place = str(error).rpartition(" (at ")
    return f" (at {place}" if found else ""


def _value(key: str, value: object) -> Any:
    """Validate and convert a value; errors do not show it, as it may be a misplaced secret."""
    known = {one.name for one in fields(Profile)}
    if key not in known:
        raise ValueError(f"{key}: is unknown; known are {', '.join(sorted(known))}")
    if key == "server":
        servers = [value] if isinstance(value, str) else value
        if not isinstance(servers, list) or not all(isinstance(one, str) for one in servers):
            raise ValueError("server: must be an address or a list of addresses")
        if any("@" in one for one in servers if not one.startswith(SOCKET_SCHEMES)):
            raise ValueError("server: must be host:port, without user and password")
        return tuple(servers)
    if key == "timeout_s":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError("timeout_s: must be a number of seconds above 0")
        return float(value)
    if key in _SWITCHES:
        if not isinstance(value, bool):
            raise ValueError(f"{key}: must be true or false")
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: must be text, and not empty")
    return value
