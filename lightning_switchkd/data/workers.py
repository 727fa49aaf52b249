"""Worker processes that prefetch, and exit with their run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.order import Indices

T = TypeVar("T")


def prefetch(dataset: Dataset[T | UserError], indices: Iterable[Indices], num_workers: int) -> Iterator[T]:
    """Yield `dataset[i]` for each of `indices`, in order. Worker processes exit with this process.

    Args:
        dataset: Takes an array of indices. It returns a `UserError` as a value, because raising in a worker would
            show a traceback.
        indices: Iterated a few items ahead.
        num_workers: Worker processes. 0 reads in this process.

    Raises:
        UserError: `dataset` returned one.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        multiprocessing_context=start_method(num_workers),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(_follow_parent, os.getpid()) if num_workers else None,
        generator=torch.Generator(),  # keeps the global random state, and so dropout, unchanged
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def start_method(num_workers: int) -> str | None:
    """Return how worker processes start: by `fork` on Linux, because other ways import all packages again."""
    return "fork" if num_workers and sys.platform == "linux" else None


PARENT_CHECK_SECONDS = 5.0
"""Seconds between a worker's checks that its run is alive."""


def _follow_parent(parent: int, _: int) -> None:
    """Ignore Ctrl-C and a scheduler's SIGTERM, which reach every process of a run. Obey only the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS, where a scheduler's signal ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent dies or sends SIGTERM.

    PyTorch's own check for a dead parent is not enough. An exiting worker waits until its last batches are read from
    a pipe that no process reads and that the other workers keep open.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
