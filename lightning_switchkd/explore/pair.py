"""A student and its teacher, opened to be looked at: from a run, or from two folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jsonargparse import ArgumentParser
from PIL.Image import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.labels import supervised_positions
from lightning_switchkd.core.types import Batch, Pathway
from lightning_switchkd.data.datamodule import DataPaths, LLaVADataModule, Split
from lightning_switchkd.distillation.checks import check_data, check_pair
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.pathways import PathwayOutput, student_pathway, switch_pathway, teacher_pathway
from lightning_switchkd.explore.inspection import PATHWAYS, Inspection
from lightning_switchkd.losses.logits import SupervisedTokens
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.attention import noted_attention, watch_attention
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import Objective, SwitchKDObjective
from lightning_switchkd.objectives.terms import Need

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass
class Pair:
    """Student and teacher in eval mode, with data to look at.

    Attributes:
        student: the small model.
        teacher: the large one.
        data: where records come from.
        split: which of its data sets.
        objective: what the run minimised; Switch-KD's where there is no run.
        folders: what :func:`open_pair` takes to open it again: ``student``, ``teacher``, ``annotations``,
            ``image_root``.
        start: model folder that the student came from; None where nobody knows.
    """

    student: VLMAdapter
    teacher: VLMAdapter
    data: LLaVADataModule
    split: Split
    objective: Objective
    folders: dict[str, str | None]
    start: str | None = None

    @property
    def pathways(self) -> tuple[Pathway, ...]:
        """Pathways that can run: without one feature space for both there is no switch."""
        return PATHWAYS if self.student.feature_space == self.teacher.feature_space else PATHWAYS[:2]

    def before(self) -> Pair:
        """The same with the student as it was before distillation.

        Raises:
            UserError: it did not start from a folder.
        """
        if self.start is None:
            raise UserError("This pair's student did not start from a model folder: there is no `before`.")
        student = build(VLMSpec(checkpoint=self.start), self.data.processor.tokenizer, "student").eval()
        return replace(self, student=student, folders={**self.folders, "student": self.start})

    def some(self, count: int, source: str | None = None) -> list[int]:
        """Numbers of some records, always the same ones; of one source if so asked.

        Raises:
            UserError: there is none of that source.
        """
        dataset = self.data.dataset(self.split)
        numbers = [n for n in range(len(dataset)) if source is None or dataset.sample(n).source == source]
        if not numbers:
            raise UserError(f"no record of the {self.split} data is of the source '{source}'.")
        return sorted(Random(0).sample(numbers, min(count, len(numbers))))

    def question(self, number: int) -> str:
        """The last question of a record, without places of images."""
        return self.data.dataset(self.split).sample(number).turns[-2].text_only

    def answer(self, number: int) -> str:
        """What is right."""
        return self.data.dataset(self.split).sample(number).answer

    def image(self, number: int) -> Image | None:
        """A record's first image."""
        pictures = self.data.dataset(self.split).sample(number).load_images(1)
        return pictures[0] if pictures else None

    def batch(self, numbers: list[int]) -> Batch:
        """Records as one batch, on the models' device."""
        dataset = self.data.dataset(self.split)
        batch = self.data.collate([dataset[number] for number in numbers])
        return batch.to(next(self.student.parameters()).device)

    @torch.no_grad()
    def run(self, batch: Batch) -> dict[Pathway, PathwayOutput]:
        """The pathways of a batch."""
        features = self.student.encode_image(batch.pixel_values)
        ran: dict[Pathway, PathwayOutput] = {"student": student_pathway(self.student, batch, features)}
        ran["teacher"] = teacher_pathway(self.teacher, batch)
        if "switch" in self.pathways:
            ran["switch"] = switch_pathway(self.teacher, batch, features)
        return ran

    def inspection(self, numbers: list[int], batch_size: int = 8) -> Inspection:
        """Runs the pathways over records, and keeps the rows that predict their answers.

        Args:
            numbers: of the records (:meth:`some`).
            batch_size: records at a time.
        """
        from pandas import DataFrame

        hidden: dict[Pathway, list[Tensor]] = {pathway: [] for pathway in self.pathways}
        targets, visual, about = [], [], []
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            batch = self.batch(part)
            positions, wanted = supervised_positions(batch.labels)
            for pathway, output in self.run(batch).items():
                hidden[pathway].append(output.hidden.flatten(0, 1)[positions])
            samples = batch.sample_of[positions].tolist()
            has_image = torch.isin(torch.tensor(samples), batch.image_sample.cpu())
            targets.append(wanted)
            visual.append(has_image)
            place, previous = 0, None
            for sample, position, token in zip(samples, positions.tolist(), wanted.tolist(), strict=True):
                place = place + 1 if previous == position - 1 else 0
                previous = position
                found = self.data.dataset(self.split).sample(part[sample])
                about.append((part[sample], found.id, found.source, place, self.token(token)))
        rows = SupervisedTokens(
            {pathway: torch.cat(parts) for pathway, parts in hidden.items()},
            torch.cat(targets),
            torch.cat(visual),
            len(self.data.processor.tokenizer),
        )
        heads = {pathway: (self.student if pathway == "student" else self.teacher).head for pathway in hidden}
        table = DataFrame(about, columns=["record", "id", "source", "place", "token"])
        return Inspection(rows, heads, table, self.token)

    def token(self, token_id: int) -> str:
        """A token as text, its spaces visible."""
        return str(self.data.processor.tokenizer.decode([token_id])).replace(" ", "␣").replace("\n", "⏎")

    def gradients(self, numbers: list[int]) -> DataFrame:
        """Norm of each loss term's gradient at each part of the student: ``term``, ``vision``, ``projector``, ``lm``.

        Terms are weighed as in training; the batch is a whole optimizer step.
        """
        from pandas import DataFrame

        batch = self.batch(numbers)
        distiller = Distiller(self.student, self.teacher, self.objective, len(self.data.processor.tokenizer)).train()
        distiller.objective.split_terms = True
        parts = {
            name: [p for module in modules for p in module.parameters() if p.requires_grad]
            for name, modules in self.student.parts().items()
        }
        shares = distiller(batch, batch.counts.tensor(batch.input_ids.device), 0).term_losses
        every = [p for parameters in parts.values() for p in parameters]
        owner = [name for name, parameters in parts.items() for _ in parameters]
        found = []
        for term, share in shares.items():
            row: dict[str, Any] = {"term": term, **dict.fromkeys(parts, 0.0)}
            gradients = torch.autograd.grad(share, every, retain_graph=True, allow_unused=True)
            for name, gradient in zip(owner, gradients, strict=True):
                row[name] += 0.0 if gradient is None else float(gradient.double().square().sum())
            found.append({name: value if name == "term" else value**0.5 for name, value in row.items()})
        distiller.objective.split_terms = False
        self.student.eval()
        return DataFrame(found)

    @torch.no_grad()
    def attention(self, number: int) -> dict[Pathway, Tensor]:
        """Where each side looks while it predicts a record's answers: attention to its image, by patch.

        Mean over layers, heads and the tokens of the answer, of what a token gives to the image at all.

        Returns:
            by side a map ``[rows, columns]`` that sums to 1.

        Raises:
            UserError: the record has no image or several, or patches make no square.
        """
        batch = self.batch([number])
        if batch.counts.image != 1:
            raise UserError(f"record {number} has {batch.counts.image} images: a map is drawn of one.")
        features = self.student.encode_image(batch.pixel_values)
        seen = batch.pixel_values if batch.pixel_values_teacher is None else batch.pixel_values_teacher
        inputs = {"student": (self.student, features), "teacher": (self.teacher, self.teacher.encode_image(seen))}
        if "switch" in self.pathways:
            inputs["switch"] = self.teacher, features
        answers = supervised_positions(batch.labels)[0]
        found: dict[Pathway, Tensor] = {}
        for pathway in self.pathways:
            vlm, encoded = inputs[pathway]
            watch_attention(vlm.language_model, "student" if pathway == "student" else "teacher")
            with noted_attention(every_layer=True) as layers:
                vlm.decode(batch.input_ids, batch.attention_mask, vlm.project(encoded), batch.position_ids)
            maps = [layer.text_to_image(batch, vlm.image_token_id)[0] for layer in layers]  # [heads, Q, P] each
            asking = (
                int((batch.input_ids[0] == vlm.image_token_id).nonzero()[maps[0].shape[-1] - 1]) + 1
            )  # where text behind the image begins
            focus = torch.stack([layer[:, answers - asking].mean((0, 1)) for layer in maps]).mean(0)
            side_length = round(len(focus) ** 0.5)
            if side_length**2 != len(focus):
                raise UserError(f"an image makes {len(focus)} tokens, which is no square: there is no map to draw.")
            found[pathway] = (focus / focus.sum()).view(side_length, side_length)
        return found


