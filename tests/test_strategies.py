"""One process, DDP and FSDP2 are the same training: weights, losses and checkpoints."""

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
WAYS: dict[str, dict[str, Any]] = {
    "one": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "ddp": {"devices": 2, "strategy": "ddp"},
    "fsdp2": {"devices": 2},
    "fsdp2-whole-teacher": {"devices": 2},
}
SEED = 1
"""Of the data's order: some ranks have batches without an image (test_training.py)."""


class Losses(L.Callback):
    """Keeps what is logged of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch.window_end:
            self.seen.append(float(trainer.callback_metrics["train/loss"]))


def train(
    folder: Path, root: Path, way: str, cls: type[SwitchKD] = tiny.PlainSGD, student: str = "student", **changes: Any
) -> tuple[SwitchKD, L.Trainer]:
    """Global batches of 8 records, whatever the way."""
    settings = {"max_steps": STEPS, "log_every_n_steps": 1, **WAYS[way]}
    if way.startswith("fsdp2"):
        settings["strategy"] = FSDP2(shard_teacher=way == "fsdp2", process_group_backend="gloo")
    ckpt_path, dtype = changes.pop("ckpt_path", None), changes.pop("dtype", "float64")
    settings |= changes
    trainer = tiny.trainer(root, **settings)
    model = tiny.switch_kd(folder, cls=cls, student=student, dtype=dtype)
    data = tiny.data_module(folder, batch_size=8 if way == "one" else 4, seed=SEED)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, trainer


def whole(trainer: L.Trainer) -> dict[str, Tensor]:
    """The student's weights, gathered; {} on all but the first rank."""
    return {name: tensor.clone() for name, tensor in trainer.strategy.lightning_module_state_dict().items()}


def _parity(folder: Path, root: Path, way: str, student: str) -> None:
    losses = Losses()
    callbacks = [losses, ValGeneration(5, 3, 2), AnswerPanel(2, 2), ExportStudent(f"exported-{way}")]
    asked = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    asked["logger"] = L.pytorch.loggers.CSVLogger(str(root / way))
    model, trainer = train(folder, root, way, student=student, callbacks=callbacks, gradient_clip_val=0.5, **asked)
    weights = whole(trainer)
    teacher = list(model.distiller.frozen_teacher.parameters())
    if way.startswith("fsdp2"):
        assert any(isinstance(p, DTensor) for p in teacher) == (way == "fsdp2")
        assert any(isinstance(p, DTensor) for p in model.distiller.student.parameters())
    assert not {id(p) for p in teacher} & {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
    if trainer.is_global_zero:
        assert not [name for name in weights if "teacher" in name]
        answers = float(trainer.callback_metrics["val/exact_match"])
        torch.save({"weights": weights, "losses": losses.seen, "answers": answers}, root / f"{way}.pt")


def _parity_on(rank: int, folder: Path, root: Path, student: str) -> None:
    for way in ("ddp", "fsdp2", "fsdp2-whole-teacher"):
        _parity(folder, root, way, student)


@pytest.mark.parametrize("student", ["student", "untied"])
def test_the_same_training_in_every_way(folder: Path, tmp_path: Path, student: str) -> None:
    """With tied and untied heads, clipping, answers asked in between, batches without an image on one rank."""
    source = tiny.write_pair(tmp_path / "pair")
    tiny.save_vlm(source / "untied", seed=0, tied=False)
    for way in ("one", "accumulated"):
        _parity(source, tmp_path, way, student)
    tiny.on_two_ranks(_parity_on, source, tmp_path, student, seconds=400)
    found = {way: torch.load(tmp_path / f"{way}.pt") for way in WAYS}
    one = found["one"]
    assert max(float(x.abs().max()) for x in one["weights"].values()) > 0
    exported = {way: tiny.load_weights(tmp_path / f"exported-{way}") for way in WAYS}
    for way in WAYS:
        assert one["weights"].keys() == found[way]["weights"].keys()
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(found[way]["weights"][name], tensor, atol=1e-8, rtol=0, msg=f"{way} {name}")
        torch.testing.assert_close(found[way]["losses"], one["losses"], atol=1e-8, rtol=0)
        assert found[way]["answers"] == one["answers"]
        assert exported[way].keys() == exported["one"].keys()
        for name, tensor in exported["one"].items():
            torch.testing.assert_close(exported[way][name], tensor, atol=1e-6, rtol=0)


def _half(folder: Path, root: Path, way: str, steps: int = 5) -> None:
    _, trainer = train(folder, root, way, dtype="float32", precision="bf16-mixed", max_steps=steps)
    weights = whole(trainer)
    if trainer.is_global_zero:
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        torch.save(weights, root / f"{way}-{steps}.pt")


def _half_on(rank: int, folder: Path, root: Path) -> None:
    for way in ("ddp", "fsdp2"):
        _half(folder, root, way)


@pytest.mark.slow
def test_mixed_precision_in_every_way(folder: Path, tmp_path: Path) -> None:
    """Half precision rounds otherwise where a batch is divided: FSDP2 is as near to one process as DDP."""
    for steps in (0, 5):
        _half(folder, tmp_path, "one", steps)
    tiny.on_two_ranks(_half_on, folder, tmp_path)
    start, one, *others = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "one-5", "ddp-5", "fsdp2-5"))

    def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
        return sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs) ** 0.5

    for other in others:
        assert apart(other, one) < 0.05 * apart(one, start)


