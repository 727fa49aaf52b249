"""A run that is interrupted and resumed equals an uninterrupted run: weights, logs, files."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from command import fit_arguments, signalled

from lightning_switchkd.cli.main import main

SETTINGS = [
    "--trainer.max_steps=9",
    "--trainer.val_check_interval=6",  # micro-batches, so every third step
    "--trainer.log_every_n_steps=2",
    "--trainer.accumulate_grad_batches=2",
    "--data.batch_size=4",
    "--data.num_workers=1",
    "--checkpoint.every_n_train_steps=4",
    "--vision_gradients.split_every_n_steps=3",
    "--val_generation.max_new_tokens=2",
    "--answer_panel.num_samples=0",
]
MEASURED = "throughput/"


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of nine steps. 48 samples give six steps an epoch."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    main(fit_arguments(folder, run, *SETTINGS))
    return run


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.csv without measured times."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        kept = [{k: v for k, v in row.items() if v and not k.startswith(MEASURED)} for row in csv.DictReader(file)]
    return [row for row in kept if row.keys() - {"step", "epoch"}]


def assert_equal_rows(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Assert equality, bit for bit, and name the cells that differ."""
    assert [(r["step"], sorted(r)) for r in ours] == [(r["step"], sorted(r)) for r in theirs]
    differing = [(a["step"], k, a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in a if a[k] != b[k]]
    assert not differing


MOMENTS = [
    pytest.param("on_train_batch_start", 2, signal.SIGINT, marks=pytest.mark.slow),
    ("on_train_batch_end", 3, signal.SIGTERM),  # a validation is due
    ("on_validation_batch_end", 3, signal.SIGINT),
    pytest.param("on_train_batch_end", 6, signal.SIGINT, marks=pytest.mark.slow),  # the end of an epoch
    # a checkpoint and a log line are due
    pytest.param("on_train_batch_end", 4, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("on_train_batch_start", 7, signal.SIGTERM, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("hook", "step", "signum"), MOMENTS)
def test_resume_equals_the_uninterrupted_run(
    folder: Path,
    uninterrupted: Path,
    tmp_path: Path,
    hook: str,
    step: int,
    signum: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    arguments = fit_arguments(folder, run, *SETTINGS)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *signalled(hook, step, signum)])
    assert stop.value.code == 128 + signum
    stderr = capfd.readouterr().err
    assert "Finishing this step" in stderr
    assert f"saved in {run / 'checkpoints' / 'last.ckpt'}" in stderr
    assert "--ckpt_path=last. `make` resumes by itself." in stderr
    assert not (run / "student").exists()
    assert 0 < torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] < 9
    main([*arguments, "--ckpt_path=last"])
    theirs, ours = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (uninterrupted, run))
    assert theirs["global_step"] == ours["global_step"]
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(tensor, ours["state_dict"][name]), name
    assert (run / "student" / "config.json").is_file()
    assert_equal_rows(rows(run), rows(uninterrupted))


def test_last_starts_from_scratch_without_a_checkpoint(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--ckpt_path=last trains in a fresh folder, and changes nothing in the folder of a finished run."""
    arguments = fit_arguments(folder, tmp_path / "run", "--ckpt_path=last", "--answer_panel.num_samples=0")
    main(arguments)
    assert "starting from scratch" in capsys.readouterr().out
    before = rows(tmp_path / "run")
    main(arguments)
    assert "Resuming from" in capsys.readouterr().out
    assert rows(tmp_path / "run") == before
    assert (tmp_path / "run" / "student" / "config.json").is_file()


def test_a_new_run_archives_the_earlier_one(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every earlier run is kept. A start that fails changes nothing."""
    run = tmp_path / "run"
    arguments = fit_arguments(folder, run, "--trainer.max_steps=1", "--answer_panel.num_samples=0")
    main(arguments)
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    before = sorted(path for path in run.rglob("*"))
    for mistake in ("--model.teacher.checkpoint=./nowhere", "--data.batch_size=100", "--model.freeze=[vision]"):
        with pytest.raises(SystemExit):
            main([*arguments, mistake])
        assert sorted(path for path in run.rglob("*")) == before, mistake
    main(arguments)
    main(arguments)
    assert (run / "previous" / "1" / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in (run / "previous").iterdir()) == ["1", "2"]
    for number in ("1", "2"):
        assert (run / "previous" / number / "student" / "config.json").is_file()
    assert (run / "metrics.csv").is_file()
    assert "Moved the earlier run" in capsys.readouterr().out


def two_processes(folder: Path, run: Path) -> list[str]:
    """Return arguments for the same global batches on two ranks of DDP."""
    strategy = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=2", "--answer_panel.num_samples=2"]
    return fit_arguments(folder, run, *[s for s in SETTINGS if "panel" not in s], *strategy)


def rank(rank: int, folder: Path, root: Path) -> None:
    """Run without interruption. Then interrupt a run by a signal to the second rank only, and resume it."""
    main(two_processes(folder, root / "uninterrupted"))
    with pytest.raises(SystemExit) as stop:
        main(
            [
                *two_processes(folder, root / "interrupted"),
                *(signalled("on_train_batch_start", 3) if rank else NO_SIGNAL),
            ]
        )
    assert stop.value.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    main([*two_processes(folder, root / "interrupted"), "--ckpt_path=last"])


NO_SIGNAL = signalled("on_train_batch_start", -1)


@pytest.mark.slow
def test_two_processes_stop_together_and_continue(folder: Path, tmp_path: Path) -> None:
    tiny.on_two_ranks(rank, folder, tmp_path, seconds=300)
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    theirs, ours = (
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (uninterrupted, interrupted)
    )
    assert ours["global_step"] == theirs["global_step"]
    for name, tensor in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], tensor, atol=1e-6, rtol=0)
    assert [(row["step"], sorted(row)) for row in rows(interrupted)] == [
        (row["step"], sorted(row)) for row in rows(uninterrupted)
    ]
    for ours_, theirs_ in zip(rows(interrupted), rows(uninterrupted), strict=True):
        for name, value in theirs_.items():
            assert float(ours_[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), (ours_["step"], name)


def test_last_stays_in_its_folder_if_best_has_another(folder: Path, tmp_path: Path) -> None:
    elsewhere = f"--trainer.callbacks.init_args.dirpath={tmp_path / 'elsewhere'}"
    arguments = fit_arguments(
        folder, tmp_path / "run", elsewhere, "--answer_panel.num_samples=0", extra=("overlay/best",)
    )
    with pytest.raises(SystemExit):
        main([*arguments, *signalled("on_train_batch_start", 1)])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_killed_between_checkpoints(folder: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Steps after the checkpoint are logged once."""
    run = tmp_path / "run"
    arguments = fit_arguments(folder, run, *SETTINGS)

    with pytest.raises(RuntimeError, match="killed"):
        main([*arguments, "--trainer.callbacks+=command.Die"])
    main([*arguments, "--ckpt_path=last"])
    assert_equal_rows(rows(run), rows(uninterrupted))
