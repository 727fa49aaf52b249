"""The parts of an objective: loss terms, what they read, and what their sums are divided by."""

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
"""Logits at supervised tokens, or at image tokens."""


class Need(Flag):
    """The inputs of a term. They decide which pathways run, what is kept, and which checks of the pair apply."""

    STUDENT = 0
    TEACHER = auto()
    SWITCH = auto()
    IMAGE_TOKENS = auto()
    IMAGE_EMBEDS = auto()
    FIRST_ATTENTION = auto()


@dataclass(frozen=True)
class ObjectiveInputs:
    """The pathways' results for a micro-batch, as far as the objective needs them. Images in placeholder order.

    Attributes:
        answer_tokens: Hidden states at supervised tokens.
        heads: Each pathway's output head.
        image_tokens: Hidden states at the ``M · P`` image tokens (``Need.IMAGE_TOKENS``).
        image_embeds: The projector's output ``[M, P, H]`` for each image (``Need.IMAGE_EMBEDS``).
        attention: Attention of the first decoder layer from text tokens to an image: one ``[heads, Q, P]`` per image
            (``Need.FIRST_ATTENTION``).
        tokens_per_image: P.
    """

    answer_tokens: SupervisedTokens
    heads: Heads
    image_tokens: SupervisedTokens | None = None
    image_embeds: Mapping[Pathway, Tensor] = field(default_factory=dict)
    attention: Mapping[Pathway, list[Tensor]] = field(default_factory=dict)
    tokens_per_image: int = 0

    def tokens(self, kind: Kind) -> SupervisedTokens:
        """Return the tokens of a kind."""
        tokens = self.answer_tokens if kind == "answer" else self.image_tokens
        assert tokens is not None, "an objective declares which tokens it needs"
        return tokens


class LanguageModel(Protocol):
    """The sizes that an adapter is built for."""

    @property
    def width(self) -> int:
        """H of its hidden states."""

    @property
    def attention_heads(self) -> int:
        """Query heads of a layer."""


class LossTerm(nn.Module, ABC):
    """A loss. It may own adapters, which are optimized and saved like any part.

    Attributes:
        needs: What the term reads besides the student's tokens.
        unit: What its sum is divided by, over the whole optimizer step. ``visual_token`` excludes text-only samples.
    """

    needs: Need = Need.STUDENT
    unit: Unit

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        """Create the adapters, once the models are known."""


class TokenLoss(LossTerm):
    """A loss on the logits of tokens, called chunk by chunk.

    Args:
        pathway: The pathway whose logits learn. For the switch pathway, only samples with an image count.
        kind: Which tokens.
    """

    def __init__(self, pathway: Pathway = "student", kind: Kind = "answer") -> None:
        super().__init__()
        self.pathway, self.kind = pathway, kind
        self.unit = "image_token" if kind == "image" else "visual_token" if pathway == "switch" else "token"
        self.needs = (Need.SWITCH if pathway == "switch" else Need.STUDENT) | (
            Need.IMAGE_TOKENS if kind == "image" else Need.STUDENT
        )

    @abstractmethod
    def forward(self, chunk: LogitsChunk) -> Tensor:
        """Compute ``[n]`` nats, one value per token of the chunk."""

    def statistics(self, chunk: LogitsChunk) -> Statistics:
        """Describe the tokens beyond the loss, from logits that exist already: ``[n]`` each."""
        return {}


class FeatureLoss(LossTerm):
    """A loss on small tensors, called once per micro-batch, outside of autocast, with ordinary autograd."""

    @abstractmethod
    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        """Compute the sum over the micro-batch's units, a scalar.

        Without units the sum is 0, and adapters still take part in it: every rank has to use every parameter.
        """


class CrossEntropy(TokenLoss):
    """Next-token cross-entropy over the student's whole head, as Hugging Face computes it."""

    def forward(self, chunk: LogitsChunk) -> Tensor:
        """Compute ``[n]`` nats."""
        return chunk.log_normalizer("student") - chunk.logits_at("student", chunk.targets[:, None])[:, 0]
