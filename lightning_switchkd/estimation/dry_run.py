"""A recipe at its full size without a download: a few steps on made-up records, and what the whole of it would take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.profiling import memory_in_use, peak_memory, synchronized_time
from lightning_switchkd.core.types import IGNORE_INDEX, Batch, Counts, Part, Pathway
from lightning_switchkd.distillation.checks import check_pair
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.flops import step_cost
from lightning_switchkd.distillation.pathways import PathwayOutput, student_pathway, switch_pathway, teacher_pathway
from lightning_switchkd.estimation.architectures import random_model
from lightning_switchkd.estimation.memory import Geometry, Shards, step_memory
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.objectives.terms import Need
from lightning_switchkd.training.module import SwitchKD
from lightning_switchkd.training.optim import parameter_groups

HARDWARE = {
    "rtx4090": (24, 165.0),
    "l40s": (48, 362.0),
    "a100-40g": (40, 312.0),
    "a100-80g": (80, 312.0),
    "h100-80g": (80, 989.0),
    "h200": (141, 989.0),
}
"""GiB, and TFLOP/s of bf16 with dense matrices, by the makers' data sheets."""

SHARE_OF_PEAK = 0.35
"""Of those TFLOP/s that training usually reaches."""


GIB = 2**30
ROOM = 0.92
"""Of a GPU's memory that PyTorch can use."""


@dataclass(frozen=True)
class Plan:
    """How much to run, and what to estimate.

    Attributes:
        steps: steps to take; the last is reported.
        text: tokens of a record beside its image.
        answer: those of them that are supervised.
        records: of the whole recipe.
        hardware: to estimate for, a key of ``HARDWARE``.
        devices: how many of it.
    """

    steps: int = 2
    text: int = 160
    answer: int = 96
    samples: int = 665_298
    hardware: str = "a100-80g"
    devices: int = 8

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        if self.hardware not in HARDWARE:
            raise UserError(f"--hardware: '{self.hardware}' is not known. Known are: {', '.join(HARDWARE)}.")
        if not 0 < self.answer < self.text or min(self.steps, self.devices, self.samples) < 1:
            raise UserError("dry-run: --answer must lie between 0 and --text; the others must be at least 1.")


@dataclass
class Clock:
    """Seconds spent in each phase of the steps, and memory held after it.

    Attributes:
        seconds: by phase, of the last step.
        held: GiB by phase.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures what is within."""
        begun = synchronized_time(self.device.type)
        yield
        self.seconds[name] = synchronized_time(self.device.type) - begun
        self.held[name] = memory_in_use(self.device.type) / GIB


def made_up(student: VLMAdapter, shape: Geometry, device: torch.device) -> Batch:
    """Records of this geometry: images first, then a question, then an answer."""
    generator = torch.Generator().manual_seed(0)
    space, samples = student.feature_space, shape.samples
    size = student.model.config.vision_config.image_size
    ids = torch.randint(10, 20_000, (samples, shape.tokens), generator=generator) % (student.image_token_id - 1)
    ids[:, 4 : 4 + space.tokens * shape.images] = student.image_token_id
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -shape.rows :] = ids[:, -shape.rows :]
    rows, images = samples * shape.rows, samples * shape.images
    counts = Counts(token=rows, visual_token=rows, image_token=images * space.tokens, image=images)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        pixel_values=torch.randn(images, 3, size, size, generator=generator),
        image_sample=torch.arange(samples).repeat_interleave(shape.images),
        sample_index=torch.arange(samples),
        counts=counts,
        window=counts,
    ).to(device)


def made_pair(module: SwitchKD, dtype: torch.dtype | None, device: torch.device) -> Distiller:
    """The module's models and objective at their sizes; ``dtype`` is the student's, where it is not its own."""
    student = random_model(module.student_spec, "student", dtype or module.student_spec.torch_dtype, device)
    student.freeze(module.freeze_parts)
    teacher = None
    if module.teacher_spec is not None and Need.TEACHER in module.objective.needs:
        teacher = random_model(module.teacher_spec, "teacher", module.teacher_spec.torch_dtype, device)
    vocabulary = min(vlm.head_size for vlm in (student, teacher) if vlm is not None)
    check_pair(student, teacher, module.objective.needs, vocabulary)
    return Distiller(student, teacher, module.objective, vocabulary, module.logits_gib).train()


