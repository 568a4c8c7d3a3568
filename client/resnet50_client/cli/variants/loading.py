"""One variant loaded, and watched meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

from rich.progress import Progress, SpinnerColumn, TextColumn

from ...client import Client
from ...errors import Resnet50Error
from ...results import LoadedVariant, Loading
from ..output import complain, errors, printable
from . import table

_POLL_S = 0.25
_ANSWER_S = 5.0


def load(client: Client, address: str, name: str, replace: bool, timeout_s: float) -> LoadedVariant:
    """Load a variant, and show how far it is: live on a terminal, else a line for each stage.

    Args:
        client: Of one server.
        address: Of the same, to be shown.
        name: As for `Client.load_variant`, as `replace` and `timeout_s`.
        replace: The same.
        timeout_s: The same.

    Raises:
        Resnet50Error: As `Client.load_variant`.
        KeyboardInterrupt: Ctrl-C; the client is closed then, and the server goes on.
    """
    where = f"{address}: {name}"
    stage = ""
    live = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        console=errors,
        transient=True,
        redirect_stdout=False,
        disable=not errors.is_terminal,
    )
    with ThreadPoolExecutor(1, "load") as pool, live:
        task = live.add_task(printable(f"{where}: asked for"))
        call = pool.submit(client.load_variant, name, replace=replace, timeout_s=timeout_s)
        try:
            while not wait([call], _POLL_S).done:
                seen = _seen(client, name)
                if seen is None:
                    continue
                far = f"{where}: {table.progress(seen)}"
                live.update(task, description=printable(far))
                if seen.stage != stage and not errors.is_terminal:
                    complain(far)
                stage = seen.stage
            return call.result()
        except BaseException:
            client.close()  # so that the other thread ends
            raise


def _seen(client: Client, name: str) -> Loading | None:
    """Return how far the variant is; None if that is not known. The call itself says what fails."""
    try:
        found = client.variants(timeout_s=_ANSWER_S)
    except Resnet50Error:
        return None
    return next((one.loading for one in found if name in (one.name, *one.aliases)), None)
