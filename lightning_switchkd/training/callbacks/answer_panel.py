"""What teacher, student and switched student say about the same validation images, in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import lightning as L

from lightning_switchkd.data.samples import Sample
from lightning_switchkd.training.callbacks.validation_questions import ValidationQuestions
from lightning_switchkd.training.loggers import log_figure, log_text
from lightning_switchkd.training.module import SwitchKD

COLUMNS, LINE = 4, 34


class AnswerPanel(L.Callback):
    """Shows some validation records after every validation: as a picture (``val/panel``) and as a table of text.

    The *switched* answer is the teacher's language model looking through the student's vision encoder: how far that
    encoder already serves the teacher. The teacher is asked once.

    Args:
        records: how many, evenly spaced over the validation records that have an image; 0 shows nothing.
        max_new_tokens: longest answer.
    """

    def __init__(self, num_samples: int = 8, max_new_tokens: int = 32) -> None:
        self.num_samples = num_samples
        self.max_new_tokens = max_new_tokens
        self._shown: list[Sample] = []
        self._teacher: list[str] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Asks on every rank (sharded models answer together) and shows on the first."""
        assert isinstance(pl_module, SwitchKD)
        if self.num_samples == 0 or trainer.sanity_checking or not trainer.loggers:
            return
        distiller, data = pl_module.distiller, trainer.datamodule  # type: ignore[attr-defined]
        questions = ValidationQuestions(data, pl_module.device, self.max_new_tokens)
        if not self._shown:  # eight times as many are looked at, since some may have no image
            seeing = [sample for sample in questions.samples(8 * self.num_samples) if sample.images]
            self._shown = seeing[:: max(1, len(seeing) // self.num_samples)][: self.num_samples]
        if not self._shown:
            return
        said = {"student": questions.ask(distiller, self._shown)}
        if distiller.teacher is not None:
            self._teacher = self._teacher or questions.ask(distiller, self._shown, "teacher")
            said = {"teacher": self._teacher, **said, "switched": questions.ask(distiller, self._shown, "switch")}
        if trainer.is_global_zero:
            log_text(trainer, "val/panel", markdown(self._shown, said))
            figure = draw(self._shown, said)
            log_figure(trainer, "val/panel", figure)
            figure.clear()


def markdown(samples: Sequence[Sample], said: Mapping[str, Sequence[str]]) -> str:
    """A table: a row a record, wrong answers marked ✗.

    Args:
        records: the questions.
        said: answers by who gave them, in the records' order.
    """
    rows = [["question", "right answer", *said], ["---"] * (2 + len(said))]
    for i, sample in enumerate(samples):
        right = sample.answer.strip()
        replies = [answers[i] if answers[i] == right else f"✗ {answers[i]}" for answers in said.values()]
        rows.append([sample.turns[-2].text_only, right, *replies])
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    )


def draw(samples: Sequence[Sample], said: Mapping[str, Sequence[str]]) -> Any:
    """A matplotlib figure: the images, each with its question and who said what; right answers green, others red."""
    from matplotlib.figure import Figure

    rows, names = -(-len(samples) // COLUMNS), list(said)
    figure = Figure(figsize=(3.2 * COLUMNS, (3.2 + 0.3 * len(names)) * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08 * (1 + len(names)))  # type: ignore[union-attr,call-arg]
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for i, (sample, axis) in enumerate(zip(samples, axes, strict=False)):
        axis.imshow(sample.load_images(1)[0], interpolation="nearest")
        axis.set_title(fill(sample.turns[-2].text_only, LINE)[: 4 * LINE], fontsize=9)
        right = sample.answer.strip()
        lines = [
            ("right", right, "black"),
            *((n, said[n][i], "green" if said[n][i] == right else "crimson") for n in names),
        ]
        for place, (name, text, colour) in enumerate(lines):
            short = text if len(text) <= LINE else f"{text[: LINE - 1]}…"
            y = -0.04 - 0.09 * place
            axis.text(0, y, f"{name}: {short}", color=colour, fontsize=9, va="top", transform=axis.transAxes)
    return figure
