"""Errors of runtimes out of memory; on the CPU, each was provoked by a limit (RLIMIT_AS)."""

from __future__ import annotations

import pytest
import torch

from resnet50_server.engines.oom import is_out_of_memory

SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 51380224 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
    MemoryError("Unable to allocate 9.19 MiB for an array with shape (64, 224, 224, 3)"),
    Exception(
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node."
        " Name:'Relu_5_nchwc' Status Message: Failed to allocate memory for requested buffer of"
        " size 102760448"
    ),
    RuntimeError(
        "[CPU] Convolution node with name 'Conv_4/WithoutBiases' Check 'ptr' failed at"
        " src/plugins/intel_cpu/src/cpu_memory.cpp:257:\nFailed to allocate 102760448 bytes"
    ),
    RuntimeError("[CPU] Convolution node with name 'Conv_4/WithoutBiases' can't alloc"),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    ValueError("a batch of 5 images; this engine was prepared for 1 to 4 (max_batch_size)"),
    RuntimeError("[CPU] Convolution node: std::future_error: Broken promise"),
]


@pytest.mark.parametrize("error", SAID, ids=lambda error: str(error)[:40])
def test_want_of_memory_is_told_from_what_runtimes_say(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_other_failures_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
