"""What a process holds, and a clock that waits for its device."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def held(device: str) -> float:
    """Bytes that the process holds now: resident on a CPU, PyTorch's allocations on a GPU."""
    return float(torch.cuda.memory_allocated()) if device == "cuda" else _resident("VmRSS")


def forget_peak(device: str) -> None:
    """Has `peak` begin anew; on a CPU, where Linux runs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak(device: str) -> float:
    """Most bytes that the process has held, since `forget_peak` or since its start."""
    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else _resident("VmHWM")


def now(device: str) -> float:
    """Seconds on a clock, when the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _resident(line: str) -> float:
    """Where there is no such file, the most so far stands for both."""
    if not STATUS.is_file():
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024.0 * next(int(found.split()[1]) for found in lines if found.startswith(line))
