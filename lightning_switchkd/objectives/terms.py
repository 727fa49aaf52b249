"""What an objective is made of: terms that say what they need, and what they are counted by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Flag, auto
from typing import Literal, Protocol

from torch import Tensor, nn

from lightning_switchkd.core.types import Counts, Pathway
from lightning_switchkd.losses.logits import Heads, LogitsChunk, Statistics, SupervisedTokens

Unit = Literal["token", "visual_token", "image_token", "image"]
UNITS: tuple[str, ...] = tuple(f.name for f in fields(Counts))
Kind = Literal["answer", "image"]
"""Rows of logits at supervised tokens, or at image tokens."""


class Need(Flag):
    """What a term needs of the step: decides what runs, what is kept of it, and which consistency checks apply."""

    STUDENT = 0
    TEACHER = auto()
    SWITCH = auto()
    IMAGE_TOKENS = auto()
    IMAGE_EMBEDS = auto()
    FIRST_ATTENTION = auto()


@dataclass(frozen=True)
class ObjectiveInputs:
    """What the pathways have made of a micro-batch, as far as the objective needs it. Images in placeholder order.

    Attributes:
        rows: at supervised tokens.
        heads: the pathways' output heads.
        image_tokens: at image tokens, ``M · P`` of them (``Need.IMAGE_TOKENS``).
        image_embeds: what the projector made of each image ``[M, P, H]`` (``Need.IMAGE_EMBEDS``).
        attention: of the first decoder layer, from text tokens to an image's: one ``[heads, Q, P]`` per image
            (``Need.FIRST_ATTENTION``).
        tokens_per_image: P.
    """

    rows: SupervisedTokens
    heads: Heads
    image_tokens: SupervisedTokens | None = None
    image_embeds: Mapping[Pathway, Tensor] = field(default_factory=dict)
    attention: Mapping[Pathway, list[Tensor]] = field(default_factory=dict)
    tokens_per_image: int = 0

    def of(self, kind: Kind) -> SupervisedTokens:
        """The rows of a kind."""
        rows = self.rows if kind == "answer" else self.image_tokens
        assert rows is not None, "an objective says which rows it needs"
        return rows


class LanguageModel(Protocol):
    """What an adapter is made for."""

    @property
    def width(self) -> int:
        """H of its hidden states."""

    @property
    def attention_heads(self) -> int:
        """Query heads of a layer."""


class LossTerm(nn.Module, ABC):
    """A loss. May own adapters: they are optimised and saved like any part.

    Attributes:
        needs: what it reads besides the student's rows.
        unit: what its sum is divided by, over the whole optimizer step. ``visual_token`` leaves text-only records out.
    """

    needs: Need = Need.STUDENT
    unit: Unit

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        """Makes the adapters, once the models are known."""


class TokenLoss(LossTerm):
    """A loss on rows of logits, called chunk by chunk.

    Args:
        side: whose logits learn; of the switch pathway's, only records with an image count.
        kind: which rows.
    """

    def __init__(self, pathway: Pathway = "student", kind: Kind = "answer") -> None:
        super().__init__()
        self.pathway, self.kind = pathway, kind
        self.unit = "image_token" if kind == "image" else "visual_token" if pathway == "switch" else "token"
        self.needs = (Need.SWITCH if pathway == "switch" else Need.STUDENT) | (
            Need.IMAGE_TOKENS if kind == "image" else Need.STUDENT
        )

    @abstractmethod
    def forward(self, rows: LogitsChunk) -> Tensor:
        """``[n]`` nats, one value per row of the chunk."""

    def statistics(self, rows: LogitsChunk) -> Statistics:
        """What there is to tell of the rows beside the loss, from logits that are there anyway; ``[n]`` each."""
        return {}


class FeatureLoss(LossTerm):
    """A loss on small tensors, called once a micro-batch, outside of autocast and by ordinary autograd."""

    @abstractmethod
    def forward(self, views: ObjectiveInputs) -> Tensor:
        """Scalar: the sum over the micro-batch's units; with none of them 0, and adapters still take part in it."""


class CrossEntropy(TokenLoss):
    """Next-token cross-entropy over the student's whole head, as Hugging Face computes it."""

    def forward(self, rows: LogitsChunk) -> Tensor:
        return rows.log_normalizer("student") - rows.logits_at("student", rows.targets[:, None])[:, 0]
