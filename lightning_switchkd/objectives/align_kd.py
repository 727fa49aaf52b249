"""Align-KD (Feng et al., CVPR 2025, arXiv 2412.01282): first attention from text to image, and projected images.

The paper, not its code: that compares the quadrant of image queries and text keys, which causal attention keeps at 0,
and leaves its adapters out of the optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_switchkd.objectives.base import Objective, nonzero
from lightning_switchkd.objectives.kd import DivergenceLoss
from lightning_switchkd.objectives.terms import FeatureLoss, LanguageModel, Need, ObjectiveInputs


class AdapterLoss(FeatureLoss):
    """Squared errors of what an adapter, trained with the student, makes of the student's view."""

    needs = Need.TEACHER
    adapter: nn.Linear

    def adapted(self, view: Tensor) -> Tensor:
        """The student's view ``[..., student's size]`` in the teacher's size, at least float32."""
        weight = self.adapter.weight
        found: Tensor = self.adapter(view.to(weight.dtype))
        return found.to(torch.promote_types(weight.dtype, torch.float32))

    def nothing(self) -> Tensor:
        """0, to which the adapter still contributes: no rank may leave a parameter out."""
        return 0 * (self.adapter.weight.sum() + self.adapter.bias.sum())


class AttentionLoss(AdapterLoss):
    """First layer's attention of text queries to image keys, student's heads mixed to the teacher's; one per image.

    A value is the mean over the teacher's heads, the text tokens after the image, and its tokens.
    """

    unit = "image"
    needs = Need.TEACHER | Need.FIRST_ATTENTION

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        assert teacher is not None
        self.adapter = nn.Linear(student.attention_heads, teacher.attention_heads)

    def forward(self, views: ObjectiveInputs) -> Tensor:
        found = self.nothing()
        for student, teacher in zip(views.attention["student"], views.attention["teacher"], strict=True):
            if student.shape[1]:  # some text comes after the image
                mixed = self.adapted(student.movedim(0, -1))  # [Q, P, heads]
                found = found + (mixed - teacher.movedim(0, -1)).square().mean()
        return found


class EmbeddingLoss(AdapterLoss):
    """The projector's output against the teacher's, through a trained 1×1 adapter; one value per image token.

    A value is the mean over the teacher's channels.
    """

    unit = "image_token"
    needs = Need.TEACHER | Need.IMAGE_EMBEDS

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        assert teacher is not None
        self.adapter = nn.Linear(student.width, teacher.width)

    def forward(self, views: ObjectiveInputs) -> Tensor:
        return self.nothing() + self.errors(views).sum()

    def errors(self, views: ObjectiveInputs) -> Tensor:
        """``[M, P]`` mean squared errors."""
        return (self.adapted(views.image_embeds["student"]) - views.image_embeds["teacher"]).square().mean(-1)


class FocusLoss(FeatureLoss):
    """The same errors once more at the image tokens that the teacher's text attends to most; one value per image.

    Attention is that of its first layer, averaged over heads and text tokens.

    Args:
        embeds: whose adapter is used.
        tokens: how many of an image's tokens.
    """

    unit = "image"
    needs = Need.TEACHER | Need.IMAGE_EMBEDS | Need.FIRST_ATTENTION

    def __init__(self, embeds: EmbeddingLoss, tokens: int) -> None:
        super().__init__()
        self._embeds = (embeds,)  # in a tuple: its adapter is registered once
        self.tokens = tokens

    def forward(self, views: ObjectiveInputs) -> Tensor:
        errors = self._embeds[0].errors(views)
        found = errors.sum() * 0
        for error, attention in zip(errors, views.attention["teacher"], strict=True):
            if attention.shape[1]:
                most = attention.mean((0, 1)).topk(min(self.tokens, len(error))).indices
                found = found + error[most].mean()
        return found


class AlignKD(Objective):
    """Cross-entropy + forward KL at answers + first attention from text to image + projected images.

    The paper trains projector and language model: freeze the vision encoder (conf/method/). A weight of 0 leaves
    its term out.

    Args:
        text: weight of the divergence at answers.
        attention: weight of the first layer's attention.
        embeds: weight of the projector's output at all image tokens.
        focus: weight of it at those that the text attends to most; without ``embeds`` there is none.
        focus_tokens: how many those are.
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
        projected = EmbeddingLoss()
        super().__init__(
            *nonzero(
                {
                    "text": (text, DivergenceLoss("fkl", temperature)),
                    "attention": (attention, AttentionLoss()),
                    "embeds": (embeds, projected),
                    "focus": (focus if embeds else 0.0, FocusLoss(projected, focus_tokens)),
                }
            )
        )
