"""Load a variant and show its progress."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

from rich.progress import Progress, SpinnerColumn, TextColumn

from resnet50_client._admin import AdminClient
from resnet50_client.errors import Resnet50Error
from resnet50_client.types import Loading, LoadResult

from ..output import printable, stderr, warn
from . import table

_POLL_S = 0.25
_POLL_TIMEOUT_S = 5.0


def load(
    client: AdminClient, address: str, name: str, replace: bool, timeout_s: float
) -> LoadResult:
    """Load a variant and show its progress: live on a terminal, else a line per stage.

    Args:
        client: AdminClient of one server.
        address: The server's address, for messages.
        name: Name of the variant.
        replace: Replace a loaded variant of this name.
        timeout_s: Timeout in seconds.

    Raises:
        Resnet50Error: See `AdminClient.load_variant`.
        KeyboardInterrupt: Ctrl-C; the client is then closed, and the server completes the load.
    """
    prefix = f"{address}: {name}"
    stage = ""
    live = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        console=stderr,
        transient=True,
        redirect_stdout=False,
        disable=not stderr.is_terminal,
    )
    with ThreadPoolExecutor(1, "load") as pool, live:
        task = live.add_task(printable(f"{prefix}: requested"))
        call = pool.submit(client.load_variant, name, replace=replace, timeout_s=timeout_s)
        try:
            while not wait([call], _POLL_S).done:
                loading = _poll(client, name)
                if loading is None:
                    continue
                progress = f"{prefix}: {table.progress(loading)}"
                live.update(task, description=printable(progress))
                if loading.stage != stage and not stderr.is_terminal:
                    warn(progress)
                stage = loading.stage
            return call.result()
        except BaseException:
            client.close()  # so that the other thread ends
            raise


def _poll(client: AdminClient, name: str) -> Loading | None:
    """Return the variant's progress; None if unknown. The load call itself reports errors."""
    try:
        listed = client.list_variants(timeout_s=_POLL_TIMEOUT_S)
    except Resnet50Error:
        return None
    return next(
        (variant.loading for variant in listed if name in (variant.name, *variant.aliases)), None
    )
