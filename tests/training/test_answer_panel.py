"""The validation panel: which models answer, and what is logged."""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import SFT, SwitchKDObjective
from lightning_switchkd.training.callbacks import AnswerPanel
from lightning_switchkd.training.callbacks.answer_panel import answer_table
from lightning_switchkd.training.callbacks.validation_questions import ValidationQuestions
from lightning_switchkd.training.module import SwitchKD


def validate(folder: Path, root: Path, panel: AnswerPanel, objective: Any) -> SwitchKD:
    student, teacher = (VLMSpec(checkpoint=str(folder / name)) for name in ("student", "teacher"))
    model = SwitchKD(student, teacher, objective)
    logger = TensorBoardLogger(str(root), name="", version="")
    trainer = tiny.trainer(root, callbacks=[panel], logger=logger, limit_val_batches=1)
    trainer.validate(model, datamodule=tiny.data_module(folder), verbose=False)
    logger.finalize("success")
    return model


def logged_panel(root: Path) -> tuple[str, Any]:
    events = EventAccumulator(str(root)).Reload()
    text = events.Tensors("val/panel/text_summary")[-1].tensor_proto.string_val[0].decode()
    image = Image.open(io.BytesIO(events.Images("val/panel")[-1].encoded_image_string))
    return text, np.asarray(image.convert("RGB"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_shows_the_answers_of_all_three(folder: Path, tmp_path: Path) -> None:
    panel = AnswerPanel(num_samples=3, max_new_tokens=4)
    model = validate(folder, tmp_path, panel, SwitchKDObjective())
    text, picture = logged_panel(tmp_path)
    lines = text.splitlines()
    assert cells(lines[0]) == ["question", "correct answer", "teacher", "student", "switched"]
    assert len(lines) == 2 + 3
    assert "<image>" not in text
    columns = (picture < 250).any(axis=(0, 2)).nonzero()[0]
    assert columns.max() > 0.6 * picture.shape[1], "three of four columns are filled"
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100, "pictures, not a white page"
    assert all(sample.images for sample in panel._samples), "text-only samples have no image to show"
    # reference: the teacher with the student's vision encoder in place of its own
    questions = ValidationQuestions(tiny.data_module(folder), model.device, 4)
    swapped = copy.deepcopy(model.distiller.frozen_teacher)
    swapped.model.model.vision_tower = copy.deepcopy(model.distiller.student.model.model.vision_tower)
    alone = {"teacher": model.distiller.frozen_teacher, "student": model.distiller.student, "switched": swapped}
    answers = {name: questions.ask(Distiller(vlm, None, SFT(), 10), panel._samples) for name, vlm in alone.items()}
    assert text == answer_table(panel._samples, answers)


def test_without_a_teacher_shows_the_student(folder: Path, tmp_path: Path) -> None:
    validate(folder, tmp_path, AnswerPanel(num_samples=2, max_new_tokens=2), SFT())
    assert cells(logged_panel(tmp_path)[0].splitlines()[0]) == ["question", "correct answer", "student"]


def test_table_escapes_its_cells() -> None:
    from lightning_switchkd.data.formats import parse_sample
    from lightning_switchkd.data.samples import SampleLocation

    sample = parse_sample(
        {"id": 1, "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nleft | right?"}, {"from": "gpt", "value": "left"},
        ]}, SampleLocation("here.json", 0),
    )  # fmt: skip
    table = answer_table([sample], {"student": ["no\nidea"], "teacher": ["left"]})
    assert cells(table.splitlines()[2]) == ["left \\| right?", "left", "✗ no idea", "left"]


def test_zero_samples_turn_the_panel_off(folder: Path, tmp_path: Path) -> None:
    validate(folder, tmp_path, AnswerPanel(num_samples=0), SFT())
    assert "val/panel" not in EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
