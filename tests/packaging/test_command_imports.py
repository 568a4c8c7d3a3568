"""Commands share modules and never import one another; the SDK and the reader of
metrics import no command."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet50_cli.app import COMMANDS
from tests.support.imports import modules

CLIENT = Path(__file__).resolve().parents[2] / "client"
# Packages and modules of one command each.
OWN = {".".join(source.module.split(".")[:2]) for source in COMMANDS if "_cli." in source.module}
# Only the entry points may import these; `app` imports the commands, by name.
TOP = {"resnet50_cli.app", "resnet50_cli.__main__"}
# Packages below the commands.
SHARED = ("resnet50_client", "resnet50_metrics", "resnet50_bulk")
# The client and the server share `resnet50_bulk`, and import each other nowhere.
BESIDE = {
    "resnet50_client": ("resnet50_server", "resnet50_bulk"),
    "resnet50_cli": ("resnet50_server",),
    "resnet50_bench": ("resnet50_server",),
    "resnet50_bulk": ("resnet50_server", "resnet50_client"),
}


def owner(name: str) -> str | None:
    """Return the command that a module belongs to, None for shared modules."""
    part = ".".join(name.split(".")[:2])
    return part if part in OWN else None


def wrong(client: Path) -> list[str]:
    """Return the imports of commands from where they do not belong."""
    found = []
    for package in (*SHARED, "resnet50_cli", "resnet50_bench"):
        for module, names in modules(client / package):
            full = f"{package}.{module}".rstrip(".")
            for name in sorted(names):
                theirs = name.partition(".")[0]
                if theirs in BESIDE.get(package, ()):
                    found.append(f"{full} imports {name}: {package} imports no {theirs}")
                if theirs not in ("resnet50_cli", "resnet50_bench"):
                    continue
                if package in SHARED:
                    found.append(f"{full} imports {name}: {package} imports no command")
                elif theirs == "resnet50_bench" and package != "resnet50_bench":
                    found.append(f"{full} imports {name}, which only the entry in COMMANDS may")
                elif owner(name) not in (None, owner(full)):
                    found.append(f"{full} imports {name}, which belongs to another command")
                elif any(f"{name}.".startswith(f"{top}.") for top in TOP) and full not in TOP:
                    found.append(f"{full} imports {name}, which is above it")
    return found


def test_no_command_imports_another():
    assert len(OWN) == 7
    assert wrong(CLIENT) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("resnet50_cli/top/view.py", "from resnet50_bench.table import tables"),
        ("resnet50_cli/formatting.py", "import resnet50_bench.table"),
        ("resnet50_cli/variants/table.py", "from ..top.cells import by_name"),
        ("resnet50_cli/classify.py", "from . import health"),
        ("resnet50_cli/output.py", "def late():\n    from .embed import command"),
        ("resnet50_cli/options.py", "from .app import app"),
        ("resnet50_bench/command.py", "from resnet50_cli.stream.command import stream"),
        ("resnet50_client/images.py", "from resnet50_cli import output"),
        ("resnet50_metrics/scrape.py", "from resnet50_cli.formatting import rate"),
        ("resnet50_client/images.py", "from resnet50_bulk.run import Run"),
        ("resnet50_bulk/run.py", "from resnet50_client.types import Embedding"),
        ("resnet50_bulk/run.py", "from resnet50_cli.output import warn"),
        ("resnet50_cli/embed/embedder.py", "from resnet50_server.offline import LocalEmbedder"),
    ],
)
def test_an_import_of_another_command_is_found(tmp_path, module, line):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(wrong(tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("resnet50_cli/top/view.py", "from .tables import servers\nfrom ..formatting import rate"),
        ("resnet50_bench/command.py", "from resnet50_cli.options import AsJson"),
        ("resnet50_cli/__main__.py", "from .app import app"),
        ("resnet50_cli/embed/command.py", "from ..images import answers"),
    ],
)
def test_imports_of_shared_modules_are_allowed(tmp_path, module, line):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert wrong(tmp_path) == []
