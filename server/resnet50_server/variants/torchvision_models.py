"""torchvision's models: the only import of torchvision, without the compiler that it imports too.

Its detection operators ask `torch._dynamo` whether they can be compiled. That module takes as long
to import as torch itself and 160 MB, and serving needs it only where `torch.compile` is used, which
imports it by itself (docs/adr/0059-torchvision-without-dynamo.md).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.texts import escaped, shortened

# Raised by `import torchvision`: operators that it did not register (RuntimeError), names that are
# not in torch (ImportError, AttributeError), libraries of another build (OSError).
IMPORT_ERRORS = (ImportError, RuntimeError, AttributeError, OSError)
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_COMPILER, _COMPILER_UTILS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Give torchvision a stand-in for the compiler during the block, unless it is imported."""
    if _COMPILER in sys.modules:
        yield
        return
    package, utils = ModuleType(_COMPILER), ModuleType(_COMPILER_UTILS)
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules[_COMPILER], sys.modules[_COMPILER_UTILS] = package, utils
    try:
        yield
    finally:
        del sys.modules[_COMPILER], sys.modules[_COMPILER_UTILS]


def _is_compile_supported(device_type: Any) -> Any:
    """Ask the compiler itself, once a detection operator computes."""
    return importlib.import_module(_COMPILER_UTILS).is_compile_supported(device_type)


def _mismatch(error: Exception) -> WeightsError:
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


try:
    with _without_compiler():
        import torchvision.models
except IMPORT_ERRORS:  # of a release that needs more of the compiler, or of no pair
    try:
        import torchvision.models
    except IMPORT_ERRORS as error:
        raise _mismatch(error) from error

ResNet = torchvision.models.ResNet
quantization = torchvision.models.quantization
resnet50 = torchvision.models.resnet50
