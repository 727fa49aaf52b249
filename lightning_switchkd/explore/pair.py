"""A student and its teacher, opened for inspection: from a run, or from two model folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from jsonargparse import ArgumentParser
from pandas import DataFrame
from PIL.Image import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.labels import supervised_positions
from lightning_switchkd.core.runs import read_config
from lightning_switchkd.core.types import PARTS, PATHWAYS, Batch, Pathway
from lightning_switchkd.data.datamodule import DataPaths, LLaVADataModule, Split
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.pair import load_pair
from lightning_switchkd.distillation.pathways import PathwayOutput, run_pathways
from lightning_switchkd.explore.inspection import Inspection
from lightning_switchkd.losses.logits import SupervisedTokens
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.attention import watch_attention
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives import Objective, SwitchKDObjective
from lightning_switchkd.objectives.terms import Need


@dataclass
class Pair:
    """Student and teacher in eval mode, with data.

    Attributes:
        student: The small model.
        teacher: The large model.
        data: The data module.
        split: The split that samples come from.
        objective: The objective of the run. Switch-KD's if the pair was opened without a run.
        folders: Arguments that reopen the pair with :func:`open_pair`: ``student``, ``teacher``, ``annotations``,
            ``image_root``.
        student_init: Model folder that the student was initialized from. None if unknown.
    """

    student: VLMAdapter
    teacher: VLMAdapter
    data: LLaVADataModule
    split: Split
    objective: Objective
    folders: dict[str, str | None]
    student_init: str | None = None

    @property
    def pathways(self) -> tuple[Pathway, ...]:
        """The pathways that can run. The switch needs one feature space for both models."""
        return PATHWAYS if self.student.feature_space == self.teacher.feature_space else PATHWAYS[:2]

    def before(self) -> Pair:
        """Return the pair with the student as it was before distillation.

        Raises:
            UserError: The student was not initialized from a model folder.
        """
        if self.student_init is None:
            raise UserError(
                "before() needs the model folder that the student was initialized from, got none. "
                "Give it to open_pair as student_init."
            )
        student = build(VLMSpec(checkpoint=self.student_init), self.data.processor.tokenizer, "student").eval()
        return replace(self, student=student, folders={**self.folders, "student": self.student_init})

    def pick(self, count: int, source: str | None = None) -> list[int]:
        """Return the indices of randomly chosen samples. Equal arguments give equal samples.

        Args:
            count: Number of samples, at most.
            source: Choose from the samples of this source only.

        Raises:
            UserError: The split has no sample of the source.
        """
        dataset = self.data.dataset(self.split)
        indices = [i for i in range(len(dataset)) if source is None or dataset.sample(i).source == source]
        if not indices:
            raise UserError(f"The {self.split} data has no sample of source '{source}'. Use another source, or None.")
        return sorted(Random(0).sample(indices, min(count, len(indices))))

    def question(self, index: int) -> str:
        """Return the last question of a sample, without image placeholders."""
        return self.data.dataset(self.split).sample(index).turns[-2].text_only

    def answer(self, index: int) -> str:
        """Return the reference answer of a sample."""
        return self.data.dataset(self.split).sample(index).answer

    def image(self, index: int) -> Image | None:
        """Return the first image of a sample, or None."""
        images = self.data.dataset(self.split).sample(index).load_images(1)
        return images[0] if images else None

    def batch(self, indices: list[int]) -> Batch:
        """Collate samples into one batch, on the models' device."""
        dataset = self.data.dataset(self.split)
        batch = self.data.collate([dataset[index] for index in indices])
        return batch.to(next(self.student.parameters()).device)

    @torch.no_grad()
    def run(self, batch: Batch, every_layer: bool = False) -> dict[Pathway, PathwayOutput]:
        """Run the pathways over a batch.

        Args:
            batch: Samples on the models' device.
            every_layer: Note the attention of every decoder layer, not only the first.
        """
        return run_pathways(self.student, self.teacher, batch, self.pathways, every_layer=every_layer)[0]

    def inspect(self, indices: list[int], batch_size: int = 8) -> Inspection:
        """Run the pathways over samples, and keep the positions that predict their answers.

        Args:
            indices: Of the samples (:meth:`pick`).
            batch_size: Samples per batch.
        """
        hidden: dict[Pathway, list[Tensor]] = {pathway: [] for pathway in self.pathways}
        targets, visual, about = [], [], []
        dataset = self.data.dataset(self.split)
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            batch = self.batch(part)
            positions, batch_targets = supervised_positions(batch.labels)  # [N], [N]
            for pathway, output in self.run(batch).items():
                hidden[pathway].append(output.hidden.flatten(0, 1)[positions])
            sample_of = batch.sample_of[positions].tolist()
            targets.append(batch_targets)
            visual.append(torch.isin(torch.tensor(sample_of), batch.image_sample.cpu()))
            in_answer, previous = 0, None
            for row, position, token in zip(sample_of, positions.tolist(), batch_targets.tolist(), strict=True):
                in_answer = in_answer + 1 if previous == position - 1 else 0
                previous = position
                sample = dataset.sample(part[row])
                about.append((part[row], sample.id, sample.source, in_answer, self.token(token)))
        tokens = SupervisedTokens(
            {pathway: torch.cat(parts) for pathway, parts in hidden.items()},
            torch.cat(targets),
            torch.cat(visual),
            len(self.data.processor.tokenizer),
        )
        heads = {pathway: (self.student if pathway == "student" else self.teacher).head for pathway in hidden}
        table = DataFrame(about, columns=["sample", "id", "source", "position", "token"])
        return Inspection(tokens, heads, table, self.token)

    def token(self, token_id: int) -> str:
        """Return a token as text, with visible spaces."""
        return str(self.data.processor.tokenizer.decode([token_id])).replace(" ", "␣").replace("\n", "⏎")

    def gradients(self, indices: list[int]) -> DataFrame:
        """Compute the norm of each loss term's gradient in each part of the student.

        Terms have the weights of training. The batch counts as a whole optimizer step.

        Args:
            indices: Of the samples (:meth:`pick`).

        Returns:
            Columns ``term``, ``vision``, ``projector``, ``lm``.
        """
        batch = self.batch(indices)
        distiller = Distiller(self.student, self.teacher, self.objective, len(self.data.processor.tokenizer)).train()
        distiller.objective.split_terms = True
        parts = {part: [p for p in self.student.part_parameters(part) if p.requires_grad] for part in PARTS}
        losses = distiller(batch, batch.counts.tensor(batch.input_ids.device), 0).term_losses
        parameters = [p for of_part in parts.values() for p in of_part]
        part_of = [name for name, of_part in parts.items() for _ in of_part]
        table = []
        for term, loss in losses.items():
            squares: dict[str, float] = dict.fromkeys(parts, 0.0)
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for name, gradient in zip(part_of, gradients, strict=True):
                squares[name] += 0.0 if gradient is None else float(gradient.double().square().sum())
            table.append({"term": term, **{name: value**0.5 for name, value in squares.items()}})
        distiller.objective.split_terms = False
        self.student.eval()
        return DataFrame(table)

    def attention(self, index: int) -> dict[Pathway, Tensor]:
        """Compute each pathway's attention to the image while it predicts a sample's answers.

        A map is the mean over layers, heads and answer tokens, relative to all attention to the image.

        Args:
            index: Of the sample.

        Returns:
            By pathway a map ``[rows, columns]`` of patches that sums to 1.

        Raises:
            UserError: The sample does not have exactly one image, or its patches do not form a square.
        """
        batch = self.batch([index])
        if batch.counts.image != 1:
            raise UserError(f"A map needs exactly 1 image, but sample {index} has {batch.counts.image} images.")
        watch_attention(self.student.language_model, "student")
        watch_attention(self.teacher.language_model, "teacher")
        positions = supervised_positions(batch.labels)[0]  # [N]
        maps: dict[Pathway, Tensor] = {}
        for pathway, output in self.run(batch, every_layer=True).items():
            vlm = self.student if pathway == "student" else self.teacher
            layers = [layer.text_to_image(batch, vlm.image_token_id)[0] for layer in output.attention]  # [heads, Q, P]
            is_image = batch.input_ids[0] == vlm.image_token_id
            first_query = int(is_image.nonzero()[-1]) + 1  # Q counts from the first token behind the image
            focus = torch.stack([layer[:, positions - first_query].mean((0, 1)) for layer in layers]).mean(0)  # [P]
            side = round(len(focus) ** 0.5)
            if side**2 != len(focus):
                raise UserError(f"A map needs a square of patches, but an image has {len(focus)} tokens.")
            maps[pathway] = (focus / focus.sum()).view(side, side)
        return maps


