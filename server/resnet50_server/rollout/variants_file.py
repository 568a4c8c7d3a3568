"""The variants file: the variants, the default and the traffic splits of a server, in TOML.

    default = "pets"

    [[variant]]
    name = "IMAGENET1K_V2"

    [[variant]]
    name = "pets"
    directory = "/models/pets"

    [[split]]
    variant = "pets"
    candidate = "IMAGENET1K_V2"
    shadow_percent = 5

docs/reference/variants-file.md describes all keys.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resnet50_server.errors import InvalidRequest, UnusableSetting, WeightsError
from resnet50_server.runtime.texts import MAX_NAMES, escaped, listed
from resnet50_server.settings import Settings
from resnet50_server.variants.disk import read_file
from resnet50_server.variants.spec import (
    NAME,
    VariantSpec,
    official_specs,
    parse_variant,
    strip_enum_prefix,
)

from .split import Split, obstacle

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 2**20
MAX_VARIANTS = 64
# The least of a digest that is not ambiguous by chance, as the commands show it.
MIN_DIGEST_DIGITS = 12
_DIGEST = re.compile(rf"[0-9a-f]{{{MIN_DIGEST_DIGITS},64}}")
_KEYS = ("default", "variant", "split")


@dataclass(frozen=True)
class DeclaredVariants:
    """Variants, default and traffic splits that a server is to have.

    Attributes:
        specs: The variants, in the order in which they are loaded.
        default: Name or alias of the default variant; None for the first.
        splits: The traffic splits, with the names of their variants.
        revision: SHA-256 of the file, 64 hex digits; empty if it is the settings that declare them.
    """

    specs: list[VariantSpec]
    default: str | None = None
    splits: tuple[Split, ...] = ()
    revision: str = ""


def declared_variants(settings: Settings) -> DeclaredVariants:
    """Return the variants that the settings, or the file that they name, declare. Blocks.

    Raises:
        UnusableSetting: The file cannot be read, or is wrong; names the line and the key.
        WeightsError: A variant's directory is missing, or its description is wrong.
    """
    if settings.variants_file is None:
        specs = [parse_variant(argument) for argument in settings.variants]
        return DeclaredVariants(specs, settings.default_variant)
    return parse_variants_file(settings.variants_file, read_variants_file(settings.variants_file))


def read_variants_file(path: Path) -> bytes:
    """Return the content of a variants file. Blocks.

    Raises:
        UnusableSetting: It cannot be read.
    """
    try:
        return read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UnusableSetting(
            "variants_file", f"{path}: cannot be read: {error.strerror or error}"
        ) from error


def revision_of(content: bytes) -> str:
    """Return the revision of a file's content: its SHA-256, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def parse_variants_file(path: Path, content: bytes) -> DeclaredVariants:
    """Return the variants that the content of a file declares; reads their descriptions. Blocks.

    Args:
        path: The file. Relative directories are below its own.
        content: Its content.

    Raises:
        UnusableSetting: It is wrong; names the line and the key.
        WeightsError: A variant's directory is missing, or its description is wrong.
    """
    try:
        text = content.decode()
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOML's and Unicode's errors, and nesting
        raise UnusableSetting("variants_file", f"{path}: is not TOML: {error}") from error
    where = _Positions(path, text)
    for key in document:
        if key not in _KEYS:
            raise where.wrong(_Entry(), key, f"is unknown; known are {', '.join(_KEYS)}")
    variants = _entries(where, document, "variant")
    if not variants:
        raise where.wrong(_Entry(), "variant", "is missing; name at least one, below [[variant]]")
    if len(variants) > MAX_VARIANTS:
        raise where.wrong(
            _Entry("variant", MAX_VARIANTS + 1), "", f"is one too many; {MAX_VARIANTS} at most"
        )
    specs: list[VariantSpec] = []
    names: dict[str, VariantSpec] = {}
    for entry in variants:
        spec = _spec(where, entry)
        if taken := next((name for name in (spec.name, *spec.aliases) if name in names), None):
            raise where.wrong(entry, "name", f"{taken} is the name of an earlier variant")
        specs.append(spec)
        names |= dict.fromkeys((spec.name, *spec.aliases), spec)
    default = document.get("default", specs[0].name)
    if not isinstance(default, str):
        raise where.wrong(_Entry(), "default", "must be the name of a variant, in quotation marks")
    chosen = _find(where, _Entry(), "default", default, names)
    splits: dict[str, Split] = {}
    for entry in _entries(where, document, "split"):
        split = _split(where, entry, names)
        if split.variant in splits:
            raise where.wrong(entry, "variant", f"{split.variant} has a split above already")
        splits[split.variant] = split
    return DeclaredVariants(specs, chosen.name, tuple(splits.values()), revision_of(content))


@dataclass(frozen=True)
class _Entry:
    """An entry of the file.

    Attributes:
        table: "variant" or "split"; empty for the keys above both.
        number: Its place among those of its table, from 1.
        content: Its keys and values.
    """

    table: str = ""
    number: int = 0
    content: Any = None


