from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Batch, Counts
from lightning_switchkd.data import LLaVADataModule
from lightning_switchkd.data.stream import BatchStream, Position
from lightning_switchkd.data.workers import PARENT_CHECK_SECONDS


@pytest.fixture
def stream(make_data: Callable[..., LLaVADataModule]) -> Callable[..., BatchStream]:
    """The stream of a data module on n records, in another geometry."""

    def make(n: int = 21, batch_size: int = 4, train: bool = True, **settings: Any) -> BatchStream:
        template = make_data(n, batch_size=1).train_dataloader()
        return BatchStream(template._dataset, template._collate, batch_size, train=train, **settings)

    return make


def indices(batches: Iterable[Batch]) -> list[list[int]]:
    return [batch.sample_index.tolist() for batch in batches]


def flat(lists: Iterable[list[int]]) -> list[int]:
    return [index for some in lists for index in some]


def equal(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_an_epoch_takes_each_record_once_and_the_next_another_order(stream: Callable[..., BatchStream]) -> None:
    loader = stream(21)
    first = flat(indices(loader))
    assert len(first) == len(set(first)) == 20
    assert len(loader) == 5
    assert flat(indices(loader)) == first
    loader.set_epoch(1)
    assert flat(indices(loader)) != first
    assert flat(indices(stream(21, seed=1))) != first


@pytest.mark.parametrize("accumulate", [1, 2])
def test_workers_change_nothing(stream: Callable[..., BatchStream], accumulate: int) -> None:
    here, there = (list(stream(21, accumulate=accumulate, num_workers=workers)) for workers in (0, 2))
    assert len(here) == len(there)
    assert all(map(equal, here, there))


def test_samples_can_be_sent_to_spawned_workers(stream: Callable[..., BatchStream]) -> None:
    loader = stream(6)
    dataset, collate = pickle.loads(pickle.dumps((loader._dataset, loader._collate)))
    assert equal(collate([dataset[1]]), loader._collate([loader._dataset[1]]))


def test_windows_hold_the_counts_of_their_batches(stream: Callable[..., BatchStream]) -> None:
    batches = list(stream(22, batch_size=2, accumulate=3))
    assert [b.window_start for b in batches] == [True, False, False] * 3
    assert [b.window_end for b in batches] == [False, False, True] * 3
    for start in range(0, 9, 3):
        window = batches[start : start + 3]
        assert all(b.window == sum((c.counts for c in window), Counts()) for b in window)
        assert window[0].window.token > window[0].counts.token


def test_an_epoch_cut_short_ends_with_a_shorter_window(stream: Callable[..., BatchStream]) -> None:
    batches = list(stream(24, batch_size=2, accumulate=3, position=lambda: Position(0, 0, 5)))
    assert [b.window_end for b in batches] == [False, False, True, False, True]
    assert batches[3].window == batches[4].window == batches[3].counts + batches[4].counts


@pytest.mark.parametrize("train", [True, False])
def test_world_sizes_see_the_same_batches(stream: Callable[..., BatchStream], train: bool) -> None:
    def steps(world: int, batch_size: int, accumulate: int = 1) -> list[list[int]]:
        split = {"batch_size": batch_size, "world_size": world, "accumulate": accumulate, "train": train}
        ranks = [indices(stream(21, rank=rank, **split)) for rank in range(world)]
        assert len({len(rank) for rank in ranks}) == 1, "equally many batches on all ranks"
        micro = [flat(batches) for batches in zip(*ranks, strict=True)]
        return [flat(micro[i : i + accumulate]) for i in range(0, len(micro), accumulate)]

    whole = steps(1, 8)
    assert steps(2, 4) == steps(4, 2) == whole
    if train:
        assert steps(1, 4, 2) == steps(2, 2, 2) == whole


def test_evaluation_keeps_order_and_pads(stream: Callable[..., BatchStream]) -> None:
    loader = stream(9, batch_size=2, train=False, world_size=2, rank=1)
    assert indices(loader) == [[2, 3], [6, 7], [-1, -1]]
    assert len(loader) == 3
    null = list(loader)[-1]
    assert null.counts == Counts()
    assert null.image_sample.tolist() == [-1]


def test_a_restart_continues_exactly(stream: Callable[..., BatchStream]) -> None:
    for workers in (0, 2):
        for epoch in (0, 1):
            whole = list(stream(22, batch_size=2, accumulate=2, position=lambda epoch=epoch: Position(epoch)))
            rest = stream(22, batch_size=2, accumulate=2, num_workers=workers, position=lambda e=epoch: Position(e, 4))
            assert len(rest) == len(whole) == 10, "the length is that of a whole epoch"
            assert all(map(equal, rest, whole[4:]))
            assert len(list(rest)) == 6


def test_nothing_is_read_before_the_first_batch(stream: Callable[..., BatchStream]) -> None:
    asked: list[int] = []
    loader = stream(8, position=lambda: asked.append(1) or Position(0))
    iterator = iter(loader)
    assert not asked
    next(iterator)
    assert asked == [1]


def test_reading_leaves_the_random_state_alone(stream: Callable[..., BatchStream]) -> None:
    before = torch.get_rng_state()
    for workers in (0, 2):
        list(stream(8, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("seed", {"seed": 1}),
        ("records", {"n": 22}),
        ("batch_size x processes", {"batch_size": 2}),
        ("accumulate_grad_batches", {"accumulate": 2}),
    ],
)
def test_a_checkpoint_of_another_order_is_refused(
    stream: Callable[..., BatchStream], field: str, changes: dict[str, Any]
) -> None:
    state = stream().state_dict()
    stream().load_state_dict(state)
    stream(batch_size=2, world_size=2).load_state_dict(state)  # another split of the same batches
    with pytest.raises(UserError, match=f"'{field}' was"):
        stream(**changes).load_state_dict(state)
    with pytest.raises(UserError, match="'data' was 'other'"):
        stream().load_state_dict(state | {"data": "other"})


def test_too_few_records_for_a_step(stream: Callable[..., BatchStream]) -> None:
    with pytest.raises(UserError, match=r"has 7 samples, fewer than one optimizer step needs \(4 per batch x 1"):
        stream(7, accumulate=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_raises_the_same_error_from_any_worker(
    make_data: Callable[..., LLaVADataModule], write: Callable[..., Any], workers: int
) -> None:
    raws = [{"id": "bad", "image": "0.png", "conversations": [{"from": "human", "value": "q"}]}] * 4
    loader = make_data(train=write(raws), batch_size=4, num_workers=workers, on_error="raise").train_dataloader()
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    message = str(caught.value)
    assert message.startswith("Sample ")
    assert "(id 'bad')" in message
    assert "train.json: The final answer is missing" in message
    assert "Traceback" not in message


LEFT_OVER = """
import multiprocessing, subprocess, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import tiny
batches = iter(tiny.data_module(Path(sys.argv[1]), batch_size=4, num_workers=1).train_dataloader())
next(batches)
for name in ("TERM", "INT"):
    subprocess.run(["kill", f"-{name}", str(multiprocessing.active_children()[0].pid)], check=True)
seen = 1 + sum(1 for _, batch in zip(range(8), batches))
print(seen, len(multiprocessing.active_children()))
"""


def test_a_worker_obeys_the_run_alone(folder: Path) -> None:
    """A signal from elsewhere does not end it; the run's end does, even with batches left: nothing waits for it."""
    root = Path(__file__).parent.parent
    script = [sys.executable, "-c", LEFT_OVER, str(folder), str(root), str(root.parent)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["9", "1"], done.stderr
    assert done.returncode == 0


KILLED = """
import multiprocessing, os, signal, sys, time
sys.path[:0] = sys.argv[1:]
from torch.utils.data import Dataset
from lightning_switchkd.data.workers import prefetch
class Bytes(Dataset):
    def __getitem__(self, index):
        return bytes(10**6)
batches = prefetch(Bytes(), range(100), num_workers=2)
next(batches)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
time.sleep(1)  # the workers fill their pipe, which more than 64 KiB do
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers look at their run on Linux; elsewhere their pipe breaks")
def test_workers_of_a_killed_run_end_with_batches_that_nobody_takes() -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)], capture_output=True, text=True, timeout=60)
    workers = [Path("/proc") / pid / "stat" for pid in done.stdout.split()]
    assert len(workers) == 2, done.stderr
    deadline = time.monotonic() + 4 * PARENT_CHECK_SECONDS

    def living() -> list[Path]:
        return [stat for stat in workers if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"]

    while living() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living()
