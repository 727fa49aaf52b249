"""Case 10: a run that is killed in every epoch, and continued each time, trains on what it would have, byte by byte."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from campaign import ACCUMULATE, EPOCHS, Job, Kill, Sequence, run, workers_left

from lightning_switchkd.data import DataPaths
from lightning_switchkd.data import repack as repacking
from lightning_switchkd.data.repack import repack

KINDS = ("json", "jsonl", "parquet", "tar", "mixture")
CASES = [(*one, one[-1]) for one in product(KINDS, (0, 2, 4), (1, 2))] + [(kind, 2, 2, 1) for kind in KINDS]
"""Source, workers, ranks before the last kill, ranks after it."""

CHECKPOINTS = 2 * 2 * ACCUMULATE
"""Micro-batches from one to the one after the next: a run may be killed as it writes one."""

Straight = Callable[[str], tuple[Sequence, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def sources(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[DataPaths]]:
    """The 48 records in every format; mixed, an epoch takes half of the ones and all of the others."""
    root, images = tmp_path_factory.mktemp("formats"), str(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repacking, "ROW_GROUP", 6)
        for kind in KINDS[1:4]:
            repack(str(folder / "records.json"), str(root / f"data.{kind}"), images, samples_per_shard=12)
    made = {
        "json": [DataPaths(str(folder / "records.json"), images)],
        "jsonl": [DataPaths(str(root / "data.jsonl"), images)],
        "parquet": [DataPaths(str(root / "*.parquet"))],
        "tar": [DataPaths(str(root / "*.tar"))],
    }
    return {**made, "mixture": [replace(made["json"][0], weight=0.5), made["parquet"][0], made["tar"][0]]}


@pytest.fixture(scope="module")
def straight(folder: Path, sources: dict[str, list[DataPaths]], tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The uninterrupted run on a source, in one process without workers: what it trained on, and its last weights."""
    done: dict[str, tuple[Sequence, dict[str, torch.Tensor]]] = {}

    def of(kind: str) -> tuple[Sequence, dict[str, torch.Tensor]]:
        if kind not in done:
            job = Job(folder, tmp_path_factory.mktemp("straight"), sources[kind])
            done[kind] = run(job), weights(job)
        return done[kind]

    return of


def weights(job: Job) -> dict[str, torch.Tensor]:
    return dict(torch.load(job.last, weights_only=True)["state_dict"])


def name(case: tuple[str, int, int, int]) -> str:
    kind, workers, ranks, later = case
    return f"{kind}-{workers}workers-{ranks}ranks" + (f"-then{later}" if later != ranks else "")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=name)
def test_case_10_killed_in_every_epoch(
    folder: Path,
    sources: dict[str, list[DataPaths]],
    straight: Straight,
    tmp_path: Path,
    case: tuple[str, int, int, int],
) -> None:
    kind, workers, ranks, later = case
    wanted, final = straight(kind)
    chance = random.Random(name(case))
    per_epoch = len(wanted) // EPOCHS
    job = Job(folder, tmp_path, sources[kind], workers, ranks)
    begun = reached = 0
    for epoch in range(EPOCHS):
        batch = max(begun, epoch * per_epoch) + chance.randrange(per_epoch - 3)
        moment = chance.choice(("before", "after", "saving"))
        kill = Kill(batch, 0 if moment == "saving" else chance.randrange(job.ranks), moment)
        seen = run(replace(job, kill=kill, life=epoch))
        begun = wanted.index(seen[0])
        assert seen == wanted[begun : begun + len(seen)], f"life {epoch}, {kill}"
        assert begun <= reached <= begun + CHECKPOINTS, "no more is done again than since the last checkpoint"
        reached = begun + len(seen)
        job = replace(job, ranks=later if epoch == 1 else job.ranks)
    rest = run(replace(job, life=EPOCHS))
    assert rest == wanted[-len(rest) :]
    assert 0 <= len(rest) - (len(wanted) - reached) <= CHECKPOINTS
    for parameter, tensor in weights(job).items():
        torch.testing.assert_close(tensor, final[parameter], rtol=0, atol=0 if ranks == 1 else 1e-9)
    deadline = time.monotonic() + 20  # a worker looks every five seconds whether its run lives
    while workers_left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers_left(tmp_path)
