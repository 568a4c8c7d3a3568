"""Variant methods of the blocking client; `async_variants.py` has the asyncio ones."""

from __future__ import annotations

from . import calls
from .blocking_calls import BlockingCalls
from .connection import CHANGE_TIMEOUT_S
from .results import LoadedVariant, NewDefault, Variant
from .splits import TrafficReport


class BlockingVariants(BlockingCalls):
    """Lists, shows and changes the variants of a server."""

    def variants(self, *, timeout_s: float | None = None) -> list[Variant]:
        """Return all variants of the server, its default first, without their categories.

        Args:
            timeout_s: As for `classify`.

        Raises:
            Resnet50Error: See `resnet50_client.errors`.
        """
        return self._call(calls.variants_call(), timeout_s)

    def variant(self, name: str = "", *, timeout_s: float | None = None) -> Variant:
        """Return one variant, with its categories.

        Args:
            name: Its name or alias; "" for the server's default.
            timeout_s: As for `classify`.

        Raises:
            VariantNotFoundError: The server does not serve it.
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
        """
        return self._call(calls.variant_call(name), timeout_s)

    def load_variant(
        self, name: str, *, replace: bool = False, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> LoadedVariant:
        """Have the server load a variant; return once requests can name it.

        Like the other methods that change variants, it needs a token with the scope "admin" and a
        server that was started with `--variants-dir`. It reaches one server, of several addresses
        the one whose turn it is: to change several, make a client for each. It is never made again
        by itself, since another server might take the second attempt; after UnavailableError or
        DeadlineExceededError the server may still be at it, and `variants` shows how far it is.

        Args:
            name: A folder in the server's `--variants-dir`, one of torchvision's names, or a
                variant that the server was started with.
            replace: Replace a loaded variant of that name without downtime. It answers what it has
                taken; everything that comes later is answered by the new one.
            timeout_s: In seconds. Reading weights, preparing the engine and checking its answers
                takes minutes on some devices, so the client's own `timeout_s` is not used here.

        Raises:
            VariantNotFoundError: There is nothing of that name to load.
            VariantChangeError: It cannot be loaded, does not fit into the memory that variants may
                take, is served already, or another change goes on. Loaded variants
                keep serving, except those already evicted for it, which the message names.
            PermissionDeniedError: The token has not the scope "admin".
            UnimplementedError: The server was started without `--variants-dir`.
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
        """
        return self._call(calls.load_variant_call(name, replace), timeout_s)

    def unload_variant(self, name: str, *, timeout_s: float = CHANGE_TIMEOUT_S) -> Variant:
        """Have the server unload a variant; return its last state once its memory is free.

        No new request finds it; those that use it are answered, uploads that still arrive included,
        and streams end after the frames that are inside. Otherwise as `load_variant`.

        Args:
            name: Its name or alias.
            timeout_s: In seconds; calls that use the variant are waited for.

        Raises:
            VariantNotFoundError: It is not loaded.
            VariantChangeError: It is the default or part of a traffic split, another change goes
                on, or its memory cannot be freed (it answers no more then).
            Resnet50Error: As for `load_variant`.
        """
        return self._call(calls.unload_variant_call(name), timeout_s)

    def set_default_variant(self, name: str, *, timeout_s: float | None = None) -> NewDefault:
        """Let a loaded variant answer requests that name none.

        Streams that have begun keep theirs. Otherwise as `load_variant`.

        Args:
            name: Its name or alias.
            timeout_s: As for `classify`.

        Raises:
            VariantNotFoundError: It is not loaded.
            VariantChangeError: It cannot answer yet.
            Resnet50Error: As for `load_variant`.
        """
        return self._call(calls.set_default_variant_call(name), timeout_s)

    def set_traffic_split(
        self,
        variant: str,
        candidate: str,
        *,
        canary_percent: float = 0.0,
        shadow_percent: float = 0.0,
        canary_embeddings: bool = False,
        timeout_s: float | None = None,
    ) -> TrafficReport:
        """Judge a candidate by the requests that come for a variant, or change the shares.

        What was counted under other shares, or for another candidate, is forgotten. Otherwise as
        `load_variant`.

        Args:
            variant: The one that requests ask for, by name or alias.
            candidate: The one that is judged, loaded too.
            canary_percent: Share of callers that it answers, 0 to 100 in steps of 0.01; a caller
                (`caller_key`) always gets the same weights.
            shadow_percent: Share of the variant's images that it computes as well, 0 to 100, for
                comparison; no request waits for it.
            canary_embeddings: Whether the candidate also answers its callers' requests for
                embeddings, which are of another space than the variant's.
            timeout_s: As for `classify`.

        Raises:
            VariantNotFoundError: One of the two is not loaded.
            InvalidRequestError: A share is none, or both are 0.
            VariantChangeError: The candidate is out of service, or is to answer callers and has
                other categories than the variant.
            Resnet50Error: As for `load_variant`.
        """
        call = calls.set_traffic_split_call(
            variant, candidate, canary_percent, shadow_percent, canary_embeddings
        )
        return self._call(call, timeout_s)

    def list_traffic_splits(self, *, timeout_s: float | None = None) -> list[TrafficReport]:
        """Return the server's traffic splits and what came of them.

        It needs a token with the scope "admin", and reaches one server, which has counted for
        itself.

        Args:
            timeout_s: As for `classify`.

        Raises:
            PermissionDeniedError: The token has not the scope "admin".
            Resnet50Error: Another of its kinds; see `resnet50_client.errors`.
        """
        return self._call(calls.list_traffic_splits_call(), timeout_s)

    def delete_traffic_split(
        self, variant: str, *, timeout_s: float | None = None
    ) -> TrafficReport:
        """End a traffic split; return what came of it. Otherwise as `load_variant`.

        Args:
            variant: The one that has it, by name or alias.
            timeout_s: As for `classify`.

        Raises:
            VariantNotFoundError: It is not loaded, or has no split.
            Resnet50Error: As for `load_variant`.
        """
        return self._call(calls.delete_traffic_split_call(variant), timeout_s)
