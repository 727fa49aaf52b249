"""Killed at random moments, in steps, in validation and in the middle of a checkpoint, and started again each time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from command import fit_arguments

KILLS = {1: 20, 2: 8}
"""At least so many, by number of processes."""

CONTEXT = multiprocessing.get_context("forkserver")


def _live(arguments: list[str], rank: int, ranks: int, port: int, log: str) -> None:
    with open(log, "ab", buffering=0) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks), NODE_RANK="0", LOCAL_RANK=str(rank)
        )
    from lightning_switchkd.cli import main

    main(arguments)


def live(arguments: list[str], ranks: int, log: Path) -> list[int | None]:
    """Runs until the end, or until a process dies; the others are given time to notice. Exit codes by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [CONTEXT.Process(target=_live, args=(arguments, r, ranks, port, f"{log}.{r}")) for r in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a rank waits for a dead one"
    return [process.exitcode for process in processes]


def records(seen: str, rank: int) -> dict[int, str]:
    """What each step saw; of a step that was done again, the last time."""
    lines = Path(f"{seen}.{rank}").read_text(encoding="utf-8").splitlines()
    return {int(step): ids for step, _, ids in (line.partition(" ") for line in lines)}


def same(ours: Any, theirs: Any, where: str = "") -> None:
    """Bit for bit."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in theirs.items():
            same(ours[key], value, f"{where}.{key}")
    elif isinstance(theirs, list):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{where}[{i}]")
    else:
        equal = torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
        assert equal, where


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(folder: Path, tmp_path: Path, ranks: int) -> None:
    CONTEXT.set_forkserver_preload(["lightning_switchkd.cli", "command"])

    def arguments(name: str, moments: int, rank: int) -> list[str]:
        path = "--trainer.callbacks.init_args"
        killer = (f"{path}.moments={moments}", f"{path}.rank={rank}", f"{path}.seen={tmp_path / name}.seen")
        strategy = ("--trainer.strategy=ddp", f"--trainer.devices={ranks}") if ranks > 1 else ()
        return fit_arguments(
            folder,
            tmp_path / name,
            *strategy,
            "--trainer.max_steps=60",
            "--trainer.accumulate_grad_batches=2",
            "--trainer.val_check_interval=10",
            "--trainer.check_val_every_n_epoch=null",
            "--checkpoint.every_n_train_steps=3",
            "--panel.records=0",
            "--greedy.records=4",
            "--data.batch_size=2",
            "--data.val_batch_size=16",
            "--trainer.callbacks+=command.Killer",
            *killer,
            "--ckpt_path=last",
        )

    assert live(arguments("straight", 0, 0), ranks, tmp_path / "straight.log") == [0] * ranks
    chance, kills, codes = random.Random(ranks), 0, [1]
    while any(codes):
        moments = chance.randrange(5, 60) if kills < KILLS[ranks] else 0
        codes = live(arguments("killed", moments, chance.randrange(ranks)), ranks, tmp_path / "killed.log")
        kills += -signal.SIGKILL in codes
        assert kills < 200, "no step forward"
        assert not any(codes) or -signal.SIGKILL in codes, (tmp_path / "killed.log.0").read_text()[-3000:]
    assert kills >= KILLS[ranks], "it ended before it was killed often enough"
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("killed", "straight")
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        same(ours[part], theirs[part], part)
    for rank in range(ranks):
        assert records(f"{tmp_path / 'killed'}.seen", rank) == records(f"{tmp_path / 'straight'}.seen", rank)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*.part"))
