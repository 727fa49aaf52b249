"""Training through Lightning: normalization over ranks and windows, checkpoints without a teacher, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Batch
from lightning_switchkd.data.datamodule import DataPaths
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SFT, SwitchKDObjective
from lightning_switchkd.training.module import SwitchKD

SEED = 1
"""Seed of the data order. It makes `test_a_rank_has_a_batch_without_images` pass."""


def weights(model: SwitchKD) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def data_paths(folder: Path) -> DataPaths:
    return DataPaths(str(folder / "records.json"), str(folder / "images"))


def test_a_rank_has_a_batch_without_images(folder: Path) -> None:
    """test_strategies.py relies on this: at some step, one rank has a batch of text only and the other has images."""
    data = tiny.data_module(folder, batch_size=4, seed=SEED)
    batches = list(data.train_dataloader())[:10]
    images = [batch.counts.image for batch in batches]
    assert any(min(pair) == 0 < max(pair) for pair in zip(images[::2], images[1::2], strict=True))
    assert len({int(batch.counts.token) for batch in batches}) > 1


def checkpointing(root: Path, every: int = 3) -> list[ModelCheckpoint]:
    return [ModelCheckpoint(root, filename="{step}", every_n_train_steps=every, save_top_k=-1)]


def test_checkpoint_has_no_teacher_and_resume_is_exact(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 8, "enable_checkpointing": True, "accumulate_grad_batches": 2}
    uninterrupted = tiny.switch_kd(folder)
    teacher_before: dict[str, Tensor] = {}

    class KeepTeacher(ModelCheckpoint):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            teacher_before.update({k: v.clone() for k, v in pl_module.distiller.teacher.state_dict().items()})

    callbacks = [*checkpointing(tmp_path), KeepTeacher(tmp_path / "unused")]
    tiny.trainer(tmp_path, callbacks=callbacks, **settings).fit(
        uninterrupted, datamodule=tiny.data_module(folder, batch_size=4)
    )
    teacher_after = uninterrupted.distiller.teacher.state_dict()
    assert teacher_before
    for name, tensor in teacher_before.items():
        assert torch.equal(tensor, teacher_after[name])

    checkpoint = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "teacher" in name]
    assert [tensor for state in checkpoint["optimizer_states"] for tensor in state["state"][0].values()]
    assert checkpoint["global_step"] == 3

    resumed = tiny.switch_kd(folder)
    tiny.trainer(tmp_path, **settings).fit(
        resumed, datamodule=tiny.data_module(folder, batch_size=4), ckpt_path=str(tmp_path / "step=3.ckpt")
    )
    for name, tensor in weights(uninterrupted).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def test_a_teacher_alone_means_switch_kd(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = ({"checkpoint": str(folder / name)} for name in ("student", "teacher"))
    assert isinstance(SwitchKD(student).objective, SFT)
    model = SwitchKD(student, teacher, lr=1e-3, lr_vision=1e-4)
    assert isinstance(model.objective, SwitchKDObjective)
    with caplog.at_level("INFO"):
        tiny.trainer(tmp_path, max_steps=10, max_epochs=1).fit(model, datamodule=tiny.data_module(folder, val=None))
    line = (
        "Training with SwitchKDObjective (loss terms: ce, align, vsd), "
        f"teacher {folder}/teacher, student {folder}/student (17,392 trainable parameters). "
        "Data: 48 samples, 8 per step, no validation data. Schedule: 6 steps, learning rate 0.0001 to 0.001. "
        "trainer.max_epochs=1 ends it before trainer.max_steps=10."
    )
    assert line in caplog.messages
    excluded = tmp_path / "exclude.jsonl"
    lines = ({"path": str(folder / "records.json"), "index": index} for index in (0, 1))
    excluded.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = tiny.data_module(folder, val=None, exclude=str(excluded))
    with caplog.at_level("INFO"):
        tiny.trainer(tmp_path, max_steps=1).fit(SwitchKD(student, teacher), datamodule=data)
    assert "Data: 46 samples, " in " ".join(caplog.messages)
    with pytest.raises(UserError, match=r"student: unknown fields folder\. Known: activation_checkpointing, "):
        SwitchKD({"folder": "x"})


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({"max_steps": 3, "val_check_interval": 4}, 4),
        ({"max_steps": 3, "max_epochs": -1, "check_val_every_n_epoch": 2, "val_check_interval": 0.5}, 9),
        ({"max_steps": 1, "accumulate_grad_batches": 2, "val_check_interval": 3}, 3),
        ({"max_steps": 4, "val_check_interval": 4}, None),
        ({"max_steps": 2, "accumulate_grad_batches": 2, "val_check_interval": 4}, None),
        ({"max_steps": 3, "val_check_interval": 4, "limit_val_batches": 0}, None),
    ],
    ids=str,
)
def test_a_run_without_any_validation_says_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], due: int | None
) -> None:
    trainer = tiny.trainer(tmp_path, **{"limit_val_batches": 1, "check_val_every_n_epoch": None, **settings})
    with caplog.at_level("INFO"):
        trainer.fit(tiny.switch_kd(folder), datamodule=tiny.data_module(folder))
    (line,) = (message for message in caplog.messages if message.startswith("Training with"))
    assert (f"which is due after {due} batches" in line) == (due is not None)
    assert ("ends before the first validation" in line) == (due is not None)
    validated = any(name.startswith("val/") for name in trainer.callback_metrics)
    assert validated == (due is None and settings.get("limit_val_batches") != 0)


@pytest.mark.parametrize(
    "setting",
    [{"lr": 0.0}, {"lr_lm": float("nan")}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"warmup": -1.0}],
    ids=str,
)
def test_settings_of_the_optimizer_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^model\.{next(iter(setting))} must be"):
        SwitchKD(VLMSpec(checkpoint="x"), **setting)


def test_another_student_or_teacher_is_refused(folder: Path, tmp_path: Path) -> None:
    tiny.trainer(tmp_path, callbacks=checkpointing(tmp_path), enable_checkpointing=True, max_steps=3).fit(
        tiny.switch_kd(folder), datamodule=tiny.data_module(folder)
    )
    path = str(tmp_path / "step=3.ckpt")
    tiny.save_vlm(tmp_path / "student", seed=0, layers=1)
    tiny.save_vlm(tmp_path / "teacher", seed=9, width=24, lm="llama", tied=False)
    other_student = SwitchKD(
        VLMSpec(checkpoint=str(tmp_path / "student")), VLMSpec(checkpoint=str(folder / "teacher")), SwitchKDObjective()
    )
    other_teacher = SwitchKD(
        VLMSpec(checkpoint=str(folder / "student")), VLMSpec(checkpoint=str(tmp_path / "teacher")), SwitchKDObjective()
    )
    for model, message in ((other_student, "holds another student"), (other_teacher, "another teacher")):
        with pytest.raises(UserError, match=message):
            tiny.trainer(tmp_path).fit(model, datamodule=tiny.data_module(folder), ckpt_path=path)


def test_optimizer_groups_and_schedule(folder: Path, tmp_path: Path) -> None:
    model = tiny.switch_kd(folder, SFT(), lr=1e-3, lr_vision=1e-4, weight_decay=0.1, warmup=2, freeze=["projector"])
    trainer = tiny.trainer(tmp_path, max_steps=4)
    trainer.fit(model, datamodule=tiny.data_module(folder))
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert groups.keys() == {"vision/decay", "vision/no_decay", "lm/decay", "lm/no_decay"}
    assert groups["vision/decay"]["initial_lr"] == 1e-4
    assert groups["lm/no_decay"]["initial_lr"] == 1e-3
    assert groups["lm/no_decay"]["weight_decay"] == 0.0
    assert groups["lm/decay"]["weight_decay"] == 0.1
    assert all(p.ndim < 2 for name, group in groups.items() if "no_decay" in name for p in group["params"])
    grouped = [p for group in groups.values() for p in group["params"]]
    trainable = [p for p in model.distiller.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in trainable}
    assert model.distiller.teacher is None, "SFT needs no teacher, so none is loaded"


def test_validation_logs_terms_and_accuracy(folder: Path, tmp_path: Path) -> None:
    model = tiny.switch_kd(folder)
    trainer = tiny.trainer(tmp_path, limit_val_batches=1.0)
    metrics = trainer.validate(model, datamodule=tiny.data_module(folder, batch_size=7), verbose=False)[0]
    test_metrics = trainer.test(model, datamodule=tiny.data_module(folder, test=data_paths(folder)), verbose=False)[0]
    assert test_metrics["test/loss/vsd"] == pytest.approx(metrics["val/loss/vsd"], rel=1e-5)
    assert metrics.keys() >= {"val/loss/ce", "val/loss/align", "val/loss/vsd", "val/loss/total", "val/accuracy"}
    all_samples = next(iter(tiny.data_module(folder, val_batch_size=48).val_dataloader()))
    with torch.no_grad():
        output = model.distiller.eval()(all_samples, all_samples.counts.tensor(), 0)
    for name in ("ce", "align"):
        assert metrics[f"val/loss/{name}"] == pytest.approx(
            float(output.sums[name]) / all_samples.counts.token, rel=1e-5
        )
    assert metrics["val/loss/vsd"] == pytest.approx(
        float(output.sums["vsd"]) / all_samples.counts.visual_token, rel=1e-5
    )
    assert metrics["val/accuracy"] == pytest.approx(float(output.sums["correct"]) / all_samples.counts.token)


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        ({"seed": 1}, {"freeze": ["vision"]}, "model.freeze contains .vision."),
        ({"seed": 1, "feature_layer": -1}, {}, "layer of the image features is -2 in the student"),
        ({"seed": 1, "feature_strategy": "full"}, {}, "tokens of the image features is 4 in the student"),
        ({"seed": 1, "encoder": "siglip", "wide": True}, {}, "width of the image features"),
    ],
    ids=["frozen", "layer", "tokens", "width"],
)
def test_incompatible_pairs_are_refused(
    folder: Path, tmp_path: Path, teacher: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    if teacher.pop("wide", False):
        wide = tiny.spec(encoder="siglip")
        assert isinstance(wide.vision, dict)
        spec = VLMSpec(vision={**wide.vision, "hidden_size": 32}, lm=wide.lm, feature_strategy="full")
    else:
        spec = VLMSpec(checkpoint=tiny.save_vlm(tmp_path / "teacher", **teacher))
    model = SwitchKD(VLMSpec(checkpoint=str(folder / "student")), spec, SwitchKDObjective(), **settings)
    with pytest.raises(UserError, match=message):
        tiny.trainer(tmp_path).fit(model, datamodule=tiny.data_module(folder))


@pytest.mark.parametrize(
    ("part", "message"),
    [("teacher", "do not share a vocabulary: 2 tokens"), ("student", "another tokenizer than .*: 2 of its tokens")],
)
def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path, part: str, message: str) -> None:
    path = tiny.save_vlm(tmp_path / part, seed=1)
    tokenizer = tmp_path / part / "tokenizer.json"
    core = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = core["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    tokenizer.write_text(json.dumps(core), encoding="utf-8")
    folders = {"student": str(folder / "student"), "teacher": str(folder / "teacher"), part: path}
    student, teacher = (VLMSpec(checkpoint=folders[name]) for name in ("student", "teacher"))
    with pytest.raises(UserError, match=rf"{message} differ. The first is .!. with"):
        tiny.trainer(tmp_path).fit(SwitchKD(student, teacher, SwitchKDObjective()), datamodule=tiny.data_module(folder))


def test_a_switch_without_effect_is_reported(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = VLMSpec(checkpoint=str(folder / "student"))
    model = SwitchKD(spec, spec, SwitchKDObjective())
    with caplog.at_level("WARNING"):
        tiny.trainer(tmp_path, max_steps=1).fit(model, datamodule=tiny.data_module(folder, group_window=1))
    assert "The visual switch has no effect" in caplog.text


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("teacher_dtype", ["float32", "bfloat16"])
def test_precision_does_not_change_the_teacher(
    folder: Path, tmp_path: Path, precision: Any, teacher_dtype: Any
) -> None:
    student = VLMSpec(checkpoint=str(folder / "student"))
    teacher = VLMSpec(checkpoint=str(folder / "teacher"), dtype=teacher_dtype)
    model = SwitchKD(student, teacher, SwitchKDObjective())
    tiny.trainer(tmp_path, precision=precision, max_steps=2, limit_val_batches=1).fit(
        model, datamodule=tiny.data_module(folder)
    )
    expected = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert {p.dtype for p in model.distiller.student.parameters()} == {expected}
    assert {str(p.dtype) for p in model.distiller.teacher.parameters()} == {f"torch.{teacher_dtype}"}


def test_public_names() -> None:
    import lightning_switchkd

    assert lightning_switchkd.SwitchKD is SwitchKD
    assert lightning_switchkd.LLaVADataModule.__name__ == "LLaVADataModule"
    assert not hasattr(lightning_switchkd, "nothing")


def test_a_changing_accumulation_is_refused(folder: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    callbacks = [GradientAccumulationScheduler({0: 1, 1: 2})]
    with pytest.raises(UserError, match="GradientAccumulationScheduler"):
        tiny.trainer(tmp_path, callbacks=callbacks).fit(tiny.switch_kd(folder), datamodule=tiny.data_module(folder))


def test_chunk_size_does_not_change_training(folder: Path, tmp_path: Path) -> None:
    """Chunks of one token and one chunk give the same losses, up to float32 rounding."""

    class Losses(SwitchKD):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.__dict__.setdefault("losses", []).append(float(loss.detach()))
            return loss

    runs = []
    for gib in (1e-9, 1.0):
        specs = (VLMSpec(checkpoint=str(folder / name)) for name in ("student", "teacher"))
        runs.append(Losses(*specs, SwitchKDObjective(), lr=1e-3, logits_gib=gib))
        tiny.trainer(tmp_path, max_steps=12).fit(runs[-1], datamodule=tiny.data_module(folder, seed=1))
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-4)
    assert runs[0].losses[-1] < 0.9 * runs[0].losses[0]
    with pytest.raises(UserError, match="logits_gib must be above 0, got 0"):
        SwitchKD(VLMSpec(), logits_gib=0)
