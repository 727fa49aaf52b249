"""Arithmetic of a training step, from the sizes of the models: what model FLOPs utilisation is counted by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lightning_switchkd.core.types import PARTS, Part
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.objectives.terms import Need


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of forward and backward, by what they grow with.

    Attributes:
        per_token: for each real token of a record, image tokens included.
        per_token_pair: for each pair of tokens of one record (attention; T² a record).
        per_image: for each image.
        per_row: for each supervised row (the heads).
    """

    per_token: float
    per_token_pair: float
    per_image: float
    per_row: float

    def total(self, tokens: float, token_pairs: float, images: float, rows: float) -> float:
        """Operations of a step of so many units."""
        return (
            self.per_token * tokens + self.per_token_pair * token_pairs + self.per_image * images + self.per_row * rows
        )


def step_cost(distiller: Distiller) -> StepCost:
    """Cost of one step, by the usual convention: a multiply-add is two operations, a backward through a layer once the
    forward for its input and once for its weights, where they are needed; recomputation and padding do not count.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, for all three pathways.
    """
    student, needs = distiller.student, distiller.objective.needs
    trains = {part: any(p.requires_grad for p in student.part_parameters(part)) for part in PARTS}
    reaches_projector = trains["vision"]  # whether a gradient has to pass through a part to what lies before it
    reaches_lm = reaches_projector or trains["projector"] or trains["lm"]  # its embeddings train with it
    passes: list[tuple[VLMAdapter, Part | Literal["head"], float]] = [
        (student, "vision", 1 + 2 * trains["vision"]),
        (student, "projector", 1 + reaches_projector + trains["projector"]),
        (student, "lm", 1 + reaches_lm + trains["lm"]),
        (student, "head", 1 + reaches_lm + trains["lm"]),
    ]
    if Need.TEACHER in needs:
        teacher = distiller.frozen_teacher
        passes += [(teacher, "vision", 1), (teacher, "projector", 1), (teacher, "lm", 1), (teacher, "head", 1)]
        if Need.SWITCH in needs:  # few of its logits have a gradient: the way back through the head costs nothing
            back = 1 + reaches_projector
            passes += [(teacher, "projector", back), (teacher, "lm", back), (teacher, "head", 1)]
    cost = dict.fromkeys(("token", "pair", "image", "row"), 0.0)
    for vlm, part, times in passes:
        for unit, operations in _forward(vlm, part).items():
            # attention multiplies no weights: its backward is twice its forward, wherever a gradient passes
            operations *= 3 if unit == "pair" and times > 1 else times
            cost[unit] += operations
            if unit == "row" and Need.IMAGE_TOKENS in needs:
                cost["image"] += student.feature_space.tokens * operations
    return StepCost(cost["token"], cost["pair"], cost["image"], cost["row"])


def _forward(vlm: VLMAdapter, part: Part | Literal["head"]) -> dict[str, float]:
    """Operations of one forward through a part, by unit."""
    config = vlm.model.config
    if part == "vision":
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        positions = patches + (vision.model_type == "clip_vision_model")
        layers = len(vlm.parts()["vision"]) - 1 - (vision.model_type == "clip_vision_model")
        stem = 2.0 * patches * sum(p.weight.numel() for p in _matmuls(vlm.parts()[part][:1]))
        blocks = 2.0 * positions * sum(p.weight.numel() for p in _matmuls(vlm.parts()[part][1:]))
        return {"image": stem + blocks + 4.0 * layers * positions**2 * vision.hidden_size}
    if part == "projector":
        return {"image": 2.0 * vlm.feature_space.tokens * sum(p.weight.numel() for p in _matmuls(vlm.parts()[part]))}
    body, head = vlm.parts()["lm"]
    if part == "head":
        return {"row": 2.0 * sum(p.weight.numel() for p in _matmuls([head]))}
    text = config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {
        "token": 2.0 * sum(p.weight.numel() for p in _matmuls([body])),
        "pair": 4.0 * text.num_hidden_layers * text.num_attention_heads * head_dim,
    }


def _matmuls(modules: list[nn.Module]) -> list[nn.Linear | nn.Conv2d]:
    return [m for module in modules for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
