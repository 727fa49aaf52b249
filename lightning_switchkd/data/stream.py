"""The loader: whole accumulation windows of one rank, in an order that resuming continues exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Batch, Counts, Defect
from lightning_switchkd.data.collate import Collator, ProcessedSample
from lightning_switchkd.data.dataset import VisionTextDataset
from lightning_switchkd.data.order import (
    PADDING_INDEX,
    Indices,
    epoch_order,
    group_by_length,
    padded_batches,
    rank_slice,
    whole_batches,
)
from lightning_switchkd.data.quarantine import Quarantine, defect_of
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.sources.index import fingerprint
from lightning_switchkd.data.workers import prefetch


class Position(NamedTuple):
    """The position in training at which an iteration begins.

    Attributes:
        epoch: The epoch, which defines the order.
        start: Micro-batches of the epoch that are already done.
        stop: Micro-batch at which the epoch is cut short. None: a full epoch.
    """

    epoch: int
    start: int = 0
    stop: int | None = None


class BatchStream:
    """Micro-batches of one rank.

    In training, samples are shuffled in every epoch, and a tail that does not fill an optimizer step is dropped. Each
    `Batch` has the counts of its accumulation window. Otherwise samples come in order, each exactly once. Padding
    samples (index -1) fill the last batches, so that all ranks run equally many. An invalid sample leaves its place
    empty, and positions never shift. A batch of invalid samples only becomes one padding sample.

    Lightning does not modify a loader that is not a `DataLoader`. It calls `iter` before it needs batches, and stores
    `state_dict` in checkpoints. So the position is read at the first batch, when the Trainer has restored its progress,
    and not at `iter`. The state holds no position, only what defines the order.

    Args:
        dataset: Samples by index.
        collate: Makes a `Batch` of samples.
        batch_size: Samples in a micro-batch of this rank.
        train: True: shuffle and cut. False: keep the order and pad.
        seed: Seed of the shuffle.
        accumulate: Micro-batches of an optimizer step.
        rank: This process.
        world_size: Processes that share an epoch.
        num_workers: Worker processes that prefetch. 0 reads in this process.
        group_window: Optimizer steps within which samples of similar length are grouped. 1 keeps the shuffled order.
        quarantine: Records invalid samples. None: the first invalid sample is an error.
        position: Returns the start, at the start of each iteration. None: the start of the epoch of `set_epoch`.

    Raises:
        UserError: There are too few samples for one optimizer step.
    """

    def __init__(
        self,
        dataset: VisionTextDataset,
        collate: Collator,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        group_window: int = 1,
        quarantine: Quarantine | None = None,
        position: Callable[[], Position] | None = None,
    ) -> None:
        self._dataset, self._collate = dataset, collate  # private: Lightning rewraps a loader with a `dataset`
        self.batch_size, self.train, self.seed, self.accumulate = batch_size, train, seed, accumulate
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.group_window, self.quarantine = group_window, quarantine
        self._shares = dataset.shares()
        self._position = position or (lambda: Position(self._epoch))
        self._epoch = 0
        self._wait_seconds = 0.0
        samples = sum(share.samples_per_epoch for share in self._shares) if train else len(dataset.samples)
        steps = samples // (batch_size * world_size * accumulate)
        self._length = steps * accumulate if train else -(-samples // (batch_size * world_size))
        if not self._length:
            raise UserError(
                f"{dataset.source.path} has {samples} samples, fewer than one optimizer step needs "
                f"({batch_size} per batch x {world_size} processes x {accumulate} accumulated). Lower one of these."
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. Ignored if `position` is given."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the micro-batches of a full epoch, wherever the iteration began."""
        return self._length

    def pop_wait_seconds(self) -> float:
        """Return the seconds spent waiting for batches since the last call."""
        seconds, self._wait_seconds = self._wait_seconds, 0.0
        return seconds

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, stop = self._position()
        stop = len(self) if stop is None else min(stop, len(self))
        window: list[Batch] = []
        if self.quarantine is not None:
            self.quarantine.read_existing()
        for batch, done in zip(self._batches(self.order(epoch), start, stop), range(start + 1, stop + 1), strict=True):
            if self.quarantine is not None:
                self.quarantine.add(self.batch_size, batch.defects, epoch=epoch, batch=done - 1)
            window.append(batch)
            if done % self.accumulate == 0 or done == stop:
                yield from _with_window(window)
                window = []

    def state_dict(self) -> dict[str, Any]:
        """Return everything that defines the order of samples. Equal on all ranks, and only rank 0's is stored."""
        return {
            "seed": self.seed,
            "records": len(self._dataset),
            "data": self._dataset.source.fingerprint,
            "batch_size x processes": self.batch_size * self.world_size,
            "accumulate_grad_batches": self.accumulate,
            "group_window": self.group_window,
            "files read together (data.cache_gb)": [
                [window, len(np.unique(ids))] for share in self._shares for ids, window in share.blocks
            ]
            or None,
            "excluded records": fingerprint(self._dataset.excluded),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint's epoch can be resumed.

        Raises:
            UserError: The order of samples would differ. The message names the setting that changed.
        """
        for name, current in self.state_dict().items():
            if state.get(name) != current:
                raise UserError(
                    f"Cannot resume this checkpoint: {name!r} was {state.get(name)!r} and is now {current!r}, which "
                    f"changes the order of the samples of {self._dataset.source.path}. Restore the old value."
                )

    def order(self, epoch: int) -> Indices:
        """Return ``[n]`` samples of an epoch, the micro-batches of all ranks in sequence. -1 is a padding sample."""
        batch = self.batch_size * self.world_size
        if not self.train:
            return padded_batches(self._dataset.samples, batch)
        step = batch * self.accumulate
        order = whole_batches(epoch_order(self.seed, epoch, self._shares), step)
        windows = [self.group_window, *(share.steps_per_window(step) for share in self._shares)]
        return group_by_length(order, self._dataset.lengths, step, int(min(windows)), self.seed, epoch)

    def _batches(self, order: Indices, start: int, stop: int) -> Iterator[Batch]:
        loader = prefetch(
            _MicroBatches(self._dataset, self._collate, strict=self.quarantine is None),
            (rank_slice(order, b, self.batch_size, self.rank, self.world_size) for b in range(start, stop)),
            self.num_workers,
        )
        start_time = time.perf_counter()
        for batch in loader:
            self._wait_seconds += time.perf_counter() - start_time
            yield batch
            start_time = time.perf_counter()


class _MicroBatches(Dataset[Batch | UserError]):
    """Batches by indices. A `UserError` is returned as a value, because raising in a worker would show a traceback."""

    def __init__(self, dataset: VisionTextDataset, collate: Collator, strict: bool) -> None:
        self.dataset, self.collate, self.strict = dataset, collate, strict

    def __getitem__(self, indices: Indices) -> Batch | UserError:
        samples: list[ProcessedSample] = []
        defects: list[Defect] = []
        for index in indices.tolist():
            try:
                samples.append(self.collate.padding_sample() if index == PADDING_INDEX else self.dataset[index])
            except SampleError as error:
                if self.strict:
                    return error
                defects.append(defect_of(error))
            except UserError as error:
                return error
        return replace(self.collate(samples or [self.collate.padding_sample()]), defects=tuple(defects))


def _with_window(batches: list[Batch]) -> Iterator[Batch]:
    """Yield the micro-batches of one window, each with the counts of the whole window."""
    window = sum((batch.counts for batch in batches), Counts())
    for position, batch in enumerate(batches):
        yield replace(batch, window=window, window_start=position == 0, window_end=position == len(batches) - 1)
