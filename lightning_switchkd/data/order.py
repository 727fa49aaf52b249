"""The order of samples: pure functions of seed, epoch, sizes and rank, independent of workers and history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PADDING_INDEX = -1
"""Index of a padding sample."""

Indices = NDArray[np.int64]


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers with the splitmix64 finalizer, a bijection (Steele, Lea, Flood 2014).

    >>> hex(splitmix64(np.zeros(1, dtype=np.uint64))[0])
    '0xe220a8397b1dcdaf'
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Blocks(NamedTuple):
    """The blocks that a source reads as a whole, such as files behind a URL or row groups of a Parquet file.

    Attributes:
        ids: ``[n]`` int32, the block of each sample.
        window: Number of blocks that are shuffled together. A reader keeps that many.
    """

    ids: NDArray[np.int32]
    window: int


@dataclass(frozen=True)
class Share:
    """The part of one source that an epoch uses.

    Attributes:
        samples: ``[n]`` indices of the samples that may be used.
        weight: Mean number of times that an epoch uses each sample. An epoch uses ``round(weight · n)`` samples and
            continues where the previous epoch stopped. No sample repeats before all have been used once.
        blocks: Blocks that are read as a whole, the largest first. Each smaller block is part of a larger one.
    """

    samples: Indices
    weight: float = 1.0
    blocks: tuple[Blocks, ...] = ()

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples in an epoch."""
        return max(1, round(self.weight * len(self.samples)))

    def steps_per_window(self, step: int) -> float:
        """Return the optimizer steps of `step` samples in one window of blocks, at least 1. Infinity without blocks."""
        windows = (len(self.samples) / len(np.unique(ids)) * window for ids, window in self.blocks)
        return min((max(1, samples // step) for samples in windows), default=float("inf"))

    def epoch_samples(self, seed: int, epoch: int) -> Indices:
        """Return ``[samples_per_epoch]`` samples: pass after pass over all of them, each pass in another order."""
        begin, n = epoch * self.samples_per_epoch, len(self.samples)
        passes = range(begin // n, -(-(begin + self.samples_per_epoch) // n))
        shuffled = np.concatenate([self._shuffled(_key(seed, number)) for number in passes])
        return shuffled[begin - passes.start * n :][: self.samples_per_epoch]

    def _shuffled(self, key: NDArray[np.uint64]) -> Indices:
        scrambled = splitmix64(self.samples.astype(np.uint64) ^ key)
        window_of = np.zeros(len(self.samples), dtype=np.int64)
        for ids, window in self.blocks:
            unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
            rank = np.empty(len(unique), dtype=np.int64)
            rank[np.lexsort((splitmix64(unique.astype(np.uint64) ^ key), window_of[first]))] = np.arange(len(unique))
            window_of = rank[inverse] // window
        return self.samples[np.lexsort((scrambled, window_of))]


def _key(seed: int, epoch: int) -> NDArray[np.uint64]:
    return splitmix64(splitmix64(np.array([seed % 2**64], dtype=np.uint64)) ^ np.uint64(epoch))


def epoch_order(seed: int, epoch: int, shares: Sequence[Share]) -> Indices:
    """Return the samples of an epoch, the same on every machine and in every version of numpy.

    Each share keeps its own order. The shares are evenly mixed.

    >>> sorted(epoch_order(0, 3, [Share(np.arange(5))]).tolist())
    [0, 1, 2, 3, 4]
    >>> sorted(epoch_order(0, 0, [Share(np.arange(2), weight=2), Share(np.arange(2, 8), weight=0.5)]).tolist())[:4]
    [0, 0, 1, 1]
    """
    share_of = np.repeat(np.arange(len(shares)), [share.samples_per_epoch for share in shares])
    scrambled = splitmix64(np.arange(len(share_of), dtype=np.uint64) ^ _key(seed, epoch))
    share_of = share_of[np.argsort(scrambled, kind="stable")]
    order = np.empty(len(share_of), dtype=np.int64)
    for number, share in enumerate(shares):
        order[share_of == number] = share.epoch_samples(seed, epoch)
    return order


def group_by_length(
    order: Indices, lengths: NDArray[np.int64], step: int, window: int, seed: int, epoch: int
) -> Indices:
    """Reorder samples so that those of one optimizer step have similar lengths, which reduces padding.

    Samples are sorted within each `window` of steps. Then the steps of the window are shuffled. A sample never leaves
    its window.

    Args:
        order: ``[n]`` samples, whole steps.
        lengths: By sample. Samples that must not share a step (those without images) have very different lengths.
        step: Samples in an optimizer step.
        window: Steps that are sorted together. 1 keeps the order.
        seed: Seed for the order of the steps.
        epoch: Epoch, for the order of the steps.
    """
    if window == 1:
        return order
    order = order[np.lexsort((lengths[order], np.arange(len(order)) // (step * window)))]
    steps = np.arange(len(order) // step, dtype=np.uint64)
    shuffled = np.lexsort((splitmix64(steps ^ _key(seed, epoch)), steps // np.uint64(window)))
    return order.reshape(-1, step)[shuffled].reshape(-1)


def whole_batches(order: Indices, size: int) -> Indices:
    """Drop the tail that does not fill a batch of `size`."""
    return order[: len(order) // size * size]


def padded_batches(order: Indices, size: int) -> Indices:
    """Append padding samples so that every batch of `size` is full."""
    return np.pad(order, (0, -len(order) % size), constant_values=PADDING_INDEX)


def rank_slice(order: Indices, batch: int, batch_size: int, rank: int, world_size: int) -> Indices:
    """Return the samples of one rank in one micro-batch.

    Micro-batch b of all ranks is ``order[b·G : (b+1)·G]`` with ``G = batch_size · world_size``, split among ranks.
    One rank of 8, two ranks of 4, and 4 with two accumulated micro-batches use the same 8 samples in a step.
    """
    start = (batch * world_size + rank) * batch_size
    return order[start : start + batch_size]
