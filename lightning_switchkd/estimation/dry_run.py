"""Dry run: time, memory and price of a recipe at full size, by arithmetic or from a few measured steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError, check_limits
from lightning_switchkd.core.profiling import memory_in_use, peak_memory, synchronized_time
from lightning_switchkd.core.text import duration, with_prefix
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

Hardware = Literal["rtx4090", "l40s", "a100-40g", "a100-80g", "h100-80g", "h200"]
HARDWARE: dict[Hardware, tuple[int, float]] = {
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

USABLE_MEMORY = 0.92
"""Fraction of a GPU's memory that PyTorch can use."""

INDEPENDENT_OF_BATCH = ("student weights", "gradients", "optimizer", "teacher weights")
"""Entries of the memory that a smaller batch does not change."""

CONSTANT_FIXES = (
    "Weights, gradients and optimizer alone exceed the memory. Use a larger GPU, more GPUs with TRAINER=fsdp2, "
    "model.freeze, or LoRA (model.student.lora)"
)


@dataclass(frozen=True)
class Plan:
    """The run to estimate, and the steps to measure.

    Attributes:
        steps: Number of steps to run on this machine, with random weights and samples. The last step is reported. 0
            runs none and creates no weights.
        text: Number of text tokens in a sample, in addition to its image tokens.
        answer: Number of supervised tokens in a sample, out of ``text``.
        num_samples: Number of samples in the whole run.
        hardware: GPU to estimate for.
        devices: Number of GPUs.
        price: Price of one GPU hour, in any currency.
    """

    steps: int = 0
    text: int = 160
    answer: int = 96
    num_samples: int = 665_298
    hardware: Hardware = "a100-80g"
    devices: int = 8
    price: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.answer < self.text:
            raise UserError(f"--answer must be between 0 and --text ({self.text}), got {self.answer}. Set it to less.")
        lowest = {"steps": 0, "num_samples": 1, "devices": 1, "price": 0}
        values = {f"--{name}": getattr(self, name) for name in lowest}
        check_limits(values, {f"--{name}": (low, math.inf) for name, low in lowest.items()})


@dataclass
class PhaseClock:
    """Time and memory of each phase of a step.

    Attributes:
        device: The device that the steps run on.
        seconds: Time by phase, of the last step.
        memory: Bytes in use after each phase.
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
        self.memory[name] = memory_in_use(self.device.type)


def dry_run(module: SwitchKD, plan: Plan, precision: str, batch_size: int, shards: Shards) -> str:
    """Estimate FLOPs, memory, time and price of a run. With ``plan.steps``, measure steps on this machine as well.

    Args:
        module: The recipe's module. Its models are not loaded.
        plan: The run to estimate, and the steps to measure.
        precision: The trainer's precision.
        batch_size: Samples in a micro-batch.
        shards: The sharding of the whole run.

    Raises:
        UserError: A model's sizes are unknown, or student and teacher do not match.
    """
    device = torch.device("meta" if not plan.steps else "cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision)
    distiller = random_pair(module, dtype, device)
    shape = Geometry(batch_size, distiller.student.feature_space.tokens + plan.text, 1, plan.answer)
    tokens, pairs, rows = batch_size * shape.tokens, batch_size * shape.tokens**2, batch_size * plan.answer
    flops = step_cost(distiller).total(tokens, pairs, batch_size, rows)
    recomputed: dict[str, set[Part]] = {
        name: set(spec.activation_checkpointing) if spec else set()
        for name, spec in (("student", module.student_spec), ("teacher", module.teacher_spec))
    }
    memory = partial(step_memory, distiller, shape, 2 if precision.startswith("bf16") else 4, recomputed)
    lines = [
        f"{_sizes(distiller)}, {batch_size} × {shape.tokens} tokens ({plan.answer} supervised), {precision}",
        f"{with_prefix(flops, 'FLOP')} per step (one micro-batch on one GPU)",
        *_memory_lines(plan, memory(shards, "cuda"), shards),
        *_time_lines(plan, flops / batch_size),
    ]
    if plan.steps:
        groups = parameter_groups(distiller, module.lr, module.weight_decay)
        optimizer, clock = torch.optim.AdamW(groups, betas=module.betas), PhaseClock(device)
        batch = random_batch(distiller.student, shape, device)
        for _ in tqdm(range(plan.steps), desc="dry run", unit="step"):
            run_step(distiller, batch, optimizer, clock, autocast=precision == "bf16-mixed")
        lines += _measured_lines(plan, clock, flops, sum(memory(device=device.type).values()))
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


def _memory_lines(plan: Plan, memory: dict[str, float], shards: Shards) -> list[str]:
    available, needed = HARDWARE[plan.hardware][0], sum(memory.values())
    fits = needed < USABLE_MEMORY * available * 2**30
    constant = sum(memory.get(name, 0) for name in INDEPENDENT_OF_BATCH)
    batch_helps = constant < USABLE_MEMORY * available * 2**30
    fix = "Lower data.batch_size or use TRAINER=fsdp2" if batch_helps else CONSTANT_FIXES
    verdict = "fits" if fits else f"does NOT fit. {fix}"
    sharding = f"sharded over {shards.processes}" if shards.processes > 1 else "not sharded"
    return [
        f"\nMemory of each of {plan.devices} × {plan.hardware}, {sharding}:",
        *(f"  {name:16}{with_prefix(size, 'B'):>11}" for name, size in memory.items() if size),
        f"  {'total':16}{with_prefix(needed, 'B'):>11} of {available} GiB: {verdict}",
    ]


def _time_lines(plan: Plan, flops_per_sample: float) -> list[str]:
    tflops = HARDWARE[plan.hardware][1]
    gpu_seconds = flops_per_sample * plan.num_samples / (tflops * 1e12 * UTILIZATION)
    price = "set --price to the price of a GPU hour"
    if plan.price is not None:
        total = plan.price * gpu_seconds / 3600
        price = f"{'less than 0.01' if total < 0.01 else f'{total:,.2f}'} at {plan.price:,.2f} per GPU hour"
    return [
        f"\n{plan.num_samples:,} samples on {plan.devices} × {plan.hardware}: "
        f"about {duration(gpu_seconds / plan.devices)} at {UTILIZATION:.0%} of {tflops:.0f} TFLOP/s",
        f"Price: {price}",
    ]


def _measured_lines(plan: Plan, clock: PhaseClock, flops: float, estimate: float) -> list[str]:
    total = sum(clock.seconds.values())
    phases = [(name, seconds, clock.memory[name]) for name, seconds in clock.seconds.items()]
    rows = [
        f"  {name:24}{duration(seconds):>14}{with_prefix(memory, 'B'):>12}"
        for name, seconds, memory in [*phases, ("total", total, peak_memory(clock.device.type))]
    ]
    return [
        f"\nMeasured on this machine ({clock.device.type}): step {plan.steps}, and memory in use after each phase",
        *rows[:-1],
        f"{rows[-1]} peak. Estimate: {with_prefix(estimate, 'B')}",
        f"  {with_prefix(flops / total, 'FLOP/s')}",
    ]


def _sizes(distiller: Distiller) -> str:
    def millions(vlm: VLMAdapter) -> str:
        return f"{sum(p.numel() for p in vlm.parameters()) / 1e6:,.1f} M"

    teacher = f" ← teacher {millions(distiller.frozen_teacher)}" if distiller.teacher is not None else ""
    return f"student {millions(distiller.student)}{teacher} parameters"
