# Generated from _async_admin.py by client/generate_sync.py; do not edit.
"""The blocking client for administration: it changes variants and traffic splits."""

from __future__ import annotations

from . import _variant_calls
from ._base_client import BaseClient
from ._config import CHANGE_TIMEOUT_S
from ._types.traffic import TrafficReport
from ._types.variants import LoadResult, SetDefaultResult, Variant


class AdminClient(BaseClient):
    """Blocking client that changes variants and traffic splits of one server."""

    def load_variant(
        self, name: str, *, replace: bool = False, timeout_s: float | None = None
    ) -> LoadResult:
        """Load a variant into the server; return when it is ready for requests.

        Like the other methods that change variants, it needs a token with the scope "admin" and a
        server with `--variants-dir`. It changes a single server, one of several addresses: to
        change several servers, create a client for each. It is not retried after the request was
        sent, because another server could receive the retry; after UnavailableError or
        DeadlineExceededError the load may still be in progress, as `list_variants` shows.

        Args:
            name: A folder in the server's `--variants-dir`, the name of a torchvision variant, or a
                variant of the server's start-up options.
            replace: Replace a loaded variant of this name without downtime: it completes the
                requests it has, and the new one serves all later requests.
            timeout_s: Timeout in seconds, `math.inf` for no limit; None for 900 s rather than the
                client's, because reading weights, building the engine and checking its results
                takes minutes on some devices.

        Raises:
            VariantNotFoundError: There is no variant of that name to load.
            VariantChangeError: The load failed, the variant exceeds the memory limit or is already
                loaded, or another change is in progress. Loaded variants keep serving, except
                those already evicted for it, which the message names.
            PermissionDeniedError: The token lacks the scope "admin".
            UnimplementedError: The server was started without `--variants-dir`.
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
        """
        timeout_s = CHANGE_TIMEOUT_S if timeout_s is None else timeout_s
        return self._call(_variant_calls.load_variant_call(name, replace), timeout_s)

    def unload_variant(self, name: str, *, timeout_s: float | None = None) -> Variant:
        """Unload a variant from the server; return its last state when its memory is free.

        New requests for it are rejected; requests in flight are completed, including uploads in
        progress, and streams end after their pending frames. Otherwise as `load_variant`.

        Args:
            name: Name or alias.
            timeout_s: Timeout in seconds, including the wait for requests in flight; None and
                `math.inf` as in `load_variant`.

        Raises:
            VariantNotFoundError: The variant is not loaded.
            VariantChangeError: It is the default or part of a traffic split, another change is in
                progress, or its memory cannot be freed (it no longer serves requests then).
            Resnet50Error: The call failed; see `load_variant`.
        """
        timeout_s = CHANGE_TIMEOUT_S if timeout_s is None else timeout_s
        return self._call(_variant_calls.unload_variant_call(name), timeout_s)

    def set_default_variant(self, name: str, *, timeout_s: float | None = None) -> SetDefaultResult:
        """Make a loaded variant the default, which serves requests that name none.

        Open streams keep their variant. Otherwise as `load_variant`.

        Args:
            name: Name or alias.
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            VariantNotFoundError: The variant is not loaded.
            VariantChangeError: The variant is not ready.
            Resnet50Error: The call failed; see `load_variant`.
        """
        return self._call(_variant_calls.set_default_variant_call(name), timeout_s)

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
        """Split a variant's traffic with a candidate, or change the percentages.

        Counters of another candidate or of other percentages are reset. Otherwise as
        `load_variant`.

        Args:
            variant: The variant that requests name, by name or alias.
            candidate: The variant to compare with it, also loaded.
            canary_percent: Percentage of callers served by the candidate, 0 to 100 in steps of
                0.01; a caller (`caller_key`) always gets the same weights.
            shadow_percent: Percentage of the variant's images that the candidate also computes in
                the background, for comparison, 0 to 100.
            canary_embeddings: Serve canary callers' embeddings from the candidate, too; they are of
                another embedding space than the variant's.
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            VariantNotFoundError: One of the two is not loaded.
            InvalidRequestError: A percentage is invalid, or both are 0.
            VariantChangeError: The candidate is out of service, or its categories differ from the
                variant's although it is to serve callers.
            Resnet50Error: The call failed; see `load_variant`.
        """
        call = _variant_calls.set_traffic_split_call(
            variant, candidate, canary_percent, shadow_percent, canary_embeddings
        )
        return self._call(call, timeout_s)

    def list_traffic_splits(self, *, timeout_s: float | None = None) -> list[TrafficReport]:
        """List the server's traffic splits with their results.

        It needs a token with the scope "admin". The results are of a single server.

        Args:
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            PermissionDeniedError: The token lacks the scope "admin".
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
        """
        return self._call(_variant_calls.list_traffic_splits_call(), timeout_s)

    def delete_traffic_split(
        self, variant: str, *, timeout_s: float | None = None
    ) -> TrafficReport:
        """End a traffic split; return its results. Otherwise as `load_variant`.

        Args:
            variant: The variant whose traffic is split, by name or alias.
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            NotFoundError: The variant is not loaded, or has no split.
            Resnet50Error: The call failed; see `load_variant`.
        """
        return self._call(_variant_calls.delete_traffic_split_call(variant), timeout_s)
