"""Which record comes when: pure functions of seed, epoch, sizes and rank; never of workers or history."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NULL = -1
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


def epoch_order(seed: int, epoch: int, n: int) -> Indices:
    """A permutation of ``0 … n-1`` that is the same on every machine and under every version of numpy.

    >>> sorted(epoch_order(seed=0, epoch=3, n=5).tolist())
    [0, 1, 2, 3, 4]
    """
    key = splitmix64(splitmix64(np.array([seed % 2**64], dtype=np.uint64)) ^ np.uint64(epoch))
    return np.argsort(splitmix64(np.arange(n, dtype=np.uint64) ^ key), kind="stable")


def whole_batches(order: Indices, size: int) -> Indices:
    """The order without the tail that does not fill a batch of `size`."""
    return order[: len(order) // size * size]


def padded_batches(order: Indices, size: int) -> Indices:
    """The order with padding records at its end, so that every batch of `size` is full."""
    return np.pad(order, (0, -len(order) % size), constant_values=NULL)


def rank_slice(order: Indices, batch: int, batch_size: int, rank: int, world_size: int) -> Indices:
    """The records of one rank in one micro-batch.

    Micro-batch b of all ranks is ``order[b·G : (b+1)·G]`` with ``G = batch_size · world_size``, split among ranks.
    So one rank of 8, two ranks of 4, and 4 with two accumulated micro-batches see the same 8 records before a step.
    """
    start = (batch * world_size + rank) * batch_size
    return order[start : start + batch_size]