def _save(folder: Path, root: Path, way: str) -> None:
    keep = ModelCheckpoint(root / f"of-{way}", filename="{step}", every_n_train_steps=7, save_top_k=-1)
    _, trainer = train(folder, root, way, SwitchKD, callbacks=[keep], enable_checkpointing=True)
    weights = whole(trainer)
    if trainer.is_global_zero:
        torch.save(weights, root / f"{way}.pt")


def _resume(folder: Path, root: Path, way: str, of: str) -> None:
    path = str(root / f"of-{of}" / "step=7.ckpt")
    _, trainer = train(folder, root, way, SwitchKD, ckpt_path=path)
    weights = whole(trainer)
    if trainer.is_global_zero:
        torch.save(weights, root / f"{of}-to-{way}.pt")


RESUMED = ("one", "ddp", "fsdp2")


def _save_on(rank: int, folder: Path, root: Path) -> None:
    for way in RESUMED[1:]:
        _save(folder, root, way)
    for way, of in itertools.product(RESUMED[1:], RESUMED):
        _resume(folder, root, way, of)


def test_a_checkpoint_of_any_resumes_in_any(folder: Path, tmp_path: Path) -> None:
    """AdamW's averages and all: the end is that of the uninterrupted run."""
    _save(folder, tmp_path, "one")
    tiny.on_two_ranks(_save_on, folder, tmp_path, seconds=400)
    for of in RESUMED:
        _resume(folder, tmp_path, "one", of)
    one = torch.load(tmp_path / "one.pt")
    for way in RESUMED:
        checkpoint = torch.load(tmp_path / f"of-{way}" / "step=7.ckpt", weights_only=True)
        assert checkpoint["state_dict"].keys() == one.keys()
        assert not [name for name in checkpoint["state_dict"] if "teacher" in name]
    for of, way in itertools.product(RESUMED, RESUMED):
        for name, tensor in torch.load(tmp_path / f"{of}-to-{way}.pt").items():
            torch.testing.assert_close(tensor, one[name], atol=1e-8, rtol=0, msg=f"{of} to {way}: {name}")


def _foreign_on(rank: int, folder: Path, root: Path) -> None:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    with pytest.raises(UserError, match="Use TRAINER=fsdp2"):
        tiny.trainer(root, devices=2, strategy=strategy).fit(
            tiny.switch_kd(folder), datamodule=tiny.data_module(folder, batch_size=4)
        )


def test_other_sharding_is_refused(folder: Path, tmp_path: Path) -> None:
    tiny.on_two_ranks(_foreign_on, folder, tmp_path)


def test_a_run_ends_well_while_gloo_lets_go_of_tensors(folder: Path, tmp_path: Path) -> None:
    flags = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks+=command.LetsGoLate")
    command = [sys.executable, "-m", "lightning_switchkd", *fit_arguments(folder, tmp_path / "run", *flags)]
    port, found = tiny.free_port(), {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **found, **tiny.rank_environment(rank, 2, port)})
        for rank in range(2)
    ]
    assert [rank.wait(180) for rank in ranks] == [0, 0]
    assert (tmp_path / "run" / "student" / "config.json").exists()
