"""What benchmarks measure with: memory that a process holds, a clock that waits for the device, lines of a table."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import torch


def held(device: str) -> float:
    """Bytes that the process holds now: resident on a CPU, PyTorch's allocations on a GPU."""
    if device == "cuda":
        return float(torch.cuda.memory_allocated())
    return float(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def forget_peak(device: str) -> None:
    """Has `peak` begin anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak(device: str) -> float:
    """Most bytes that the process has held, since `forget_peak` or since its start."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def now(device: str) -> float:
    """Seconds on a clock, when the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def row(*cells: object) -> None:
    """A line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
