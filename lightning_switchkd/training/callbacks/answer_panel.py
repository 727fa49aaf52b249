"""Show the answers of teacher, student and visual switch to the same validation images in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from textwrap import fill
from typing import Any

import lightning as L

from lightning_switchkd.core.text import exact_match, markdown_table
from lightning_switchkd.data.samples import Sample
from lightning_switchkd.training.callbacks.validation_questions import ValidationQuestions
from lightning_switchkd.training.loggers import log_figure, log_text
from lightning_switchkd.training.module import SwitchKD

COLUMNS = 4
"""Images in a row of the figure."""

LINE_LENGTH = 34
"""Characters in a line below an image."""


class AnswerPanel(L.Callback):
    """Show some validation samples after every validation, as a figure (``val/panel``) and as a table.

    The figure needs matplotlib (extra ``report``). Without it, only the table is logged.

    The *switched* answer comes from the teacher's language model behind the student's vision encoder: how well the
    encoder serves the teacher so far. The teacher answers only once.

    Args:
        num_samples: Number of samples, evenly spaced over the validation samples with an image. 0 turns the callback
            off.
        max_new_tokens: Maximum length of an answer.
    """

    def __init__(self, num_samples: int = 8, max_new_tokens: int = 32) -> None:
        self.num_samples = num_samples
        self.max_new_tokens = max_new_tokens
        self._samples: list[Sample] = []
        self._teacher_answers: list[str] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer on every rank, because sharded models run on all ranks at once. Log on rank 0."""
        assert isinstance(pl_module, SwitchKD)
        if self.num_samples == 0 or trainer.sanity_checking or not trainer.loggers:
            return
        distiller, data = pl_module.distiller, trainer.datamodule  # type: ignore[attr-defined]
        questions = ValidationQuestions(data, pl_module.device, self.max_new_tokens)
        if not self._samples:  # search eight times as many samples, because some may have no image
            visual = [sample for sample in questions.select(8 * self.num_samples) if sample.images]
            self._samples = visual[:: max(1, len(visual) // self.num_samples)][: self.num_samples]
        if not self._samples:
            return
        answers = {"student": questions.ask(distiller, self._samples)}
        if distiller.teacher is not None:
            self._teacher_answers = self._teacher_answers or questions.ask(distiller, self._samples, "teacher")
            switched = questions.ask(distiller, self._samples, "switch")
            answers = {"teacher": self._teacher_answers, **answers, "switched": switched}
        if trainer.is_global_zero:
            log_text(trainer, "val/panel", answer_table(self._samples, answers))
            if find_spec("matplotlib"):  # of the extra [report]
                figure = draw(self._samples, answers)
                log_figure(trainer, "val/panel", figure)
                figure.clear()


def answer_table(samples: Sequence[Sample], answers: Mapping[str, Sequence[str]]) -> str:
    """Return a Markdown table with one row per sample. ✗ marks wrong answers.

    Args:
        samples: The samples.
        answers: Answers by model, in the order of the samples.
    """
    rows = [["question", "correct answer", *answers]]
    for i, sample in enumerate(samples):
        marked = [("" if exact_match(a[i], sample.answer) else "✗ ") + a[i] for a in answers.values()]
        rows.append([sample.turns[-2].text_only, sample.answer.strip(), *marked])
    return markdown_table(rows)


def draw(samples: Sequence[Sample], answers: Mapping[str, Sequence[str]]) -> Any:
    """Draw each image with its question and the answers: correct ones green, wrong ones red.

    Args:
        samples: The samples.
        answers: Answers by model, in the order of the samples.
    """
    from matplotlib.figure import Figure

    num_rows = -(-len(samples) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, (3.2 + 0.3 * len(answers)) * num_rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08 * (1 + len(answers)))  # type: ignore[union-attr,call-arg]
    axes = list(figure.subplots(num_rows, COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for i, (sample, axis) in enumerate(zip(samples, axes, strict=False)):
        axis.imshow(sample.load_images(1)[0], interpolation="nearest")
        axis.set_title(fill(sample.turns[-2].text_only, LINE_LENGTH)[: 4 * LINE_LENGTH], fontsize=9)
        lines = [("correct", sample.answer.strip(), "black")]
        for name, of_model in answers.items():
            lines.append((name, of_model[i], "green" if exact_match(of_model[i], sample.answer) else "crimson"))
        for number, (name, text, color) in enumerate(lines):
            short = text if len(text) <= LINE_LENGTH else f"{text[: LINE_LENGTH - 1]}…"
            y = -0.04 - 0.09 * number
            axis.text(0, y, f"{name}: {short}", color=color, fontsize=9, va="top", transform=axis.transAxes)
    return figure
