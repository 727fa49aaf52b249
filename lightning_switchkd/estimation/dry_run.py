"""Dry run: a few steps of a recipe at full size on random data, and an estimate of the whole run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.profiling import memory_in_use, peak_memory, synchronized_time
from lightning_switchkd.core.types import IGNORE_INDEX, Batch, Counts, Part
from lightning_switchkd.distillation.checks import check_pair
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.distillation.flops import step_cost
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
"""Memory in GiB and dense bf16 TFLOP/s, from the vendors' data sheets."""

UTILIZATION = 0.35
"""Fraction of the peak TFLOP/s that training usually reaches."""

GIB = 2**30
USABLE_MEMORY = 0.92
"""Fraction of a GPU's memory that PyTorch can use."""


@dataclass(frozen=True)
class Plan:
    """The steps to run and the run to estimate.

    Attributes:
        steps: Number of steps. The last step is reported.
        text: Number of text tokens in a sample, in addition to its image tokens.
        answer: Number of supervised tokens in a sample, out of ``text``.
        num_samples: Number of samples in the whole run.
        hardware: GPU to estimate for, a key of ``HARDWARE``.
        devices: Number of GPUs.
    """

    steps: int = 2
    text: int = 160
    answer: int = 96
    num_samples: int = 665_298
    hardware: str = "a100-80g"
    devices: int = 8

    def __post_init__(self) -> None:
        """Check the values."""
        if self.hardware not in HARDWARE:
            raise UserError(f"Unknown --hardware '{self.hardware}'. Choose one of {', '.join(HARDWARE)}.")
        if not 0 < self.answer < self.text:
            raise UserError(f"--answer must be between 0 and --text ({self.text}), got {self.answer}. Set it to less.")
        for name in ("steps", "devices", "num_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}. Set it to 1 or more.")


@dataclass
class PhaseClock:
    """Time and memory of each phase of a step.

    Attributes:
        device: The device that the steps run on.
        seconds: Time by phase, of the last step.
        memory: Memory in use after each phase, in GiB.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the phase that runs inside this context."""
        start = synchronized_time(self.device.type)
        yield
        self.seconds[name] = synchronized_time(self.device.type) - start
        self.memory[name] = memory_in_use(self.device.type) / GIB


def dry_run(module: SwitchKD, plan: Plan, precision: str, device: torch.device, batch_size: int, shards: Shards) -> str:
    """Run a few steps, and report their cost and an estimate of the whole run.

    Args:
        module: The recipe's module. Its models are not loaded.
        plan: The steps to run and the run to estimate.
        precision: The trainer's precision.
        device: The device that the steps run on.
        batch_size: Samples in a micro-batch.
        shards: The sharding of the whole run.

    Raises:
        UserError: A model's sizes are unknown, or student and teacher do not match.
    """
    start = time.perf_counter()
    clock = PhaseClock(device)
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision)
    distiller = random_pair(module, dtype, device)
    optimizer = torch.optim.AdamW(parameter_groups(distiller, module.lr, module.weight_decay), betas=module.betas)
    shape = Geometry(batch_size, distiller.student.feature_space.tokens + plan.text, 1, plan.answer)
    setup_seconds = time.perf_counter() - start
    batch = random_batch(distiller.student, shape, device)
    for _ in tqdm(range(plan.steps), desc="dry run", unit="step"):
        run_step(distiller, batch, optimizer, clock, autocast=precision == "bf16-mixed")

    step_seconds, peak = sum(clock.seconds.values()), peak_memory(device.type) / GIB
    tokens, pairs, rows = batch_size * shape.tokens, batch_size * shape.tokens**2, batch_size * plan.answer
    flops = step_cost(distiller).total(tokens, pairs, batch_size, rows)
    recomputed: dict[str, set[Part]] = {
        name: set(spec.activation_checkpointing) if spec else set()
        for name, spec in (("student", module.student_spec), ("teacher", module.teacher_spec))
    }
    size = 2 if precision.startswith("bf16") else 4
    here = step_memory(distiller, shape, size, recomputed, device=device.type)
    there = step_memory(distiller, shape, size, recomputed, shards, "cuda")
    width = max(map(len, [*clock.seconds, *here]))
    phases = [f"  {n:{width}}  {s:8.2f} s  {clock.memory[n]:7.2f} GiB" for n, s in clock.seconds.items()]
    lines = [
        f"\n{_sizes(distiller)}, {batch_size} × {shape.tokens} tokens ({plan.answer} supervised), {precision}",
        f"Models created in {setup_seconds:.0f} s. Last of {plan.steps} steps, and memory in use after each phase:",
        *phases,
        f"  {'total':{width}}  {step_seconds:8.2f} s  {peak:7.2f} GiB peak of the process",
        f"  {flops / 1e12:.1f} TFLOP per step, {flops / step_seconds / 1e12:.2f} TFLOP/s",
        *_estimate(plan, here, there, shards, flops / batch_size, width),
    ]
    return "\n".join(lines)


