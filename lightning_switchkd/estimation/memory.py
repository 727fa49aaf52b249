"""Arithmetic of a training step's memory, from the sizes of the models (docs/scaling.md)."""

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


@dataclass(frozen=True)
class Geometry:
    """One process's micro-batch.

    Attributes:
        records: in it.
        tokens: of a record, image tokens included.
        images: of a record.
        rows: supervised tokens of a record.
    """

    samples: int
    tokens: int
    images: int
    rows: int


@dataclass(frozen=True)
class Shards:
    """How FSDP2 divides blocks and optimizer.

    Attributes:
        processes: over which; 1 for one process, and for DDP, which shards nothing.
        teacher: whether the teacher's blocks are divided as well.
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
    """Bytes at the peak of a step on one process, by what takes them.

    Args:
        distiller: the pair.
        shape: of a micro-batch.
        compute_bytes: of a number that blocks compute with (2 for bf16, mixed or not).
        recomputed: parts under ``activation_checkpointing``, of ``student`` and ``teacher``.
        shards: of what is the same in every process.
        device: for the size of a chunk of logits.
    """
    student, needs = distiller.student, distiller.objective.needs
    processes = shards.processes
    trained = [p for p in [*student.parameters(), *distiller.objective.parameters()] if p.requires_grad]
    share = _share(student, processes)
    found = {
        "student weights": sum(p.numel() * p.element_size() / share[id(p)] for p in student.parameters()),
        "gradients": sum(p.numel() * p.element_size() / share.get(id(p), 1) for p in trained),
        "optimizer": ADAMW_STATES * sum(p.numel() * p.element_size() / processes for p in trained),
    }
    if distiller.teacher is not None:
        share = _share(distiller.teacher.vlm, processes if shards.teacher else 1)
        parameters = distiller.teacher.parameters()
        found["teacher weights"] = sum(p.numel() * p.element_size() / share[id(p)] for p in parameters)
    trains_vision = any(p.requires_grad for p in student.part_parameters("vision"))
    kept = _kept(student, shape, compute_bytes, recomputed["student"], trains_vision)
    if Need.SWITCH in needs:
        kept += _lm_kept(distiller.frozen_teacher, shape, compute_bytes, "lm" in recomputed["teacher"])
    found["activations"] = kept
    cast = {
        id(p): p.numel() for part in PARTS if part not in recomputed["student"] for p in student.part_parameters(part)
    }
    cast[id(student.head.weight)] = student.head.weight.numel()
    wider = student.head.weight.element_size() > compute_bytes
    found["autocast's copies"] = float(compute_bytes * sum(cast.values()) if wider else 0)
    widths = [student.width, *([distiller.frozen_teacher.width] * 2 if Need.TEACHER in needs else [])]
    found["rows"] = 2.0 * 4 * shape.samples * shape.rows * sum(widths)
    gib = LOGITS_GIB[device] if distiller.logits_gib is None else distiller.logits_gib
    row = 4.0 * student.head_size * len(widths)
    found["logits"] = 2.5 * min(gib * 2**30, shape.samples * shape.rows * row)
    return found


def _share(vlm: VLMAdapter, processes: int) -> dict[int, int]:
    """Into how many parts each parameter is divided: those of blocks are, the others are whole in every process."""
    blocks = {id(p) for part in PARTS for block in vlm.blocks(part) for p in block.parameters()}
    return {id(p): processes if id(p) in blocks else 1 for p in vlm.parameters()}


def _kept(vlm: VLMAdapter, shape: Geometry, size: int, recomputed: set[Part], trains_vision: bool) -> float:
    """What the student's blocks keep for their backward."""
    vision: Any = vlm.model.config.vision_config
    positions = int(vision.image_size // vision.patch_size) ** 2
    images, layers, width = shape.samples * shape.images, len(vlm.blocks("vision")), float(vision.hidden_size)
    tower: float = 0.0
    if trains_vision:
        block = images * positions * size * (10 * width + 3.0 * float(vision.intermediate_size))
        inputs = images * positions * size * width * layers
        tower = inputs + block if "vision" in recomputed else layers * block
    projector: float = images * positions * size * 4.0 * vlm.width
    return tower + projector + _lm_kept(vlm, shape, size, "lm" in recomputed)


def _lm_kept(vlm: VLMAdapter, shape: Geometry, size: int, recomputed: bool) -> float:
    """What a language model's blocks keep: only their inputs, and the insides of one at a time, where recomputed."""
    text: Any = vlm.model.config.text_config
    tokens, layers = shape.samples * shape.tokens, int(text.num_hidden_layers)
    width, inner = float(text.hidden_size), float(text.intermediate_size)
    grouped = width * float(text.num_key_value_heads) / float(text.num_attention_heads)
    inside = tokens * (size * (8 * width + 4 * grouped + 5 * inner) + 4 * 2 * width)  # norms count in float32
    inputs = tokens * size * width * layers
    return inputs + inside if recomputed else layers * inside
