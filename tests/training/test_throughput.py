"""Rates, fractions and time left, against known batches and a fake clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from lightning_switchkd.data.dataset import VisionTextDataset
from lightning_switchkd.distillation.flops import step_cost
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.training.callbacks import Throughput
from lightning_switchkd.training.module import SwitchKD

KEYS = {
    "samples_per_s", "tokens_per_s", "supervised_tokens_per_s", "padding_share", "data_wait_share", "peak_memory_gib",
    "model_tflops_per_s", "minutes_left", "mfu",
}  # fmt: skip


def module(folder: Path) -> SwitchKD:
    student, teacher = (VLMSpec(checkpoint=str(folder / name)) for name in ("student", "teacher"))
    return SwitchKD(student, teacher, SwitchKDObjective())


class FakeClock(Throughput):
    """Each step takes one second. Validation takes four, which are not counted."""

    clock = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        type(self).clock += 0.5

    def on_validation_epoch_start(self, *_: Any) -> None:
        type(self).clock += 4.0


def fit(folder: Path, root: Path, callback: Throughput, batch_size: int = 4, **settings: Any) -> dict[str, float]:
    trainer = tiny.trainer(
        root, callbacks=[callback], max_steps=4, log_every_n_steps=2, accumulate_grad_batches=2, **settings
    )
    trainer.fit(module(folder), datamodule=tiny.data_module(folder, batch_size=batch_size, seed=1, group_window=1))
    metrics = trainer.callback_metrics.items()
    return {n.removeprefix("throughput/"): float(v) for n, v in metrics if n.startswith("throughput/")}


def test_rates_by_a_known_clock(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_switchkd.training.callbacks.throughput.time.perf_counter", lambda: FakeClock.clock)
    callback = FakeClock(peak_tflops=1e-6)
    metrics = fit(folder, tmp_path, callback, limit_val_batches=1, val_check_interval=6)
    assert metrics.keys() == KEYS
    data = tiny.data_module(folder, batch_size=4, seed=1, group_window=1)
    batches = list(data.train_dataloader())[4:8]
    lengths = [float(n) for batch in batches for n in batch.attention_mask.sum(1)]
    positions = sum(batch.input_ids.numel() for batch in batches)
    seconds = 2.0
    assert metrics["samples_per_s"] == pytest.approx(16 / seconds)
    assert metrics["tokens_per_s"] == pytest.approx(sum(lengths) / seconds)
    assert metrics["supervised_tokens_per_s"] == pytest.approx(sum(b.counts.token for b in batches) / seconds)
    assert metrics["padding_share"] == pytest.approx(1 - sum(lengths) / positions)
    cost = step_cost(callback_distiller(folder, tmp_path))
    flops = cost.total(
        sum(lengths),
        sum(n**2 for n in lengths),
        sum(b.counts.image for b in batches),
        sum(b.counts.token for b in batches),
    )
    assert metrics["model_tflops_per_s"] == pytest.approx(flops / seconds / 1e12)
    assert metrics["mfu"] == pytest.approx(flops / seconds / 1e6)
    assert metrics["minutes_left"] == 0.0
    assert 0.1 < metrics["peak_memory_gib"] < 100


def callback_distiller(folder: Path, root: Path) -> Any:
    model = module(folder)
    tiny.trainer(root, max_steps=0).fit(model, datamodule=tiny.data_module(folder))
    return model.distiller


def test_waiting_for_data_is_measured(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a batch of four takes one second, training on it half a second."""
    monkeypatch.setattr("lightning_switchkd.training.callbacks.throughput.time.perf_counter", lambda: FakeClock.clock)
    read = VisionTextDataset.__getitem__

    def slowly(self: VisionTextDataset, index: int) -> Any:
        FakeClock.clock += 0.25
        return read(self, index)

    monkeypatch.setattr(VisionTextDataset, "__getitem__", slowly)
    metrics = fit(folder, tmp_path, FakeClock())
    assert metrics["data_wait_share"] == pytest.approx(1 / 1.5)
    assert metrics["samples_per_s"] == pytest.approx(4 / 1.5)
    assert "mfu" not in metrics, "the peak of this CPU is unknown"


def rank(rank: int, folder: Path, root: Path) -> None:
    metrics = fit(folder, root, Throughput(), batch_size=2, devices=2, strategy="ddp")
    if rank == 0:
        import torch

        torch.save(metrics, root / "two.pt")


@pytest.mark.slow
def test_two_processes_add_up(folder: Path, tmp_path: Path) -> None:
    """Two ranks count the same samples as one process."""
    import torch

    tiny.on_two_ranks(rank, folder, tmp_path)
    two, one = torch.load(tmp_path / "two.pt"), fit(folder, tmp_path, Throughput())
    for numerator in ("tokens_per_s", "supervised_tokens_per_s"):
        ours, theirs = (rates[numerator] / rates["samples_per_s"] for rates in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-6)
