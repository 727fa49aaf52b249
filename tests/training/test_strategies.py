"""One process, DDP and FSDP2 train alike: weights, losses and checkpoints are equal."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from command import ROOT, fit_arguments
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.training.callbacks import AnswerPanel, ExportStudent, ValGeneration
from lightning_switchkd.training.module import SwitchKD
from lightning_switchkd.training.strategies import FSDP2

STEPS = 20
SETUPS: dict[str, dict[str, Any]] = {
    "one": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "ddp": {"devices": 2, "strategy": "ddp"},
    "fsdp2": {"devices": 2},
    "fsdp2-whole-teacher": {"devices": 2},
}
SEED = 1
"""Seed of the data order: some ranks have batches without an image (test_module.py)."""


class Losses(L.Callback):
    """Keep the logged loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch.window_end:
            self.values.append(float(trainer.callback_metrics["train/loss"]))


def train(
    folder: Path, root: Path, setup: str, cls: type[SwitchKD] = tiny.PlainSGD, student: str = "student", **changes: Any
) -> tuple[SwitchKD, L.Trainer]:
    """Train with global batches of 8 samples in any setup."""
    settings = {"max_steps": STEPS, "log_every_n_steps": 1, **SETUPS[setup]}
    if setup.startswith("fsdp2"):
        settings["strategy"] = FSDP2(shard_teacher=setup == "fsdp2", process_group_backend="gloo")
    ckpt_path, dtype = changes.pop("ckpt_path", None), changes.pop("dtype", "float64")
    settings |= changes
    trainer = tiny.trainer(root, **settings)
    model = tiny.switch_kd(folder, cls=cls, student=student, dtype=dtype)
    data = tiny.data_module(folder, batch_size=8 if setup == "one" else 4, seed=SEED)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, trainer


def full_weights(trainer: L.Trainer) -> dict[str, Tensor]:
    """Return the student's gathered weights on rank 0, and {} elsewhere."""
    return {name: tensor.clone() for name, tensor in trainer.strategy.lightning_module_state_dict().items()}


def _parity(folder: Path, root: Path, setup: str, student: str) -> None:
    losses = Losses()
    callbacks = [losses, ValGeneration(5, 3, 2), AnswerPanel(2, 2), ExportStudent(f"exported-{setup}")]
    validation: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    validation["logger"] = L.pytorch.loggers.CSVLogger(str(root / setup))
    model, trainer = train(
        folder, root, setup, student=student, callbacks=callbacks, gradient_clip_val=0.5, **validation
    )
    weights = full_weights(trainer)
    teacher = list(model.distiller.frozen_teacher.parameters())
    if setup.startswith("fsdp2"):
        assert any(isinstance(p, DTensor) for p in teacher) == (setup == "fsdp2")
        assert any(isinstance(p, DTensor) for p in model.distiller.student.parameters())
    assert not {id(p) for p in teacher} & {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
    if trainer.is_global_zero:
        assert not [name for name in weights if "teacher" in name]
        answers = float(trainer.callback_metrics["val/exact_match"])
        torch.save({"weights": weights, "losses": losses.values, "answers": answers}, root / f"{setup}.pt")


def _parity_on(rank: int, folder: Path, root: Path, student: str) -> None:
    for setup in ("ddp", "fsdp2", "fsdp2-whole-teacher"):
        _parity(folder, root, setup, student)


@pytest.mark.parametrize("student", ["student", pytest.param("untied", marks=pytest.mark.slow)])
def test_every_setup_trains_alike(folder: Path, tmp_path: Path, student: str) -> None:
    """Covers tied and untied heads, clipping, generation during training, and batches without an image on one rank."""
    source = tiny.write_pair(tmp_path / "pair")
    tiny.save_vlm(source / "untied", seed=0, tied=False)
    for setup in ("one", "accumulated"):
        _parity(source, tmp_path, setup, student)
    tiny.on_two_ranks(_parity_on, source, tmp_path, student, seconds=400)
    results = {setup: torch.load(tmp_path / f"{setup}.pt") for setup in SETUPS}
    one = results["one"]
    assert max(float(x.abs().max()) for x in one["weights"].values()) > 0
    exported = {setup: tiny.load_weights(tmp_path / f"exported-{setup}") for setup in SETUPS}
    for setup in SETUPS:
        assert one["weights"].keys() == results[setup]["weights"].keys()
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(
                results[setup]["weights"][name], tensor, atol=1e-8, rtol=0, msg=f"{setup} {name}"
            )
        torch.testing.assert_close(results[setup]["losses"], one["losses"], atol=1e-8, rtol=0)
        assert results[setup]["answers"] == one["answers"]
        assert exported[setup].keys() == exported["one"].keys()
        for name, tensor in exported["one"].items():
            torch.testing.assert_close(exported[setup][name], tensor, atol=1e-6, rtol=0)


def _mixed_precision(folder: Path, root: Path, setup: str, steps: int = 5) -> None:
    _, trainer = train(folder, root, setup, dtype="float32", precision="bf16-mixed", max_steps=steps)
    weights = full_weights(trainer)
    if trainer.is_global_zero:
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        torch.save(weights, root / f"{setup}-{steps}.pt")


def _mixed_precision_on(rank: int, folder: Path, root: Path) -> None:
    for setup in ("ddp", "fsdp2"):
        _mixed_precision(folder, root, setup)


@pytest.mark.slow
def test_mixed_precision_in_every_setup(folder: Path, tmp_path: Path) -> None:
    """Half precision rounds differently if a batch is divided. FSDP2 is as close to one process as DDP."""
    for steps in (0, 5):
        _mixed_precision(folder, tmp_path, "one", steps)
    tiny.on_two_ranks(_mixed_precision_on, folder, tmp_path)
    start, one, *others = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "one-5", "ddp-5", "fsdp2-5"))

    def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return sum(float((a[name] - b[name]).square().sum()) for name in b) ** 0.5

    for other in others:
        assert distance(other, one) < 0.05 * distance(one, start)