def open_run(run: str | Path, split: Split = "val", student: str | None = None) -> Pair:
    """Open a finished run: teacher, data and objective of its config.yaml, and the exported student.

    Args:
        run: The run folder. Folders of version 0.1.0 work as well.
        split: The split that samples come from.
        student: Another student folder, instead of the exported one.

    Raises:
        UserError: The folder is not a run, or the run has no teacher or no exported student.
    """
    config = read_config(run)
    model = config["model"]
    if not model.get("teacher"):
        raise UserError(f"{run} has no teacher. Use open_pair(student, teacher, ...) instead.")
    folder = str(student or Path(run, "student"))
    if not Path(folder, "config.json").is_file():
        raise UserError(f"{folder} is not a model folder. Finish the run, or write the student by `export --ckpt`.")
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
    student_init: str | None = None,
) -> Pair:
    """Open any two model folders (or hub ids) with any LLaVA data.

    Args:
        student: Model folder, with its processor.
        teacher: Model folder.
        annotations: File of LLaVA samples.
        image_root: Folder of their images.
        prompt_style: Prompt style of the conversations.
        student_init: The student's folder before distillation, for :meth:`Pair.before`.
    """
    paths = DataPaths(annotations, image_root)
    data = LLaVADataModule(student, val=paths, prompt_style=prompt_style)
    return _pair(
        VLMSpec(checkpoint=student), VLMSpec(checkpoint=teacher), data, "val", SwitchKDObjective(), student_init
    )


def _pair(
    student_spec: VLMSpec,
    teacher_spec: VLMSpec,
    data: LLaVADataModule,
    split: Split,
    objective: Objective,
    student_init: str | None,
) -> Pair:
    transformers_logging.disable_progress_bar()
    student, teacher = load_pair(student_spec, teacher_spec, Need.TEACHER, data.processor.tokenizer, data.image_tokens)
    assert teacher is not None
    paths = data.paths(split)
    folders = {"student": student_spec.checkpoint, "teacher": teacher_spec.checkpoint}
    folders |= {"annotations": paths[0].annotations, "image_root": paths[0].image_root}
    return Pair(student.eval(), teacher.eval().requires_grad_(False), data, split, objective, folders, student_init)
