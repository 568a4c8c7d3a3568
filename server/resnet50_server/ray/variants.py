"""Variants of a running server: loaded, unloaded and made the default by its RPCs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from resnet50.v1 import variant_pb2, variant_pb2_grpc

from .options import VariantConfig

# Of loading: quantizing to int8, or capturing CUDA graphs, takes minutes.
LOAD_TIMEOUT_S = 900.0
TIMEOUT_S = 30.0


class VariantsFailed(Exception):
    """A variant could not be loaded, unloaded or made the default."""


class ServerVariants:
    """Changes the variants of a server.

    Args:
        target: gRPC target of the server.
        token_file: File with a token of the scope admin; None for none.
    """

    def __init__(self, target: str, token_file: str | None) -> None:
        self._target = target
        self._token_file = token_file
        # Those that an earlier configuration loaded, and the server's default before one chose it.
        self._loaded: tuple[str, ...] = ()
        self._own_default: str | None = None

    async def apply(self, config: VariantConfig) -> None:
        """Load the missing variants, set the default, unload those of an earlier configuration.

        Without a configuration now and before, the server is not called: that takes no token.

        Raises:
            VariantsFailed: The server refuses a change; the text has its reason.
        """
        if config == VariantConfig() and not self._loaded and self._own_default is None:
            return
        try:
            metadata = self._metadata()
            async with grpc.aio.insecure_channel(self._target) as channel:
                await self._apply(
                    variant_pb2_grpc.VariantServiceStub(channel),
                    config,
                    metadata,
                )
        except grpc.RpcError as error:
            raise VariantsFailed(f"user_config: {error.details()}") from error
        except OSError as error:
            raise VariantsFailed(f"admin_token_file: {error}") from error

    async def _apply(
        self, stub: Any, config: VariantConfig, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        options: Mapping[str, Any] = {"metadata": metadata, "timeout": TIMEOUT_S}
        listed = await stub.ListVariants(variant_pb2.ListVariantsRequest(), **options)
        present = {
            name
            for one in listed.variants
            if one.state == variant_pb2.VARIANT_STATE_READY
            for name in (one.name, *one.aliases)
        }
        for name in config.variants:
            if name not in present:
                await stub.LoadVariant(
                    variant_pb2.LoadVariantRequest(name=name),
                    metadata=metadata,
                    timeout=LOAD_TIMEOUT_S,
                )
        present_default = next((one.name for one in listed.variants if one.server_default), None)
        default = config.default or self._own_default
        if default not in (None, present_default):
            await stub.SetDefaultVariant(
                variant_pb2.SetDefaultVariantRequest(name=default), **options
            )
        if config.default is None:
            self._own_default = None
        elif self._own_default is None:
            self._own_default = present_default
        for name in self._loaded:
            if name not in config.variants:
                await stub.UnloadVariant(
                    variant_pb2.UnloadVariantRequest(name=name),
                    metadata=metadata,
                    timeout=LOAD_TIMEOUT_S,
                )
        self._loaded = config.variants

    def forget(self) -> None:
        """Forget earlier configurations: the server was started again."""
        self._loaded, self._own_default = (), None

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of calls.

        Raises:
            OSError: The token file cannot be read.
        """
        if self._token_file is None:
            return ()
        token = Path(self._token_file).read_text(encoding="utf-8").strip()
        return (("authorization", f"Bearer {token}"),)
