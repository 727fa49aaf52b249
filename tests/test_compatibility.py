"""Artifacts of 0.1.0 still work: a checkpoint, a run folder, an exported student, and a teacher cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lightning_switchkd.cli.main import main
from lightning_switchkd.explore import open_run
from lightning_switchkd.models.generation import load_model
from lightning_switchkd.training.checkpoints.io import read_checkpoint

ARTIFACTS = Path(__file__).parent / "yardstick" / "artifacts_0_1_0"
CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS, folder)
    monkeypatch.chdir(folder)  # the run's config.yaml names files relative to it
    return folder


def fit_arguments(*more: str) -> list[str]:
    """The settings of the run, in today's names."""
    files = ("base", "data/digits", "model/digits", "trainer/cpu", "method/switch_kd")
    return [
        "fit",
        *(part for name in files for part in ("--config", str(CONF / f"{name}.yaml"))),
        "--data.processor=inputs/processor",
        *(f"--data.{split}.annotations=inputs/records.json" for split in ("train", "val", "test")),
        *(f"--data.{split}.image_root=inputs/images" for split in ("train", "val", "test")),
        "--model.student.checkpoint=inputs/student",
        "--model.teacher.checkpoint=inputs/teacher",
        "--trainer.default_root_dir=run",
        *("--trainer.max_steps=20", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=2"),
        *("--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=10", "--answer_panel.num_samples=0"),
        *("--val_generation.num_samples=6", "--val_generation.max_new_tokens=3", "--data.batch_size=4"),
        *("--data.val_batch_size=8", "--data.num_workers=0", "--data.max_length=128"),
        *more,
    ]


def test_a_checkpoint_resumes_with_its_teacher_cache(artifacts: Path) -> None:
    main(fit_arguments("--ckpt_path=last", "--model.teacher_cache.folder=teacher_cache"))
    checkpoint = read_checkpoint(artifacts / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 20
    rows = (artifacts / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 20, "the rows of the first ten steps are kept"
    assert (artifacts / "run" / "student" / "config.json").is_file()


def test_a_checkpoint_exports_and_its_student_loads(artifacts: Path) -> None:
    main(["export", "--ckpt=run/checkpoints/last.ckpt", "--output=exported"])
    old, new = (LlavaForConditionalGeneration.from_pretrained(name).state_dict() for name in ("student", "exported"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    AutoProcessor.from_pretrained("student", backend="pil")
    assert load_model("student", "cpu").vlm.head_size > 0


def test_a_run_folder_opens(artifacts: Path) -> None:
    pair = open_run("run", student="student")
    inspection = pair.inspect(pair.pick(4))
    assert len(inspection) > 0


def test_its_configuration_is_refused_with_the_new_names(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["fit", "--config=run/config.yaml"])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for name in ("val_generation", "data.exif_transpose", "lightning_switchkd.training.loggers.CSVLogger"):
        assert name in error
