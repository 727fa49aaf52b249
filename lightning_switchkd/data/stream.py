"""The loader: whole accumulation windows of one rank, in an order that a restart continues exactly."""

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
    """Where in training an iteration begins.

    Attributes:
        epoch: which order.
        start: micro-batches of it already done.
        stop: micro-batch at which the epoch is cut short; None where it is whole.
    """

    epoch: int
    start: int = 0
    stop: int | None = None


class BatchStream:
    """Micro-batches of one rank.

    In training, records are shuffled anew each epoch, a tail that fills no optimizer step is left out, and each
    `Batch` knows the counts of its accumulation window. Otherwise records come in order, every one exactly once, and
    padding records (index -1) fill up the last batches, so that all ranks run equally many. The slot of a bad record is
    dropped, positions never shift; a batch of bad records alone is one padding record.

    Lightning leaves a loader that is no `DataLoader` alone, asks it for `iter` earlier than it needs batches, and
    stores what `state_dict` gives. So the position is asked for at the first batch, not at `iter` (STACK D), and the
    state holds no position, only what the order is made of.

    Args:
        dataset: samples by index.
        collate: samples -> Batch.
        batch_size: records in a micro-batch of this rank.
        train: shuffle and cut, or keep the order and pad.
        seed: of the shuffle.
        accumulate: micro-batches an optimizer step takes.
        rank: this process.
        world_size: processes that share an epoch.
        num_workers: worker processes that read ahead; 0 reads here.
        group_window: optimizer steps within which records of like length are put together; 1 leaves all as shuffled.
        quarantine: takes note of bad records; None makes the first of them an error.
        position: tells where to begin, asked whenever an iteration starts; None begins the epoch of `set_epoch`.

    Raises:
        UserError: there are too few records for one optimizer step.
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
        self._dataset, self._collate = dataset, collate  # private: Lightning rewraps what has a `dataset`
        self.batch_size, self.train, self.seed, self.accumulate = batch_size, train, seed, accumulate
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.group_window, self.quarantine = group_window, quarantine
        self._shares = dataset.shares()
        self._position = position or (lambda: Position(self._epoch))
        self._epoch = 0
        self._waited = 0.0
        samples = sum(share.taken for share in self._shares) if train else len(dataset.samples)
        steps = samples // (batch_size * world_size * accumulate)
        self._length = steps * accumulate if train else -(-samples // (batch_size * world_size))
        if not self._length:
            raise UserError(
                f"{dataset.source.path} holds {samples} records, fewer than one optimizer step takes "
                f"({batch_size} per batch x {world_size} processes x {accumulate} accumulated): lower one of these"
            )

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration begins, where nobody gave a `position`."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, wherever the iteration began."""
        return self._length

    def pop_wait_seconds(self) -> float:
        """Seconds that an iteration has waited for batches to be made since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, stop = self._position()
        stop = len(self) if stop is None else min(stop, len(self))
        window: list[Batch] = []
        if self.quarantine is not None:
            self.quarantine.begin()
        for batch, done in zip(self._batches(self.order(epoch), start, stop), range(start + 1, stop + 1), strict=True):
            if self.quarantine is not None:
                self.quarantine.note(self.batch_size, batch.defects, epoch=epoch, batch=done - 1)
            window.append(batch)
            if done % self.accumulate == 0 or done == stop:
                yield from _with_window(window)
                window = []

    def state_dict(self) -> dict[str, Any]:
        """What the order of records is made of. It is the same on all ranks: only rank 0's is stored."""
        return {
            "seed": self.seed,
            "records": len(self._dataset),
            "data": self._dataset.source.fingerprint,
            "batch_size x processes": self.batch_size * self.world_size,
            "accumulate_grad_batches": self.accumulate,
            "group_window": self.group_window,
            "files read together (data.cache_gb)": [
                [together, len(np.unique(of))] for share in self._shares for of, together in share.blocks
            ]
            or None,
            "excluded records": fingerprint(self._dataset.excluded),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint's epoch can be continued.

        Raises:
            UserError: the records would come in another order; the message names what changed.
        """
        for field, now in self.state_dict().items():
            if state.get(field) != now:
                raise UserError(
                    f"this checkpoint cannot be resumed: {field!r} was {state.get(field)!r} and is {now!r} now, so the "
                    f"records of {self._dataset.source.path} would come in another order: set it back"
                )

    def order(self, epoch: int) -> Indices:
        """``[n]`` the records of an epoch, all ranks' micro-batches one after the other; -1 is a padding record."""
        batch = self.batch_size * self.world_size
        if not self.train:
            return padded_batches(self._dataset.samples, batch)
        step = batch * self.accumulate
        order = whole_batches(epoch_order(self.seed, epoch, self._shares), step)
        windows = [self.group_window, *(share.steps_together(step) for share in self._shares)]
        return group_by_length(order, self._dataset.lengths, step, int(min(windows)), self.seed, epoch)

    def _batches(self, order: Indices, start: int, stop: int) -> Iterator[Batch]:
        loader = prefetch(
            _MicroBatches(self._dataset, self._collate, strict=self.quarantine is None),
            (rank_slice(order, b, self.batch_size, self.rank, self.world_size) for b in range(start, stop)),
            self.num_workers,
        )
        asked = time.perf_counter()
        for batch in loader:
            self._waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()


class _MicroBatches(Dataset[Batch | UserError]):
    """Indices -> Batch, or the user's mistake as a value: raised in a worker it would come out as a traceback."""

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
    """The micro-batches of one window, each with the counts of all."""
    window = sum((batch.counts for batch in batches), Counts())
    for position, batch in enumerate(batches):
        yield replace(batch, window=window, window_start=position == 0, window_end=position == len(batches) - 1)
