"""Memory of the process or its GPU, and a clock that waits for the device."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")
"""Peak resident memory on Linux. psutil has neither the peak nor a way to reset the peak."""


def memory_in_use(device: str) -> float:
    """Return the bytes in use now: resident memory of the process on a CPU, PyTorch's allocations on a GPU."""
    return float(torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss)


def peak_memory(device: str) -> float:
    """Return the most bytes in use since :func:`reset_peak_memory`, or since the process started."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    if not STATUS.is_file():  # macOS counts bytes, other systems KiB
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def reset_peak_memory(device: str) -> None:
    """Restart the measurement of :func:`peak_memory`. On a CPU this works on Linux only."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def synchronized_time(device: str) -> float:
    """Return a clock's seconds after the device has finished its queued work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
