"""LLaVA-KD (Cai et al., ICCV 2025, arXiv 2410.16236): answers, image tokens, and how image tokens relate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.head import Head
from lightning_switchkd.objectives.base import Objective, nonzero
from lightning_switchkd.objectives.kd import DivergenceLoss
from lightning_switchkd.objectives.terms import FeatureLoss, Need, ObjectiveInputs


class RelationLoss(FeatureLoss):
    """RDist: 1 − cos between the self-correlations of an image's tokens in student and teacher. One value per image.

    The self-correlation of logits Z ``[P, V]`` is Z·Zᵀ ``[P, P]``. With Z = HWᵀ + b it follows from the hidden states
    as H(WᵀW)Hᵀ plus the terms of b, so that no logits are computed. Only real token ids take part.

    Raises:
        UserError: A head caps its logits, which are then not linear in the hidden states.
    """

    unit = "image"
    needs = Need.TEACHER | Need.IMAGE_TOKENS

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        """Sum over the images."""
        tokens = inputs.tokens("image")
        student, teacher = (
            self_correlation(
                tokens.hidden[pathway].unflatten(0, (-1, inputs.tokens_per_image)),  # [M, P, H]
                inputs.heads[pathway],
                tokens.vocabulary,
            )
            for pathway in ("student", "teacher")
        )
        return (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))).sum()


def self_correlation(hidden: Tensor, head: Head, vocabulary: int) -> Tensor:
    """Compute Z·Zᵀ of the logits Z = HWᵀ + b of an image's tokens, up to the head's scale, without logits.

    Args:
        hidden: H ``[M, P, H]``.
        head: W and b.
        vocabulary: Number of head columns that are real ids.

    Returns:
        ``[M, P, P]``, at least float32.

    Raises:
        UserError: The head caps its logits.
    """
    if head.softcap is not None:
        raise UserError(
            "LLaVA-KD's relation term needs logits that are linear in the hidden states, but a head caps them "
            f"(final_logit_softcapping={head.softcap}). Drop the term: --model.objective.init_args.relation=0."
        )
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    weight, hidden = head.weight[:vocabulary], hidden.to(dtype)
    gram = (weight.t() @ weight).to(dtype)  # [H, H]
    correlation = hidden @ gram @ hidden.transpose(1, 2)  # [M, P, P]
    if head.bias is not None:
        bias = head.bias[:vocabulary]
        crossed = hidden @ (weight.t() @ bias).to(dtype)  # [M, P]
        correlation = correlation + crossed[:, :, None] + crossed[:, None] + bias.to(dtype).square().sum()
    return correlation


class LLaVAKD(Objective):
    """Cross-entropy + forward KL at answers (MDist-text) and at image tokens (MDist-visual) + RDist.

    The paper's distilled stages train the projector and the language model, so freeze the vision encoder
    (conf/method/llava_kd.yaml). A weight of 0 drops its term.

    Args:
        text: Weight of MDist-text.
        visual: Weight of MDist-visual.
        relation: Weight of RDist.
        temperature: τ of both divergences.
    """

    def __init__(self, text: float = 1.0, visual: float = 1.0, relation: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(
            *nonzero(
                {
                    "text": (text, DivergenceLoss("fkl", temperature)),
                    "visual": (visual, DivergenceLoss("fkl", temperature, kind="image")),
                    "relation": (relation, RelationLoss()),
                }
            )
        )
