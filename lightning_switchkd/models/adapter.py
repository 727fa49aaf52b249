"""One vision-language model as three parts and a head: vision encoder, projector, language model.

A model family joins by one subclass of :class:`VLMAdapter` and one line in ``FAMILIES``; nothing else in the package knows
which family it is dealing with.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_switchkd.core.types import Part
from lightning_switchkd.models.head import Head


@dataclass(frozen=True)
class FeatureSpace:
    """What a projector expects of a vision encoder; two models can switch encoders only if all of it is equal.

    Attributes:
        width: Channels of one image feature.
        tokens: Image features (hence ``<image>`` ids) per image.
        layer: Hidden state of the vision tower that is used; -2 is the output of the last layer but one.
        strategy: ``default`` drops the class token, ``full`` keeps every position.
    """

    width: int
    tokens: int
    layer: int
    strategy: str


class VLMAdapter(nn.Module, ABC):
    """Interface to one vision-language model.

    Attributes:
        model_types: the ``model_type`` of the configurations this family adapts.
        hf_class: the Hugging Face class that loads them.
        model: the Hugging Face model, whole and exportable.
    """

    model_types: ClassVar[tuple[str, ...]]
    hf_class: ClassVar[type[PreTrainedModel]]
    model: Any  # a PreTrainedModel, whose attributes depend on the family

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    @abstractmethod
    def feature_space(self) -> FeatureSpace:
        """The space that :meth:`encode_image` writes and :meth:`project` reads."""

    @abstractmethod
    def parts(self) -> dict[Part, list[nn.Module]]:
        """The modules of each part; together they hold every parameter that a training step can reach."""

    @abstractmethod
    def blocks(self, part: Part) -> list[nn.Module]:
        """The repeated layers of a part that run in a training step, or its one module: the units of ``vlm.speed``."""

    @abstractmethod
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """``[M, 3, H, W]`` -> vision features ``[M, P, H_v]``."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Vision features ``[M, P, H_v]`` -> image embeddings of the language model's width ``[M, P, H]``."""

    @abstractmethod
    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_embeds: Tensor,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids ``[B, T]`` with image embeddings in their places -> final hidden states ``[B, T, H]``.

        Where records are packed (no mask), `position_ids` restart at each: no token sees another record's.
        """

    @property
    @abstractmethod
    def head(self) -> Head:
        """Hidden states ``[..., H]`` -> logits ``[..., V]`` over the whole head, padding columns included."""

    @abstractmethod
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor, max_new_tokens: int, stop_ids: list[int]
    ) -> Tensor:
        """Greedy continuation ``[B, <= max_new_tokens]`` of left-padded prompts; after a stop id come only stop ids."""

    @property
    @abstractmethod
    def head_size(self) -> int:
        """Columns V of the head. Tokenizers are smaller: the columns beyond their ids are padding."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """The id that stands in ``input_ids`` for one image feature."""

    @property
    @abstractmethod
    def language_model(self) -> PreTrainedModel:
        """The decoder, without embeddings of images and without head."""

    @property
    def width(self) -> int:
        """H of the language model's hidden states."""
        return int(self.language_model.config.hidden_size)

    @property
    def attention_heads(self) -> int:
        """Query heads of a layer of the language model."""
        return int(self.language_model.config.num_attention_heads)

    @property
    def attention(self) -> str:
        """The attention kernel of the language model, by its name in transformers."""
        return str(self.language_model.config._attn_implementation)

    def part_parameters(self, part: Part) -> list[nn.Parameter]:
        """Parameters of one part, in a fixed order."""
        return [p for module in self.parts()[part] for p in module.parameters()]

    def freeze(self, parts: Iterable[Part]) -> None:
        """Leaves some parts as they are."""
        for part in parts:
            for parameter in self.part_parameters(part):
                parameter.requires_grad_(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Buffers keep their dtype, as in Hugging Face's loading: rotary frequencies rounded to bfloat16 turn a token
        # 4,000 places on by up to 3.9 radians too far.
        buffers = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in self.named_buffers():
            if moved.dtype != buffers[name].dtype:
                owner, _, own_name = name.rpartition(".")
                setattr(self.get_submodule(owner), own_name, buffers[name].to(moved.device))
        return self


def fingerprint(vlm: VLMAdapter, samples: int = 256) -> str:
    """A short hash of a model's weights: every tensor's name, shape and up to ``samples`` evenly spaced values."""
    digest = hashlib.sha256()
    for name, tensor in vlm.model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // samples)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


class FrozenTeacher(nn.Module):
    """Keeps a teacher as it is: always in eval mode, without gradients, in the dtype it was loaded in.

    Device moves go through; a change of dtype (Lightning's ``bf16-true`` casts whole modules) does not.
    """

    def __init__(self, vlm: VLMAdapter) -> None:
        super().__init__()
        self.vlm = vlm
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        return super().train(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        return super()._apply(keep_dtype(fn), recurse)


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``nn.Module._apply`` is given, without its changes of dtype: moves go through, casts do not."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
