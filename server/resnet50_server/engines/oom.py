"""Detect out-of-memory errors of all runtimes, by their class or message."""

from __future__ import annotations

import re

# Messages of each runtime, recorded in tests/unit/server/test_memory.py:
#   PyTorch on CUDA   OutOfMemoryError; CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
#   PyTorch           RuntimeError: DefaultCPUAllocator: can't allocate memory
#   oneDNN in it      RuntimeError: could not create a primitive (an engine that has warmed up can)
#   onnxruntime       Fail: Failed to allocate memory for requested buffer; bad allocation
#   OpenVINO          RuntimeError: Failed to allocate 102760448 bytes of memory; can't alloc
#   NumPy, C++        MemoryError: Unable to allocate; std::bad_alloc
_MESSAGES = re.compile(
    r"out of memory|alloc_failed|can(no|')t alloc|failed to alloc|bad.?alloc"
    r"|could not create a primitive",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an engine ran out of memory, so that a smaller batch might succeed."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, Exception) and _MESSAGES.search(str(error)) is not None
