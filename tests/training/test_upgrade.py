"""Configurations and checkpoints of version 0.1.0 still load."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from command import ROOT
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_switchkd.core.renamed import CALLBACKS, CLASS_PATHS, MODULES, upgrade_config
from lightning_switchkd.training import callbacks
from lightning_switchkd.training.callbacks import DBiLDStatistics, SkipNonfinite, VisionGradients
from lightning_switchkd.training.checkpoints.metadata import upgrade_checkpoint

OLD = {
    "trainer": {
        "plugins": ["lightning_switchkd.checkpoints.io.AtomicCheckpointIO"],
        "logger": [{"class_path": "lightning_switchkd.loggers.CSVLogger", "init_args": {"save_dir": "runs"}}],
        "strategy": {"class_path": "lightning_switchkd.strategies.FSDP2", "init_args": {"shard_teacher": True}},
        "callbacks": [{"class_path": "lightning_switchkd.callbacks.GreedyValidation"}],
    },
    "model": {
        "lr_end": 0.1,
        "objective": {
            "class_path": "lightning_switchkd.objectives.SwitchKDObjective",
            "init_args": {"leader_gradient": False, "image_rows": True},
        },
    },
    "data": {"max_bad_share": 0.01, "upright": True, "val": None},
    "finite": {"limit": 20},
    "statistics": {"every_n_steps": 1},
    "gradients": {"split_every_n_steps": 0},
    "greedy": {"records": 128, "max_new_tokens": 16},
    "panel": {"records": 8},
}
NEW = {
    "trainer": {
        "plugins": ["lightning_switchkd.training.checkpoints.io.AtomicCheckpointIO"],
        "logger": [{"class_path": "lightning_switchkd.training.loggers.CSVLogger", "init_args": {"save_dir": "runs"}}],
        "strategy": {
            "class_path": "lightning_switchkd.training.strategies.FSDP2",
            "init_args": {"shard_teacher": True},
        },
        "callbacks": [{"class_path": "lightning_switchkd.training.callbacks.ValGeneration"}],
    },
    "model": {
        "min_lr_ratio": 0.1,
        "objective": {
            "class_path": "lightning_switchkd.objectives.SwitchKDObjective",
            "init_args": {"backprop_through_leader": False, "image_tokens": True},
        },
    },
    "data": {"max_bad_fraction": 0.01, "exif_transpose": True, "val": None},
    "skip_nonfinite": {"limit": 20},
    "dbild_statistics": {"every_n_steps": 1},
    "vision_gradients": {"split_every_n_steps": 0},
    "val_generation": {"num_samples": 128, "max_new_tokens": 16},
    "answer_panel": {"num_samples": 8},
}


def test_configurations_are_upgraded() -> None:
    assert upgrade_config(OLD) == NEW
    assert list(upgrade_config(OLD)) == list(NEW)
    assert upgrade_config(NEW) == NEW


FOLDERS = ("data", "method", "model", "overlay", "stage", "trainer")
FILES = [ROOT / "conf" / "base.yaml", *(file for name in FOLDERS for file in (ROOT / "conf" / name).glob("*.yaml"))]


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_present_configurations_do_not_change(file: Path) -> None:
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert upgrade_config(config) == config


def test_the_tables_name_what_exists() -> None:
    for path in CLASS_PATHS.values():
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name), path
    for module in MODULES.values():
        assert find_spec(f"lightning_switchkd.{module}") is not None, module


def with_keys_of_0_1_0(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with the keys that version 0.1.0 wrote."""
    old_names = {new: old for old, new in CALLBACKS.items()}
    return {**checkpoint, "callbacks": {old_names.get(k, k): state for k, state in checkpoint["callbacks"].items()}}


def test_keys_of_callbacks_are_upgraded() -> None:
    checkpoint: dict[str, Any] = {"callbacks": {"FiniteSteps": {"left_out": 3}, "DBiLDStatistics": {}, "Other": {}}}
    upgrade_checkpoint(checkpoint)
    assert checkpoint == {"callbacks": {"SkipNonfinite": {"left_out": 3}, "DBiLDStatistics": {}, "Other": {}}}
    without: dict[str, Any] = {}
    upgrade_checkpoint(without)
    assert without == {}


def test_an_old_checkpoint_restores_callbacks(folder: Path, tmp_path: Path) -> None:
    """Lightning calls the module's hook, which upgrades the keys, before it restores callbacks."""

    def fit(guard: SkipNonfinite, max_steps: int, ckpt_path: Path | None = None) -> None:
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        trainer = tiny.trainer(
            tmp_path,
            callbacks=[guard, DBiLDStatistics(), VisionGradients(), save],
            enable_checkpointing=True,
            max_steps=max_steps,
        )
        trainer.fit(tiny.switch_kd(folder), datamodule=tiny.data_module(folder), ckpt_path=ckpt_path)

    guard = SkipNonfinite()
    guard.skipped_steps = 2
    fit(guard, 2)
    checkpoint = with_keys_of_0_1_0(torch.load(tmp_path / "step=2.ckpt", weights_only=True))
    assert checkpoint["callbacks"]["FiniteSteps"] == {"left_out": 2}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    resumed = SkipNonfinite()
    fit(resumed, 3, tmp_path / "old.ckpt")
    assert resumed.skipped_steps == 2


def test_every_old_callback_has_a_successor() -> None:
    for name in set(CALLBACKS.values()) - {"RunFiles"}:
        assert name in callbacks.__all__