def _save(folder: Path, root: Path, setup: str) -> None:
    checkpoint = ModelCheckpoint(root / f"of-{setup}", filename="{step}", every_n_train_steps=7, save_top_k=-1)
    _, trainer = train(folder, root, setup, SwitchKD, callbacks=[checkpoint], enable_checkpointing=True)
    weights = full_weights(trainer)
    if trainer.is_global_zero:
        torch.save(weights, root / f"{setup}.pt")


def _resume(folder: Path, root: Path, setup: str, of: str) -> None:
    path = str(root / f"of-{of}" / "step=7.ckpt")
    _, trainer = train(folder, root, setup, SwitchKD, ckpt_path=path)
    weights = full_weights(trainer)
    if trainer.is_global_zero:
        torch.save(weights, root / f"{of}-to-{setup}.pt")


RESUMABLE = ("one", "ddp", "fsdp2")


def _save_on(rank: int, folder: Path, root: Path) -> None:
    for setup in RESUMABLE[1:]:
        _save(folder, root, setup)
    for setup, of in itertools.product(RESUMABLE[1:], RESUMABLE):
        _resume(folder, root, setup, of)


@pytest.mark.slow
def test_every_setup_resumes_every_checkpoint(folder: Path, tmp_path: Path) -> None:
    """A resumed run ends like the uninterrupted one, including AdamW's running averages."""
    _save(folder, tmp_path, "one")
    tiny.on_two_ranks(_save_on, folder, tmp_path, seconds=400)
    for of in RESUMABLE:
        _resume(folder, tmp_path, "one", of)
    one = torch.load(tmp_path / "one.pt")
    for setup in RESUMABLE:
        checkpoint = torch.load(tmp_path / f"of-{setup}" / "step=7.ckpt", weights_only=True)
        assert checkpoint["state_dict"].keys() == one.keys()
        assert not [name for name in checkpoint["state_dict"] if "teacher" in name]
    for of, setup in itertools.product(RESUMABLE, RESUMABLE):
        for name, tensor in torch.load(tmp_path / f"{of}-to-{setup}.pt").items():
            torch.testing.assert_close(tensor, one[name], atol=1e-8, rtol=0, msg=f"{of} to {setup}: {name}")


def _foreign_on(rank: int, folder: Path, root: Path) -> None:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    with pytest.raises(UserError, match="Use TRAINER=fsdp2"):
        tiny.trainer(root, devices=2, strategy=strategy).fit(
            tiny.switch_kd(folder), datamodule=tiny.data_module(folder, batch_size=4)
        )


@pytest.mark.slow
def test_other_sharding_is_refused(folder: Path, tmp_path: Path) -> None:
    tiny.on_two_ranks(_foreign_on, folder, tmp_path)


@pytest.mark.slow
def test_a_run_exits_cleanly_while_gloo_releases_tensors(folder: Path, tmp_path: Path) -> None:
    flags = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks+=command.LateCollective")
    command = [sys.executable, "-m", "lightning_switchkd", *fit_arguments(folder, tmp_path / "run", *flags)]
    port, paths = tiny.free_port(), {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **paths, **tiny.rank_environment(rank, 2, port)})
        for rank in range(2)
    ]
    assert [rank.wait(180) for rank in ranks] == [0, 0]
    assert (tmp_path / "run" / "student" / "config.json").exists()
