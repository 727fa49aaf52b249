"""Which record comes when: pure functions of seed, epoch, sizes and rank; never of workers or history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PADDING_INDEX = -1
"""The index of a padding record."""

Indices = NDArray[np.int64]


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): a bijection that scrambles 64-bit integers.

    >>> hex(splitmix64(np.zeros(1, dtype=np.uint64))[0])
    '0xe220a8397b1dcdaf'
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Blocks(NamedTuple):
    """The blocks that a source reads as a whole, such as files behind a URL, or a Parquet file's row groups.

    Attributes:
        of: ``[n]`` int32, the block of each record.
        window: blocks that are shuffled together, because a reader keeps as many.
    """

    of: NDArray[np.int32]
    window: int


@dataclass(frozen=True)
class Share:
    """What an epoch takes of one source.

    Attributes:
        records: ``[n]`` the records that may be taken.
        weight: how often each of them is taken in an epoch, on average. An epoch takes ``round(weight · n)``, and goes
            on where the one before it stopped: no record comes twice before all have come once.
        blocks: what is read as a whole, the largest first, each of the smaller within one of the larger.
    """

    samples: Indices
    weight: float = 1.0
    blocks: tuple[Blocks, ...] = ()

    @property
    def taken(self) -> int:
        """Records in an epoch."""
        return max(1, round(self.weight * len(self.samples)))

    def steps_together(self, step: int) -> float:
        """Optimizer steps of `step` records that one window of blocks fills, at least 1."""
        windows = (len(self.samples) / len(np.unique(of)) * window for of, window in self.blocks)
        return min((max(1, samples // step) for samples in windows), default=float("inf"))

    def walk(self, seed: int, epoch: int) -> Indices:
        """``[taken]`` the records of an epoch: pass after pass over all of them, each pass in another order."""
        begin, n = epoch * self.taken, len(self.samples)
        passes = range(begin // n, -(-(begin + self.taken) // n))
        walked = np.concatenate([self._shuffled(_key(seed, number)) for number in passes])
        return walked[begin - passes.start * n :][: self.taken]

    def _shuffled(self, key: NDArray[np.uint64]) -> Indices:
        scrambled = splitmix64(self.samples.astype(np.uint64) ^ key)
        window = np.zeros(len(self.samples), dtype=np.int64)
        for of, together in self.blocks:
            names, first, positions = np.unique(of, return_index=True, return_inverse=True)
            places = np.empty(len(names), dtype=np.int64)
            places[np.lexsort((splitmix64(names.astype(np.uint64) ^ key), window[first]))] = np.arange(len(names))
            window = places[positions] // together
        return self.samples[np.lexsort((scrambled, window))]


def _key(seed: int, epoch: int) -> NDArray[np.uint64]:
    return splitmix64(splitmix64(np.array([seed % 2**64], dtype=np.uint64)) ^ np.uint64(epoch))


def epoch_order(seed: int, epoch: int, shares: Sequence[Share]) -> Indices:
    """The records of an epoch, the same on every machine and under every version of numpy.

    Every share keeps the order of its walk; together they are evenly mixed.

    >>> sorted(epoch_order(0, 3, [Share(np.arange(5))]).tolist())
    [0, 1, 2, 3, 4]
    >>> sorted(epoch_order(0, 0, [Share(np.arange(2), weight=2), Share(np.arange(2, 8), weight=0.5)]).tolist())[:4]
    [0, 0, 1, 1]
    """
    whose = np.repeat(np.arange(len(shares)), [share.taken for share in shares])
    whose = whose[np.argsort(splitmix64(np.arange(len(whose), dtype=np.uint64) ^ _key(seed, epoch)), kind="stable")]
    order = np.empty(len(whose), dtype=np.int64)
    for number, share in enumerate(shares):
        order[whose == number] = share.walk(seed, epoch)
    return order


def group_by_length(
    order: Indices, lengths: NDArray[np.int64], step: int, window: int, seed: int, epoch: int
) -> Indices:
    """The order with records of like length in one optimizer step, so that little is padded.

    Within every `window` steps, records are sorted, and the steps come in an order of their own: a record stays within
    its window.

    Args:
        order: ``[n]`` records, whole steps of them.
        lengths: by record; what shall not share a step (records without images) has lengths far apart.
        step: records in an optimizer step.
        window: steps that are sorted together; 1 leaves the order as it is.
        seed: of the order of the steps.
        epoch: the same.
    """
    if window == 1:
        return order
    order = order[np.lexsort((lengths[order], np.arange(len(order)) // (step * window)))]
    steps = np.arange(len(order) // step, dtype=np.uint64)
    places = np.lexsort((splitmix64(steps ^ _key(seed, epoch)), steps // np.uint64(window)))
    return order.reshape(-1, step)[places].reshape(-1)


def whole_batches(order: Indices, size: int) -> Indices:
    """The order without the tail that does not fill a batch of `size`."""
    return order[: len(order) // size * size]


def padded_batches(order: Indices, size: int) -> Indices:
    """The order with padding records at its end, so that every batch of `size` is full."""
    return np.pad(order, (0, -len(order) % size), constant_values=PADDING_INDEX)


def rank_slice(order: Indices, batch: int, batch_size: int, rank: int, world_size: int) -> Indices:
    """The records of one rank in one micro-batch.

    Micro-batch b of all ranks is ``order[b·G : (b+1)·G]`` with ``G = batch_size · world_size``, split among ranks.
    So one rank of 8, two ranks of 4, and 4 with two accumulated micro-batches see the same 8 records before a step.
    """
    start = (batch * world_size + rank) * batch_size
    return order[start : start + batch_size]
