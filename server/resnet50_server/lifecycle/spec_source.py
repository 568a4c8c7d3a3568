"""Finds the spec of a variant by the name in a request; requests never name paths."""

from __future__ import annotations

from functools import partial

from resnet50_server.errors import VariantNotFound
from resnet50_server.variants.directory import Fingerprint, VariantsDirectory
from resnet50_server.variants.disk import FEW_FILES_S, Disk
from resnet50_server.variants.spec import (
    VariantSpec,
    official_specs,
    parse_variant,
    strip_enum_prefix,
)


class SpecSource:
    """Directories of `variants_dir`, official variants, and the variants of the settings.

    Args:
        directory: `variants_dir`.
        startup: The variants of the settings, which may be loaded again after an unload.
        timeout_s: Time limit for reading the description of a variant, in seconds.
    """

    def __init__(
        self,
        directory: VariantsDirectory,
        startup: list[VariantSpec],
        timeout_s: float = FEW_FILES_S,
    ) -> None:
        self._directory = directory
        self._disk = Disk(str(directory), timeout_s)
        self._startup = {spec.name: spec.argument for spec in startup}

    def declare(self, specs: list[VariantSpec]) -> None:
        """Replace the variants of the settings."""
        self._startup = {spec.name: spec.argument for spec in specs}

    async def argument(self, name: str) -> str:
        """Return what `parse_variant` takes for a name.

        Raises:
            InvalidRequest: The name is malformed.
            VariantNotFound: There is no such variant.
            DiskTimeout: The directory cannot be read.
        """
        if self._directory.is_official(name):
            return strip_enum_prefix(name)
        try:
            return f"{name}={await self._disk.run(partial(self._directory.find, name))}"
        except VariantNotFound as error:
            if name in self._startup:
                return self._startup[name]
            names = {*error.served, *self._startup, *official_specs()}
            raise VariantNotFound("name", name, sorted(names), "can be loaded") from None

    async def read(self, name: str, argument: str) -> tuple[VariantSpec, Fingerprint | None]:
        """Return a spec, and the fingerprint of its directory from before it was read.

        Args:
            name: The name in the request, without an enum prefix.
            argument: What `argument` returned.

        Raises:
            WeightsError: Its description is wrong.
            DiskTimeout: The directory cannot be read.
        """

        def read() -> tuple[VariantSpec, Fingerprint | None]:
            fingerprint = self._directory.fingerprint(name)
            return parse_variant(argument), fingerprint

        return await self._disk.run(read)
