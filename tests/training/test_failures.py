"""Failures of cluster runs: non-finite gradients, full disks, damaged checkpoints, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from command import fit_arguments

from lightning_switchkd.cli.main import main
from lightning_switchkd.training.callbacks import SkipNonfinite
from lightning_switchkd.training.strategies import FSDP2


class Poison(L.Callback):
    """Set a gradient to NaN on one rank in some steps, as a bad sample does. Keep the weights before each step."""

    def __init__(self, steps: tuple[int, ...], rank: int = 0) -> None:
        self.steps, self.rank = steps, rank
        self.weights: dict[int, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        head = pl_module.distiller.student.head.weight
        local = head.to_local() if hasattr(head, "to_local") else head
        self.weights[trainer.global_step] = local.detach().clone()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step in self.steps and trainer.global_rank == self.rank:
            for p in pl_module.distiller.student.parameters():
                if p.grad is not None:
                    (p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad).fill_(float("nan"))


def _poisoned(folder: Path, root: Path, poison: Poison, **settings: Any) -> SkipNonfinite:
    guard = SkipNonfinite(limit=2)
    trainer = tiny.trainer(root, callbacks=[poison, guard], max_steps=6, gradient_clip_val=1.0, **settings)
    trainer.fit(tiny.switch_kd(folder), datamodule=tiny.data_module(folder, batch_size=4))
    return guard


def test_a_nonfinite_step_is_skipped_and_logged(folder: Path, tmp_path: Path) -> None:
    poison = Poison((2, 4))
    guard = _poisoned(folder, tmp_path, poison, accumulate_grad_batches=2)
    assert guard.skipped_steps == 2
    for step in (0, 1, 2, 3, 4):
        assert torch.equal(poison.weights[step], poison.weights[step + 1]) == (step in poison.steps), step
    lines = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert [len(batch["records"]) for line in lines for batch in line["batches"]] == [4] * 4
    with pytest.raises(ValueError, match=r"3 optimizer steps .* more than skip_nonfinite.limit \(2\)"):
        _poisoned(folder, tmp_path, Poison((1, 2, 3)))


def _poison_one(rank: int, folder: Path, root: Path) -> None:
    for strategy in ("ddp", FSDP2(process_group_backend="gloo")):
        poison = Poison((2,), rank=1)
        assert _poisoned(folder, root, poison, devices=2, strategy=strategy).skipped_steps == 1
        for step in (0, 1, 2, 3):
            assert torch.equal(poison.weights[step], poison.weights[step + 1]) == (step == 2), step


def test_all_ranks_skip_the_same_step(folder: Path, tmp_path: Path) -> None:
    tiny.on_two_ranks(_poison_one, folder, tmp_path)


def test_a_damaged_checkpoint_is_reported_with_the_previous_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(fit_arguments(folder, run, "--checkpoint.every_n_train_steps=1"))
    kept = sorted((run / "checkpoints").glob("step*.ckpt"))
    assert [file.name for file in kept] == ["step000003.ckpt", "step000004.ckpt"]
    kept[1].write_bytes(kept[1].read_bytes()[:-2000])
    arguments = fit_arguments(folder, run, "--trainer.max_steps=6")
    with pytest.raises(SystemExit):
        main([*arguments, "--ckpt_path=last"])
    stderr = capsys.readouterr().err
    assert "cannot be read as a checkpoint" in stderr
    assert f"--ckpt_path={kept[0]}" in stderr
    main([*arguments, f"--ckpt_path={kept[0]}"])


def test_last_is_the_newest_if_its_link_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(fit_arguments(folder, run, "--checkpoint.every_n_train_steps=1"))
    (run / "checkpoints" / "last.ckpt").unlink()
    main(fit_arguments(folder, run, "--trainer.max_steps=5", "--ckpt_path=last"))
    assert f"Resuming from {run}/checkpoints/step000004.ckpt" in capsys.readouterr().out
    assert not (run / "previous").exists()


def test_a_full_disk(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One checkpoint fits on the disk. The second does not, and the first stays complete."""
    run = tmp_path / "run"
    main(fit_arguments(folder, run, "--checkpoint.every_n_train_steps=4"))
    size = (run / "checkpoints" / "step000004.ckpt").stat().st_size
    with tiny.small_disk(int(1.5 * size)) as disk:
        arguments = fit_arguments(
            folder, tmp_path / "full", "--checkpoint.every_n_train_steps=1", f"--checkpoint.dirpath={disk}"
        )
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        stderr = capsys.readouterr().err
        assert "step000002.ckpt: [Errno 28] No space left on device" in stderr
        assert "The newest complete checkpoint is" in stderr
        assert sorted(file.name for file in Path(disk).iterdir()) == ["last.ckpt", "step000001.ckpt"]
        main([*arguments, f"--ckpt_path={disk}/last.ckpt", f"--checkpoint.dirpath={tmp_path}"])


@pytest.mark.parametrize(
    ("of", "where", "wanted"),
    [
        (
            "lightning_switchkd.models.adapter.VLMAdapter.decode",
            "a language model, in the student pathway",
            "data.batch_size",
        ),
        ("lightning_switchkd.models.head.Head.exactly", "the output heads and losses", "model.logits_gib"),
    ],
)
def test_out_of_memory_names_the_place_and_the_settings(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    of: str,
    where: str,
    wanted: str,
) -> None:
    """An allocation that is too large for every machine raises PyTorch's own error."""

    def too_large(*_: Any) -> torch.Tensor:
        return torch.empty(2**50)

    too_large.__code__ = too_large.__code__.replace(co_name=of.rpartition(".")[2])
    monkeypatch.setattr(of, too_large)
    with pytest.raises(SystemExit) as stop:
        main(fit_arguments(folder, tmp_path / "run"))
    assert stop.value.code == 2
    stderr = capsys.readouterr().err
    assert f"Out of memory: {where}" in stderr
    assert "requested 4503599627370496 bytes more than available" in stderr
    assert wanted in stderr
