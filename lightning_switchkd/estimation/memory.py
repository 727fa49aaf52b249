"""Estimate of a training step's memory from the sizes of the models (docs/reference/memory-and-time.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_switchkd.core.types import PARTS, Part
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.losses.chunked import LOGITS_GIB
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.objectives.terms import Need

ADAMW_STATES = 2
"""Numbers that AdamW stores for each trained parameter."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of one process's micro-batch.

    Attributes:
        samples: Number of samples.
        tokens: Tokens of a sample, image tokens included.
        images: Images of a sample.
        rows: Supervised tokens of a sample.
    """

    samples: int
    tokens: int
    images: int
    rows: int


@dataclass(frozen=True)
class Shards:
    """Sharding of blocks and optimizer by FSDP2.

    Attributes:
        processes: Number of processes that share one copy. 1 for a single process and for DDP, which does not shard.
        teacher: Whether the teacher's blocks are sharded too.
    """

    processes: int = 1
    teacher: bool = True


def step_memory(
    distiller: Distiller,
    shape: Geometry,
    compute_bytes: int,
    recomputed: Mapping[str, set[Part]],
    shards: Shards = Shards(),
    device: str = "cpu",
) -> dict[str, float]:
    """Estimate the peak memory of a step on one process, in bytes by purpose.

    Args:
        distiller: Student, teacher and objective.
        shape: Sizes of the micro-batch.
        compute_bytes: Bytes of a number that blocks compute with (2 for bf16, mixed or not).
        recomputed: Parts under ``activation_checkpointing``, of ``student`` and ``teacher``.
        shards: Sharding of weights and optimizer.
        device: ``cpu`` or ``cuda``, for the default size of a chunk of logits.
    """
    student, needs = distiller.student, distiller.objective.needs
    trained = [p for p in [*student.parameters(), *distiller.objective.parameters()] if p.requires_grad]
    divisor = _divisors(student, shards.processes)
    memory = {
        "student weights": sum(p.numel() * p.element_size() / divisor[id(p)] for p in student.parameters()),
        "gradients": sum(p.numel() * p.element_size() / divisor.get(id(p), 1) for p in trained),
        "optimizer": ADAMW_STATES * sum(p.numel() * p.element_size() / shards.processes for p in trained),
    }
    if distiller.teacher is not None:
        divisor = _divisors(distiller.teacher.vlm, shards.processes if shards.teacher else 1)
        parameters = distiller.teacher.parameters()
        memory["teacher weights"] = sum(p.numel() * p.element_size() / divisor[id(p)] for p in parameters)
    trains_vision = any(p.requires_grad for p in student.part_parameters("vision"))
    activations = _activations(student, shape, compute_bytes, recomputed["student"], trains_vision)
    if Need.SWITCH in needs:
        activations += _lm_activations(distiller.frozen_teacher, shape, compute_bytes, "lm" in recomputed["teacher"])
    memory["activations"] = activations
    cast = {
        id(p): p.numel() for part in PARTS if part not in recomputed["student"] for p in student.part_parameters(part)
    }
    cast[id(student.head.weight)] = student.head.weight.numel()
    casts = student.head.weight.element_size() > compute_bytes
    memory["autocast copies"] = float(compute_bytes * sum(cast.values()) if casts else 0)
    widths = [student.width, *([distiller.frozen_teacher.width] * 2 if Need.TEACHER in needs else [])]
    memory["hidden states"] = 2.0 * 4 * shape.samples * shape.rows * sum(widths)
    gib = LOGITS_GIB[device] if distiller.logits_gib is None else distiller.logits_gib
    row_bytes = 4.0 * student.head_size * len(widths)
    memory["logits"] = 2.5 * min(gib * 2**30, shape.samples * shape.rows * row_bytes)
    return memory


def _divisors(vlm: VLMAdapter, processes: int) -> dict[int, int]:
    """Return the number of shards of each parameter: blocks are sharded, other parameters are replicated."""
    blocks = {id(p) for part in PARTS for block in vlm.blocks(part) for p in block.parameters()}
    return {id(p): processes if id(p) in blocks else 1 for p in vlm.parameters()}


def _activations(vlm: VLMAdapter, shape: Geometry, size: int, recomputed: set[Part], trains_vision: bool) -> float:
    """Estimate the activations that the student's blocks keep for their backward pass."""
    vision: Any = vlm.model.config.vision_config
    patches = int(vision.image_size // vision.patch_size) ** 2
    images, layers, width = shape.samples * shape.images, len(vlm.blocks("vision")), float(vision.hidden_size)
    encoder: float = 0.0
    if trains_vision:
        block = images * patches * size * (10 * width + 3.0 * float(vision.intermediate_size))
        inputs = images * patches * size * width * layers
        encoder = inputs + block if "vision" in recomputed else layers * block
    projector: float = images * patches * size * 4.0 * vlm.width
    return encoder + projector + _lm_activations(vlm, shape, size, "lm" in recomputed)


def _lm_activations(vlm: VLMAdapter, shape: Geometry, size: int, recomputed: bool) -> float:
    """Estimate the activations of a language model. Recomputation keeps all inputs and one block's activations."""
    text: Any = vlm.model.config.text_config
    tokens, layers = shape.samples * shape.tokens, int(text.num_hidden_layers)
    width, inner = float(text.hidden_size), float(text.intermediate_size)
    key_width = width * float(text.num_key_value_heads) / float(text.num_attention_heads)
    block = tokens * (size * (8 * width + 4 * key_width + 5 * inner) + 4 * 2 * width)  # norms compute in float32
    inputs = tokens * size * width * layers
    return inputs + block if recomputed else layers * block