class _Positions:
    """The lines of a file's entries and keys, for its errors.

    tomllib tells no lines. These are found by the layout that the reference shows, one key a line;
    an error of a file with another layout names the entry and the key only.

    Args:
        path: The file.
        text: Its content.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._lines = text.splitlines()

    def text(self, entry: _Entry, key: str, reason: str) -> str:
        """Return the message of an error, with file, line, entry and key."""
        line = self._line(entry, key)
        parts = [
            str(self.path),
            *([] if line is None else [f"line {line}"]),
            *([f"{entry.table} {entry.number}"] if entry.table else []),
            *([escaped(key[:64])] if key else []),
        ]
        return f"{': '.join(parts)}: {reason}"

    def wrong(self, entry: _Entry, key: str, reason: str) -> UnusableSetting:
        """Return the error of a key."""
        return UnusableSetting("variants_file", self.text(entry, key, reason))

    def _line(self, entry: _Entry, key: str) -> int | None:
        """Return the line of a key, or that of its entry if it has no such key, from 1."""
        header = re.compile(rf"\s*\[\[\s*{entry.table}\s*\]\]") if entry.table else None
        wanted = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
        seen, found = 0, None
        for number, line in enumerate(self._lines, 1):
            if line.lstrip().startswith("["):
                if found is not None or header is None:
                    break  # of the next entry
                seen += header.match(line) is not None
                found = number if seen == entry.number else None
            elif (found is not None or header is None) and key and wanted.match(line):
                return number
        return found


class _Table(BaseModel):
    """The keys of an entry."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _VariantTable(_Table):
    name: str
    directory: Annotated[str, Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    digest: str = ""


class _SplitTable(_Table):
    variant: str
    candidate: str
    canary_percent: float = 0.0
    shadow_percent: float = 0.0
    canary_embeddings: bool = False


Table = TypeVar("Table", bound=_Table)


def _entries(where: _Positions, document: Mapping[str, Any], table: str) -> list[_Entry]:
    found = document.get(table, [])
    if not isinstance(found, list):
        raise where.wrong(_Entry(), table, f"entries begin with [[{table}]], in double brackets")
    return [_Entry(table, number, one) for number, one in enumerate(found, 1)]


def _parsed(where: _Positions, entry: _Entry, table: type[Table]) -> Table:
    try:
        return table.model_validate(entry.content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        # An unknown key is the misspelling of one that is then missing.
        problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
        key = str(problem["loc"][0]) if problem["loc"] else ""
        reason = {
            "extra_forbidden": f"is unknown; known are {', '.join(table.model_fields)}",
            "missing": "is missing",
        }.get(problem["type"], problem["msg"])
        raise where.wrong(entry, key, reason) from None


def _spec(where: _Positions, entry: _Entry) -> VariantSpec:
    """Return the spec of a variant's entry.

    Raises:
        UnusableSetting: The entry is wrong.
        WeightsError: Its directory is missing, or the description there is wrong.
    """
    table = _parsed(where, entry, _VariantTable)
    if table.directory is not None and table.seed is not None:
        raise where.wrong(entry, "seed", "is set beside directory; remove one of them")
    if table.digest and not _DIGEST.fullmatch(table.digest):
        raise where.wrong(
            entry,
            "digest",
            f"must be the first {MIN_DIGEST_DIGITS} to 64 hexadecimal digits of a SHA-256, in lower"
            " case",
        )
    name = strip_enum_prefix(table.name)
    official = name == "DEFAULT" or name in official_specs()
    own = table.directory is not None or table.seed is not None
    if not NAME.fullmatch(name):
        raise where.wrong(
            entry, "name", "must have 1 to 64 letters, digits, '.', '_' and '-', and no path"
        )
    if official and own:
        raise where.wrong(entry, "name", f"{name} is torchvision's name; choose another one")
    if not official and not own:
        raise where.wrong(
            entry,
            "name",
            f"{name} is not one of torchvision's ({', '.join(official_specs())}, DEFAULT); for a"
            " variant of your own add its directory, for an untrained one a seed",
        )
    argument = name
    if table.directory is not None:
        argument = f"{name}={where.path.parent / table.directory}"
    elif table.seed is not None:
        argument = f"{name}=random:{table.seed}"
    try:
        return dataclasses.replace(parse_variant(argument), digest=table.digest)
    except WeightsError as error:
        reason = str(error).removeprefix("variants: ")
        raise WeightsError(f"variants_file: {where.text(entry, 'directory', reason)}") from error


def _split(where: _Positions, entry: _Entry, names: Mapping[str, VariantSpec]) -> Split:
    table = _parsed(where, entry, _SplitTable)
    variant = _find(where, entry, "variant", table.variant, names)
    candidate = _find(where, entry, "candidate", table.candidate, names)
    try:
        split = Split(
            variant.name,
            candidate.name,
            table.canary_percent,
            table.shadow_percent,
            table.canary_embeddings,
        )
    except InvalidRequest as error:
        raise where.wrong(entry, error.field.removeprefix("split."), error.reason) from error
    if (found := obstacle(split, variant, candidate)) is not None:
        raise where.wrong(entry, *found)
    return split


def _find(
    where: _Positions, entry: _Entry, key: str, name: str, names: Mapping[str, VariantSpec]
) -> VariantSpec:
    """Return the variant that a key names, by name or alias.

    Raises:
        UnusableSetting: The file has none of that name.
    """
    found = names.get(strip_enum_prefix(name))
    if found is None:
        there = listed(sorted(names), MAX_NAMES, ", ")
        raise where.wrong(
            entry, key, f"no variant {escaped(name[:64])!r} in this file; there are: {there}"
        )
    return found