def open_run(run: str | Path, split: Split = "val", student: str | None = None) -> Pair:
    """The pair of a finished run: teacher, data and objective of its config.yaml, and the student it wrote.

    Args:
        run: the run's folder.
        split: which of its data sets is looked at.
        student: another student folder in its place.

    Raises:
        UserError: it is no run, has no teacher, or has not written its student.
    """
    file = Path(run, "config.yaml")
    if not file.is_file():
        raise UserError(f"{run} is no run: it has no config.yaml. `make train` leaves one in runs/digits/switch_kd.")
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = config["model"]
    if not model.get("teacher"):
        raise UserError(f"{run} trained without a teacher. Open it as a pair: open_pair(student, teacher, …).")
    folder = str(student or Path(run, "student"))
    if not Path(folder, "config.json").is_file():
        raise UserError(f"{run} has no student folder yet: it is written at the end, or by `export --ckpt`.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    parsed = parser.parse_object({"objective": model["objective"]})
    objective = parser.instantiate_classes(parsed).objective
    data = LLaVADataModule(**config["data"])
    teacher = VLMSpec(**{k: v for k, v in model["teacher"].items() if k not in ("lora", "compile")})
    return _pair(VLMSpec(checkpoint=folder), teacher, data, split, objective, model["student"].get("checkpoint"))


def open_pair(
    student: str,
    teacher: str,
    annotations: str,
    image_root: str | None = None,
    prompt_style: str = "qwen_chatml",
    start: str | None = None,
) -> Pair:
    """Any two model folders (or hub ids) on any LLaVA records.

    Args:
        student: model folder, with its processor.
        teacher: model folder.
        annotations: LLaVA records.
        image_root: folder of their images.
        prompt_style: how conversations are written as tokens.
        start: the student's folder before distillation, for :meth:`Pair.before`.
    """
    paths = DataPaths(annotations, image_root)
    data = LLaVADataModule(student, val=paths, prompt_style=prompt_style)
    return _pair(VLMSpec(checkpoint=student), VLMSpec(checkpoint=teacher), data, "val", SwitchKDObjective(), start)


def _pair(
    student_spec: VLMSpec,
    teacher_spec: VLMSpec,
    data: LLaVADataModule,
    split: Split,
    objective: Objective,
    start: str | None,
) -> Pair:
    transformers_logging.disable_progress_bar()
    tokenizer = data.processor.tokenizer
    student = build(student_spec, tokenizer, "student").eval()
    teacher = build(teacher_spec, tokenizer, "teacher").eval().requires_grad_(False)
    check_data(student, tokenizer, data.image_tokens)
    check_pair(student, teacher, Need.TEACHER, len(tokenizer))
    paths = data.paths(split)
    folders = {"student": student_spec.checkpoint, "teacher": teacher_spec.checkpoint}
    folders |= {"annotations": paths[0].annotations, "image_root": paths[0].image_root}
    return Pair(student, teacher, data, split, objective, folders, start)
