"""Processes that read ahead, and end with the run they read for."""

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
    """What `dataset` makes of each of `indices`, in their order, by worker processes that end with this one.

    Args:
        dataset: makes something of an array of indices; a `UserError` comes as a value, raised it would be a traceback.
        indices: asked for one by one, a few ahead.
        num_workers: worker processes; 0 reads here.

    Raises:
        UserError: where `dataset` gave one.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(_obey_the_run_alone, os.getpid()) if num_workers else None,
        generator=torch.Generator(),  # leaves the global random state, that is dropout, alone
    )
    for found in loader:
        if isinstance(found, UserError):
            raise found
        yield found


PARENT_CHECK_SECONDS = 5.0
"""Seconds between a worker's looks whether its run lives."""


def _obey_the_run_alone(run: int, _: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process of a run; who reads for it waits to be told by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS, where a scheduler's signal ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, args=(run,), daemon=True).start()


def _end_with_the_run(run: int) -> None:
    """PyTorch's own look at a killed run is not enough: a worker that leaves then waits to hand over its last batches
    through a pipe that nobody empties, and that its sisters hold open."""
    while os.getppid() == run:
        told = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_SECONDS)
        if told is not None and told.si_pid == run:
            break
    os._exit(0)
