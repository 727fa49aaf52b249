from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_switchkd.data.order import (
    Blocks,
    Share,
    group_by_length,
    padded_batches,
    rank_slice,
    splitmix64,
    whole_batches,
)
from lightning_switchkd.data.order import epoch_order as order_of_shares

sizes = st.integers(1, 300)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Of one source that can be read in any order."""
    return order_of_shares(seed, epoch, [Share(np.arange(n))])


def reference(x: int) -> int:
    """splitmix64 in Python's own integers."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@given(st.integers(0, 2**64 - 1))
def test_splitmix64(x: int) -> None:
    assert int(splitmix64(np.array([x], dtype=np.uint64))[0]) == reference(x)


@given(seed=st.integers(-3, 2**63), epoch=st.integers(0, 1000), n=sizes)
def test_an_order_is_a_permutation_and_repeats(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, epoch_order(seed, epoch, n))


def test_the_order_is_fixed_for_ever() -> None:
    """A change here makes every checkpoint continue with other records."""
    assert epoch_order(0, 0, 10).tolist() == [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]
    assert epoch_order(7, 3, 10).tolist() == [2, 9, 1, 7, 6, 3, 8, 4, 0, 5]


def test_seeds_and_epochs_shuffle_differently() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_places_are_uniform() -> None:
    """Record 0 comes first about equally often as any other."""
    first = np.bincount([epoch_order(1, epoch, 8)[0] for epoch in range(4000)], minlength=8)
    assert np.abs(first - 500).max() < 100


@given(n=sizes, batch_size=st.integers(1, 5), world=st.integers(1, 4))
def test_ranks_share_each_batch(n: int, batch_size: int, world: int) -> None:
    size = batch_size * world
    for order in (whole_batches(np.arange(n), size), padded_batches(np.arange(n), size)):
        slices = [
            rank_slice(order, b, batch_size, rank, world) for b in range(len(order) // size) for rank in range(world)
        ]
        assert all(len(s) == batch_size for s in slices)
        assert np.array_equal(np.concatenate([*slices, []]), order)
    assert 0 <= n - len(whole_batches(np.arange(n), size)) < size
    padded = padded_batches(np.arange(n), size)
    assert padded[padded >= 0].tolist() == list(range(n))
    assert len(padded) - n < size


@pytest.mark.parametrize(("batch_size", "world", "accumulate"), [(8, 1, 1), (4, 2, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2)])
def test_a_step_takes_the_same_records_however_it_is_split(batch_size: int, world: int, accumulate: int) -> None:
    order = whole_batches(epoch_order(0, 0, 50), 8)
    for step in range(6):
        batches = range(step * accumulate, (step + 1) * accumulate)
        taken = [rank_slice(order, b, batch_size, rank, world) for b in batches for rank in range(world)]
        assert np.concatenate(taken).tolist() == order[8 * step : 8 * step + 8].tolist()


def test_small_blocks_come_within_large_ones() -> None:
    """Eight files of five row groups: two files at a time, and in them five row groups at a time."""
    n = 800
    files, row_groups = (
        Blocks((np.arange(n) // 100).astype(np.int32), 2),
        Blocks((np.arange(n) // 20).astype(np.int32), 5),
    )
    share = Share(np.arange(n), blocks=(files, row_groups))
    order = share.epoch_samples(0, 0)
    assert sorted(order) == list(range(n))
    assert [len(set(order[i : i + 200] // 100)) for i in range(0, n, 200)] == [2] * 4
    assert [len(set(order[i : i + 100] // 20)) for i in range(0, n, 100)] == [5] * 8
    assert share.steps_per_window(8) == 12
    alone = Share(np.arange(n), blocks=(row_groups,)).epoch_samples(0, 0)
    assert len(set(alone[:200] // 100)) > 2


@given(n=st.integers(1, 40), weight=st.sampled_from([0.1, 0.5, 1.0, 1.7, 3.0]), seed=st.integers(0, 9))
def test_no_record_comes_again_before_all_have_come(n: int, weight: float, seed: int) -> None:
    share = Share(np.arange(n) + 100, weight)
    walked = np.concatenate([share.epoch_samples(seed, epoch) for epoch in range(8)])
    assert len(walked) == 8 * share.samples_per_epoch
    for start in range(0, len(walked) - n + 1, n):
        assert sorted(walked[start : start + n]) == list(range(100, 100 + n))


def test_shares_are_mixed_evenly() -> None:
    shares = [Share(np.arange(300)), Share(np.arange(300, 1200), weight=1 / 3)]
    order = order_of_shares(0, 0, shares)
    assert len(order) == len(set(order)) == 600
    of_first = [(order[start : start + 100] < 300).mean() for start in range(0, 600, 100)]
    assert min(of_first) > 0.35
    assert max(of_first) < 0.65


@given(
    steps=st.integers(1, 30),
    step=st.integers(1, 6),
    window=st.integers(1, 8),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_grouping_moves_no_record_out_of_its_window(steps: int, step: int, window: int, seed: int, epoch: int) -> None:
    n = steps * step
    order = epoch_order(seed, epoch, n)
    lengths = splitmix64(np.arange(n, dtype=np.uint64)).astype(np.int64) % 50
    grouped = group_by_length(order, lengths, step, window, seed, epoch)
    for start in range(0, n, step * window):
        inside = grouped[start : start + step * window]
        assert sorted(inside) == sorted(order[start : start + step * window])
        ranges = sorted((min(s), max(s)) for s in lengths[inside].reshape(-1, step).tolist())
        assert window == 1 or all(a[1] <= b[0] for a, b in pairwise(ranges)), "like lengths share a step"


def test_records_without_images_share_steps() -> None:
    """A record without an image lies below all that have one, whatever its length."""
    lengths = np.where(np.arange(640) % 5 == 0, np.arange(640), np.arange(640) + 2048)
    grouped = group_by_length(epoch_order(0, 0, 640), lengths, 8, 40, 0, 0)
    mixed = [len({int(i) % 5 == 0 for i in step}) for step in grouped.reshape(-1, 8)]
    assert mixed.count(2) <= 2, "at most one step a window has both"
