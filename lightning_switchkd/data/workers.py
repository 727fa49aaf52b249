"""Processes that read ahead, and end with the run they read for."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_switchkd.data.order import Indices
from lightning_switchkd.errors import UserError

T = TypeVar("T")


def read_ahead(dataset: Dataset[T | UserError], indices: Iterable[Indices], num_workers: int) -> Iterator[T]:
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
        worker_init_fn=_obey_the_run_alone if num_workers else None,
        generator=torch.Generator(),  # leaves the global random state, that is dropout, alone
    )
    for found in loader:
        if isinstance(found, UserError):
            raise found
        yield found


def _obey_the_run_alone(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process of a run; who reads for it waits to be told by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a scheduler's signal ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_run_says_so, daemon=True).start()


def _end_when_the_run_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
