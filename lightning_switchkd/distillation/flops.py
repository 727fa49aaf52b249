"""FLOPs of a training step, from a measured forward pass through each part of the models.

Convention (Chowdhery et al. 2022, PaLM, appendix B): a multiply-add counts as two operations. A backward pass through a
layer costs one forward pass for its input and one for its weights, each only where that gradient is needed.
Recomputation and padding do not count.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from lightning_switchkd.core.types import PARTS
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.lora import copy_lora
from lightning_switchkd.objectives.terms import Need

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepCost:
    """FLOPs of forward and backward, by the quantity they grow with.

    Attributes:
        per_token: For each real token of a sample, image tokens included.
        per_token_pair: For each pair of tokens of one sample (attention: T² pairs in a sample of T tokens).
        per_image: For each image.
        per_row: For each supervised token (the heads).
    """

    per_token: float
    per_token_pair: float
    per_image: float
    per_row: float

    def total(self, tokens: float, token_pairs: float, images: float, rows: float) -> float:
        """Return the FLOPs of a step with these many units."""
        return (
            self.per_token * tokens + self.per_token_pair * token_pairs + self.per_image * images + self.per_row * rows
        )


@dataclass(frozen=True)
class ForwardCost:
    """FLOPs of one forward pass through each part of a model.

    Attributes:
        vision: Vision encoder, for each image.
        projector: For each image.
        token: Language model, for each token.
        pair: Attention of the language model, for each pair of tokens.
        head: For each row.
    """

    vision: float
    projector: float
    token: float
    pair: float
    head: float


def step_cost(distiller: Distiller) -> StepCost:
    """Measure the cost of one training step over all pathways.

    A model that does not run on the meta device (mixture of experts, dynamic RoPE) costs NaN, after a warning.
    """
    needs = distiller.objective.needs
    trains = {part: any(p.requires_grad for p in distiller.student.part_parameters(part)) for part in PARTS}
    # A gradient passes through a part if something before the part trains. Embeddings train with the language model.
    through_projector = trains["vision"]
    through_lm = through_projector or trains["projector"] or trains["lm"]

    student = forward_cost(distiller.student)
    lm = 1 + through_lm + trains["lm"]
    per_token = lm * student.token
    # Attention multiplies activations, not weights: its backward costs two forward passes wherever a gradient passes.
    per_pair = (3 if through_lm else 1) * student.pair
    per_image = (1 + 2 * trains["vision"]) * student.vision
    per_image += (1 + through_projector + trains["projector"]) * student.projector
    per_row = lm * student.head
    if Need.TEACHER in needs:
        teacher = forward_cost(distiller.frozen_teacher)
        per_token += teacher.token
        per_pair += teacher.pair
        per_image += teacher.vision + teacher.projector
        per_row += teacher.head
        if Need.SWITCH in needs:  # few logits have a gradient, so the backward pass through the head costs nothing
            per_token += (1 + through_projector) * teacher.token
            per_pair += (3 if through_projector else 1) * teacher.pair
            per_image += (1 + through_projector) * teacher.projector
            per_row += teacher.head
    if Need.IMAGE_TOKENS in needs:  # the heads read image tokens too
        per_image += distiller.student.feature_space.tokens * per_row
    return StepCost(per_token, per_pair, per_image, per_row)


def forward_cost(vlm: VLMAdapter) -> ForwardCost:
    """Measure a forward pass through each part, on a copy without weights.

    The copy takes no memory and no compute. It is built from the configuration, so sharding, compilation and
    recomputation of the real model play no role. Its attention is ``eager``, whose matrix products PyTorch counts on
    every device.
    """
    try:
        return _measure(_meta_copy(vlm))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        log.warning("FLOPs of this %s model are unknown: %s.", vlm.language_model.config.model_type, reason)
        return ForwardCost(*[float("nan")] * 5)


@torch.no_grad()
def _measure(vlm: VLMAdapter) -> ForwardCost:
    size = vlm.model.config.vision_config.image_size
    images = {"pixel_values": torch.empty(1, 3, size, size, device="meta")}
    vision, features = _count(vlm.encode, images)
    projector, _ = _count(vlm.project, features, images)

    def decoder(length: int) -> float:
        ids = torch.zeros(1, length, dtype=torch.int64, device="meta")
        return _count(vlm.decode, ids, torch.ones_like(ids), [])[0]

    n = 16  # decoder(n) = token · n + pair · n²; two lengths give both
    short, long = decoder(n), decoder(2 * n)
    pair = (long - 2 * short) / (2 * n**2)
    head, _ = _count(vlm.head, torch.empty(1, vlm.width, dtype=vlm.head.weight.dtype, device="meta"))
    return ForwardCost(vision, projector, short / n - pair * n, pair, head)


def _count(function: Callable[..., T], *inputs: Any) -> tuple[float, T]:
    with FlopCounterMode(display=False) as counter:
        output = function(*inputs)
    return float(counter.get_total_flops()), output


def _meta_copy(vlm: VLMAdapter) -> VLMAdapter:
    with no_init_weights(), torch.device("meta"):
        config = copy.deepcopy(vlm.model.config)
        clone = type(vlm)(type(vlm.model)._from_config(config, attn_implementation="eager", dtype=torch.float32))
        copy_lora(vlm, clone)
    return clone.eval()