def random_pair(module: SwitchKD, dtype: torch.dtype | None, device: torch.device) -> Distiller:
    """Create the module's models with random weights, and its objective.

    Args:
        module: The recipe's module.
        dtype: Dtype of the student. None takes the dtype of its settings.
        device: The device of the models.
    """
    student = random_model(module.student_spec, "student", dtype or module.student_spec.torch_dtype, device)
    student.freeze(module.freeze_parts)
    teacher = None
    if module.teacher_spec is not None and Need.TEACHER in module.objective.needs:
        teacher = random_model(module.teacher_spec, "teacher", module.teacher_spec.torch_dtype, device)
    vocabulary = min(vlm.head_size for vlm in (student, teacher) if vlm is not None)
    check_pair(student, teacher, module.objective.needs, vocabulary)
    return Distiller(student, teacher, module.objective, vocabulary, module.logits_gib).train()


def random_batch(student: VLMAdapter, shape: Geometry, device: torch.device) -> Batch:
    """Create random samples: images first, then a question, then an answer."""
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


def run_step(
    distiller: Distiller, batch: Batch, optimizer: torch.optim.Optimizer, clock: PhaseClock, autocast: bool
) -> None:
    """Run forward, backward and update, and measure each phase."""
    with torch.autocast(clock.device.type, torch.bfloat16, enabled=autocast):
        batch.pixel_values = batch.pixel_values.to(next(distiller.student.parameters()).dtype)
        loss = distiller(batch, batch.counts.tensor(clock.device), 0, timer=clock.phase).loss
    with clock.phase("backward"):
        loss.backward()
    with clock.phase("clipping and optimizer"):
        torch.nn.utils.clip_grad_norm_([p for p in distiller.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _estimate(
    plan: Plan, here: dict[str, float], there: dict[str, float], shards: Shards, flops: float, width: int
) -> list[str]:
    gib, tflops = HARDWARE[plan.hardware]
    needed = sum(there.values()) / GIB
    fits = needed < USABLE_MEMORY * gib
    verdict = "fits" if fits else "does NOT fit. Lower data.batch_size or use TRAINER=fsdp2"
    hours = flops * plan.num_samples / (plan.devices * tflops * 1e12 * UTILIZATION) / 3600
    return [
        f"\nEstimated memory: here, and on each of {plan.devices} × {plan.hardware} ({shards.processes} shards)",
        *(f"  {n:{width}}  {b / GIB:8.2f} GiB  {there[n] / GIB:7.2f} GiB" for n, b in here.items()),
        f"  {'total':{width}}  {sum(here.values()) / GIB:8.2f} GiB  {needed:7.2f} GiB of {gib}: {verdict}",
        f"\n{plan.num_samples:,} samples on {plan.devices} × {plan.hardware}: about {hours:.1f} hours "
        f"at {UTILIZATION:.0%} of {tflops:.0f} TFLOP/s",
    ]


def _sizes(distiller: Distiller) -> str:
    def billions(vlm: VLMAdapter) -> str:
        return f"{sum(p.numel() for p in vlm.parameters()) / 1e9:.2f} B"

    teacher = f" ← teacher {billions(distiller.frozen_teacher)}" if distiller.teacher is not None else ""
    return f"student {billions(distiller.student)}{teacher}"
