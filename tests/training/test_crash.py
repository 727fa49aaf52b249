"""Kill a run at random moments (steps, validation, checkpoint writes), and resume it each time."""

from __future__ import annotations

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

KILLS = 10
"""Minimum number of kills."""


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
    """Run until the end or until a process dies, and wait for the other ranks. Return exit codes by rank."""
    context, port = tiny.fork_server(), tiny.free_port()
    processes = [context.Process(target=_live, args=(arguments, r, ranks, port, f"{log}.{r}")) for r in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a rank waits for a dead rank"
    return [process.exitcode for process in processes]


def samples_by_step(seen: str, rank: int) -> dict[str, set[str]]:
    """Return the sample ids of each micro-batch, one entry for each version of it."""
    samples: dict[str, set[str]] = {}
    for line in Path(f"{seen}.{rank}").read_text(encoding="utf-8").splitlines():
        step, _, ids = line.partition(" ")
        samples.setdefault(step, set()).add(ids)
    return samples


def same(ours: Any, theirs: Any, where: str = "") -> None:
    """Assert equality, bit for bit."""
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
    """Return the arguments of a run with a :class:`command.Killer` that resumes from its last checkpoint."""
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


def compare(killed: Path, uninterrupted: Path, ranks: int) -> None:
    """Compare the last checkpoints, and the samples of every step on every rank."""
    ours, theirs = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (killed, uninterrupted))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        same(ours[part], theirs[part], part)
    for rank in range(ranks):
        expected = samples_by_step(f"{uninterrupted}.seen", rank)
        assert all(len(ids) == 1 for ids in expected.values())
        assert samples_by_step(f"{killed}.seen", rank) == expected
    assert not list((killed / "checkpoints").glob(".*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_repeated_kills_do_not_change_the_result(folder: Path, tmp_path: Path, ranks: int) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    strategy = ("--trainer.strategy=ddp", f"--trainer.devices={ranks}") if ranks > 1 else ()
    assert live(arguments(folder, uninterrupted, 0, 0, strategy), ranks, tmp_path / "uninterrupted.log") == [0] * ranks
    chance, kills, codes = random.Random(ranks), 0, list[int | None]([1])
    while any(codes):
        moments = chance.randrange(5, 60) if kills < KILLS else 0
        command = arguments(folder, killed, moments, chance.randrange(ranks), strategy)
        codes = live(command, ranks, tmp_path / "killed.log")
        kills += -signal.SIGKILL in codes
        assert kills < 200, "the run makes no progress"
        assert not any(codes) or -signal.SIGKILL in codes, (tmp_path / "killed.log.0").read_text()[-3000:]
    assert kills >= KILLS, "the run ended before enough kills"
    compare(killed, uninterrupted, ranks)


@pytest.mark.slow
def test_torchrun_restarts_after_a_rank_dies(folder: Path, tmp_path: Path) -> None:
    """Run docs/how-to/cluster/torchrun.sh on two CPU processes."""
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    strategy = ("--trainer.strategy=ddp",)
    both = (*strategy, "--trainer.devices=2")
    assert live(arguments(folder, uninterrupted, 0, 0, both, steps=20), 2, tmp_path / "uninterrupted.log") == [0, 0]
    environment = {**os.environ, "GPUS": "2", "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    script = ROOT / "docs" / "how-to" / "cluster" / "torchrun.sh"
    command = [str(script), *arguments(folder, killed, 70, 1, strategy, steps=20)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Resuming from" in result.stdout + result.stderr
    compare(killed, uninterrupted, 2)
