"""Validation questions: which samples are asked, and by which rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from lightning_switchkd.data.datamodule import DataPaths
from lightning_switchkd.training.callbacks import ValGeneration
from lightning_switchkd.training.callbacks.validation_questions import ValidationQuestions, part_of


def test_invalid_samples_are_skipped(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raws = json.loads((folder / "records.json").read_text(encoding="utf-8"))
    raws[3]["conversations"][1]["value"] = ""
    with_image = next(raw for raw in raws[5:] if isinstance(raw.get("image"), str))
    with_image["image"] = "missing.png"
    (tmp_path / "val.json").write_text(json.dumps(raws), encoding="utf-8")
    data = tiny.data_module(folder, val=DataPaths(str(tmp_path / "val.json"), str(folder / "images")))
    samples = ValidationQuestions(data, torch.device("cpu"), 2).select(48)
    assert [sample.location.index for sample in samples] == [
        i for i in range(48) if i not in (3, raws.index(with_image))
    ]
    assert "Skipped 2 of 48 validation questions that cannot be asked. The first: Sample 3" in caplog.text
    trainer = tiny.trainer(tmp_path, max_steps=1, limit_val_batches=1.0, callbacks=[ValGeneration(48, 2)])
    trainer.validate(tiny.switch_kd(folder, dtype="float32"), datamodule=data, verbose=False)
    assert 0 <= float(trainer.callback_metrics["val/exact_match"]) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_the_samples(folder: Path, world_size: int) -> None:
    samples = ValidationQuestions(tiny.data_module(folder), torch.device("cpu"), 2).select(7)
    parts = [part_of(samples, rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part, _ in parts}) == 1
    counted = [sample.id for part, count in parts for sample in part[:count]]
    assert sorted(counted) == sorted(sample.id for sample in samples)
