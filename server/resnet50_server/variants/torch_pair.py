"""The error of an environment whose torch and torchvision cannot be imported together."""

from __future__ import annotations

import sys
from importlib import metadata

import torch

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.texts import escaped, shortened

# Raised by `import torchvision`: operators that it did not register (RuntimeError), names that are
# not in torch (ImportError, AttributeError), libraries of another build (OSError).
IMPORT_ERRORS = (ImportError, RuntimeError, AttributeError, OSError)
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def mismatch(error: Exception) -> WeightsError:
    """Return the error for a torchvision that cannot be imported, with the command that repairs it.

    Args:
        error: Raised by the import, one of `IMPORT_ERRORS`.
    """
    mine, other = torch.__version__, _torchvision_version()
    index = f" --index-url {_CPU_INDEX}" if "+cpu" in mine + other else ""
    reason = escaped(shortened(f"{type(error).__name__}: {error}", 300))
    return WeightsError(
        f"torch {mine} and torchvision {other} do not match ({reason}): install a pair of one"
        f" release with {sys.executable} -m pip install --force-reinstall{index} torch torchvision"
    )


def _torchvision_version() -> str:
    """Return the installed version, from its metadata: the package cannot be imported."""
    try:
        return metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return "(not installed)"
