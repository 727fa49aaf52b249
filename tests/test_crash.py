"""Killed at random moments, in steps, in validation and in the middle of a checkpoint, and started again each time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from command import ROOT, fit_arguments

KILLS = {1: 20, 2: 20}
"""At least so many, by number of processes."""

CONTEXT = multiprocessing.get_context("forkserver")


def _live(arguments: list[str], rank: int, ranks: int, port: int, log: str) -> None:
    with open(log, "ab", buffering=0) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(tiny.rank_environment(rank, ranks, port))
    from lightning_switchkd.cli.main import main

    main(arguments)


def live(arguments: list[str], ranks: int, log: Path) -> list[int | None]:
    """Runs until the end, or until a process dies; the others are given time to notice. Exit codes by rank."""
    port = tiny.free_port()
    processes = [CONTEXT.Process(target=_live, args=(arguments, r, ranks, port, f"{log}.{r}")) for r in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a rank waits for a dead one"
    return [process.exitcode for process in processes]


def records(seen: str, rank: int) -> dict[str, set[str]]:
    """What each micro-batch held, every time that it was there."""
    found: dict[str, set[str]] = {}
    for line in Path(f"{seen}.{rank}").read_text(encoding="utf-8").splitlines():
        step, _, ids = line.partition(" ")
        found.setdefault(step, set()).add(ids)
    return found


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


def arguments(
    folder: Path, run: Path, moments: int, rank: int, strategy: tuple[str, ...] = (), steps: int = 60
) -> list[str]:
    """A run with a :class:`command.Killer`, that goes on where there is a checkpoint."""
    killer = "--trainer.callbacks.init_args"
    return fit_arguments(
        folder,
        run,
        *strategy,
        f"--trainer.max_steps={steps}",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.val_check_interval=10",
        "--trainer.check_val_every_n_epoch=null",
        "--checkpoint.every_n_train_steps=3",
        "--answer_panel.num_samples=0",
        "--val_generation.num_samples=4",
        "--data.batch_size=2",
        "--data.val_batch_size=16",
        "--trainer.callbacks+=command.Killer",
        f"{killer}.moments={moments}",
        f"{killer}.rank={rank}",
        f"{killer}.seen={run}.seen",
        "--ckpt_path=last",
    )


def compare(killed: Path, straight: Path, ranks: int) -> None:
    """All that a checkpoint holds, and what every step saw on every rank."""
    ours, theirs = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (killed, straight))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        same(ours[part], theirs[part], part)
    for rank in range(ranks):
        wanted = records(f"{straight}.seen", rank)
        assert all(len(ids) == 1 for ids in wanted.values())
        assert records(f"{killed}.seen", rank) == wanted
    assert not list((killed / "checkpoints").glob(".*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(folder: Path, tmp_path: Path, ranks: int) -> None:
    CONTEXT.set_forkserver_preload(["lightning_switchkd.cli.main", "command"])

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    strategy = ("--trainer.strategy=ddp", f"--trainer.devices={ranks}") if ranks > 1 else ()
    assert live(arguments(folder, straight, 0, 0, strategy), ranks, tmp_path / "straight.log") == [0] * ranks
    chance, kills, codes = random.Random(ranks), 0, list[int | None]([1])
    while any(codes):
        moments = chance.randrange(5, 60) if kills < KILLS[ranks] else 0
        again = arguments(folder, killed, moments, chance.randrange(ranks), strategy)
        codes = live(again, ranks, tmp_path / "killed.log")
        kills += -signal.SIGKILL in codes
        assert kills < 200, "no step forward"
        assert not any(codes) or -signal.SIGKILL in codes, (tmp_path / "killed.log.0").read_text()[-3000:]
    assert kills >= KILLS[ranks], "it ended before it was killed often enough"
    compare(killed, straight, ranks)


@pytest.mark.slow
def test_torchrun_starts_again_after_a_rank_has_died(folder: Path, tmp_path: Path) -> None:
    """conf/cluster/torchrun.sh, on two CPU processes."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    strategy = ("--trainer.strategy=ddp",)
    both = (*strategy, "--trainer.devices=2")
    assert live(arguments(folder, straight, 0, 0, both, steps=20), 2, tmp_path / "straight.log") == [0, 0]
    environment = {**os.environ, "GPUS": "2", "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "conf" / "cluster" / "torchrun.sh"), *arguments(folder, killed, 70, 1, strategy, steps=20)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-3000:]
    assert "Going on from" in said.stdout + said.stderr
    compare(killed, straight, 2)