def one_step(
    distiller: Distiller, batch: Batch, optimizer: torch.optim.Optimizer, clock: Clock, autocast: bool
) -> None:
    """Forward, backward and update, phase by phase."""
    needs, counts = distiller.objective.needs, batch.counts.tensor(clock.device)
    with torch.autocast(clock.device.type, torch.bfloat16, enabled=autocast):
        batch.pixel_values = batch.pixel_values.to(next(distiller.student.parameters()).dtype)
        with clock.phase("vision encoder of the student"):
            features = distiller.features(batch)
        ran: dict[Pathway, PathwayOutput] = {}
        with clock.phase("student pathway"):
            ran["student"] = student_pathway(distiller.student, batch, features["student"])
        if Need.TEACHER in needs:
            with clock.phase("teacher pathway"):
                ran["teacher"] = teacher_pathway(distiller.frozen_teacher, batch)
        if Need.SWITCH in needs:
            with clock.phase("switch pathway"):
                ran["switch"] = switch_pathway(distiller.frozen_teacher, batch, features["switch"])
        with clock.phase("heads and losses"):
            loss = distiller.objective(distiller.kept_views(batch, ran), counts, 0, distiller.logits_gib).loss
        del ran, features
    with clock.phase("backward"):
        loss.backward()
    with clock.phase("clipping and optimizer"):
        torch.nn.utils.clip_grad_norm_([p for p in distiller.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def dry_run(module: SwitchKD, plan: Plan, precision: str, device: torch.device, batch_size: int, shards: Shards) -> str:
    """Runs the steps, and reports on them and on the whole recipe.

    Args:
        module: the recipe's, its models not loaded.
        plan: how much.
        precision: the trainer's.
        device: what the steps run on.
        batch_size: records at once.
        shards: of a process in the real run.

    Raises:
        UserError: a model's sizes are not known, or the two do not fit each other.
    """
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision)
    clock, began = Clock(device), time.perf_counter()
    distiller = made_pair(module, dtype, device)
    optimizer = torch.optim.AdamW(parameter_groups(distiller, module.lr, module.weight_decay), betas=module.betas)
    shape = Geometry(batch_size, distiller.student.feature_space.tokens + plan.text, 1, plan.answer)
    made = time.perf_counter() - began
    batch = made_up(distiller.student, shape, device)
    for _ in tqdm(range(plan.steps), desc="dry-run", unit="step"):
        one_step(distiller, batch, optimizer, clock, autocast=precision == "bf16-mixed")
    total, most = sum(clock.seconds.values()), peak_memory(device.type) / GIB
    cost = step_cost(distiller).total(
        batch_size * shape.tokens, batch_size * shape.tokens**2, batch_size, batch_size * plan.answer
    )
    recomputed: dict[str, set[Part]] = {
        name: set(spec.activation_checkpointing) if spec else set()
        for name, spec in (("student", module.student_spec), ("teacher", module.teacher_spec))
    }
    size = 2 if precision.startswith("bf16") else 4
    here = step_memory(distiller, shape, size, recomputed, device=device.type)
    there = step_memory(distiller, shape, size, recomputed, shards, "cuda")
    width = max(map(len, [*clock.seconds, *here]))
    lines = [
        f"\n{_named(distiller)}, {batch_size} × {shape.tokens} tokens ({plan.answer} supervised), {precision}",
        f"made in {made:.0f} s; the last of {plan.steps} steps, and memory held after each phase:",
        *(f"  {n:{width}}  {s:8.2f} s  {clock.held[n]:7.2f} GiB" for n, s in clock.seconds.items()),
        f"  {'all':{width}}  {total:8.2f} s  {most:7.2f} GiB at the peak of the process",
        f"  {cost / 1e12:.1f} TFLOP a step, {cost / total / 1e12:.2f} TFLOP/s",
        *_estimate(plan, here, there, shards, cost / batch_size, width),
    ]
    return "\n".join(lines)


def _estimate(
    plan: Plan, here: dict[str, float], there: dict[str, float], shards: Shards, cost: float, width: int
) -> list[str]:
    gib, tflops = HARDWARE[plan.hardware]
    needed = sum(there.values()) / GIB
    fits = "fits" if needed < ROOM * gib else "does NOT fit: a smaller data.batch_size, or TRAINER=fsdp2"
    hours = cost * plan.samples / (plan.devices * tflops * 1e12 * SHARE_OF_PEAK) / 3600
    return [
        f"\nmemory by arithmetic: here, and on each of {plan.devices} × {plan.hardware} ({shards.processes} shards)",
        *(f"  {n:{width}}  {b / GIB:8.2f} GiB  {there[n] / GIB:7.2f} GiB" for n, b in here.items()),
        f"  {'all':{width}}  {sum(here.values()) / GIB:8.2f} GiB  {needed:7.2f} GiB of {gib}: {fits}",
        f"\n{plan.samples:,} records on {plan.devices} × {plan.hardware}: about {hours:.1f} hours "
        f"at {SHARE_OF_PEAK:.0%} of {tflops:.0f} TFLOP/s",
    ]


def _named(distiller: Distiller) -> str:
    def billions(vlm: VLMAdapter) -> str:
        return f"{sum(p.numel() for p in vlm.parameters()) / 1e9:.2f} B"

    teacher = f" ← teacher {billions(distiller.frozen_teacher)}" if distiller.teacher is not None else ""
    return f"student {billions(distiller.student)}{teacher}"
