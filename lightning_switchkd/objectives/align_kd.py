"""Align-KD (Feng et al., CVPR 2025, arXiv 2412.01282): first attention from text to image, and projected images.

This follows the paper, not its code. The code compares the quadrant of image queries and text keys, which causal
attention keeps at 0, and leaves its adapters out of the optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_switchkd.objectives.base import Objective, nonzero
from lightning_switchkd.objectives.kd import DivergenceLoss
from lightning_switchkd.objectives.terms import FeatureLoss, LanguageModel, Need, ObjectiveInputs


class AdapterLoss(FeatureLoss):
    """Squared errors between the teacher's features and the student's, mapped by a trained adapter."""

    needs = Need.TEACHER
    adapter: nn.Linear

    def adapt(self, features: Tensor) -> Tensor:
        """Map the student's features ``[..., student's size]`` to the teacher's size, in at least float32."""
        weight = self.adapter.weight
        adapted: Tensor = self.adapter(features.to(weight.dtype))
        return adapted.to(torch.promote_types(weight.dtype, torch.float32))

    def zero(self) -> Tensor:
        """Return 0 with a graph to the adapter: no rank may leave a parameter unused."""
        return 0 * (self.adapter.weight.sum() + self.adapter.bias.sum())


class AttentionLoss(AdapterLoss):
    """The first layer's attention of text queries to image keys. One value per image.

    The student's heads are mapped to the teacher's. The value is the mean over the teacher's heads, the text tokens
    after the image, and the image tokens.
    """

    unit = "image"
    needs = Need.TEACHER | Need.FIRST_ATTENTION

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        """Create the adapter between the heads."""
        assert teacher is not None
        self.adapter = nn.Linear(student.attention_heads, teacher.attention_heads)

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        """Sum over the images."""
        total = self.zero()
        for student, teacher in zip(inputs.attention["student"], inputs.attention["teacher"], strict=True):
            if student.shape[1]:  # some text follows the image
                mapped = self.adapt(student.movedim(0, -1))  # [Q, P, heads]
                total = total + (mapped - teacher.movedim(0, -1)).square().mean()
        return total


class EmbeddingLoss(AdapterLoss):
    """The projector's output against the teacher's, through a trained 1×1 adapter. One value per image token.

    The value is the mean over the teacher's channels.
    """

    unit = "image_token"
    needs = Need.TEACHER | Need.IMAGE_EMBEDS

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        """Create the adapter between the widths."""
        assert teacher is not None
        self.adapter = nn.Linear(student.width, teacher.width)

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        """Sum over the image tokens."""
        return self.zero() + self.errors(inputs).sum()

    def errors(self, inputs: ObjectiveInputs) -> Tensor:
        """Compute ``[M, P]`` mean squared errors."""
        return (self.adapt(inputs.image_embeds["student"]) - inputs.image_embeds["teacher"]).square().mean(-1)


class FocusLoss(FeatureLoss):
    """The errors of :class:`EmbeddingLoss` at the image tokens that the teacher attends to most. One value per image.

    Attention is the first layer's, averaged over heads and text tokens.

    Args:
        embeddings: The term whose adapter is used.
        tokens: How many of an image's tokens.
    """

    unit = "image"
    needs = Need.TEACHER | Need.IMAGE_EMBEDS | Need.FIRST_ATTENTION

    def __init__(self, embeddings: EmbeddingLoss, tokens: int) -> None:
        super().__init__()
        self._embeddings = (embeddings,)  # in a tuple, so that the adapter is registered once
        self.tokens = tokens

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        """Sum over the images."""
        errors = self._embeddings[0].errors(inputs)  # [M, P]
        total = errors.sum() * 0
        for error, attention in zip(errors, inputs.attention["teacher"], strict=True):
            if attention.shape[1]:
                top = attention.mean((0, 1)).topk(min(self.tokens, len(error))).indices
                total = total + error[top].mean()
        return total


class AlignKD(Objective):
    """Cross-entropy + forward KL at answers + first attention from text to image + projected images.

    The paper trains the projector and the language model, so freeze the vision encoder (conf/method/align_kd.yaml). A
    weight of 0 drops its term.

    Args:
        text: Weight of the divergence at answers.
        attention: Weight of the first layer's attention.
        embeds: Weight of the projector's output at all image tokens.
        focus: Weight of the projector's output at the image tokens attended to most. Needs ``embeds``.
        focus_tokens: Number of those image tokens.
        temperature: τ of the divergence.
    """

    def __init__(
        self,
        text: float = 1.0,
        attention: float = 1.0,
        embeds: float = 1.0,
        focus: float = 1.0,
        focus_tokens: int = 16,
        temperature: float = 1.0,
    ) -> None:
        embeddings = EmbeddingLoss()
        super().__init__(
            *nonzero(
                {
                    "text": (text, DivergenceLoss("fkl", temperature)),
                    "attention": (attention, AttentionLoss()),
                    "embeds": (embeds, embeddings),
                    "focus": (focus if embeds else 0.0, FocusLoss(embeddings, focus_tokens)),
                }
            )
        )
