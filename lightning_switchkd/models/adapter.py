"""The interface between a vision-language model and the rest of the package.

A model has three parts and a head: vision encoder, projector, language model, output head. To support another model
family, write a subclass of :class:`VLMAdapter` and add it to ``FAMILIES`` (``models/families.py``).
docs/how-to/add-a-model-family.md lists the few other files that know a family. Axis letters of shapes are explained in
``core/types.py``.
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
    """The image features that a projector expects. Two models can switch vision encoders only if all fields agree.

    Attributes:
        width: Channels of one image feature (H_v).
        tokens: Image features, and so ``<image>`` ids, for each image (P).
        layer: Hidden state of the vision encoder that is used. -2 is the output of the second to last layer.
        strategy: ``default`` drops the class token, ``full`` keeps every position.
    """

    width: int
    tokens: int
    layer: int
    strategy: str


class VLMAdapter(nn.Module, ABC):
    """One vision-language model behind a common interface.

    Attributes:
        model_types: The ``model_type`` of the configurations that this family adapts.
        hf_class: The Hugging Face class that loads them.
        model: The complete Hugging Face model, ready to be exported.
    """

    model_types: ClassVar[tuple[str, ...]]
    hf_class: ClassVar[type[PreTrainedModel]]
    model: Any  # a PreTrainedModel, whose attributes depend on the family

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    # -- forward -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Encode images ``[M, 3, height, width]`` into vision features ``[M, P, H_v]``."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Project vision features ``[M, P, H_v]`` into image embeddings ``[M, P, H]`` for the language model."""

    @abstractmethod
    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_embeds: Tensor,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Run the language model, with image embeddings in place of the image tokens.

        Args:
            input_ids: ``[B, T]``, packed ``[1, T]``.
            attention_mask: ``[B, T]``. None where samples are packed.
            image_embeds: ``[M, P, H]`` in the order of the image tokens. May end with an unused blank image.
            position_ids: ``[1, T]`` where samples are packed. They restart at every sample, and no token attends to
                another sample.

        Returns:
            Final hidden states ``[B, T, H]``, before the output head.
        """

    @abstractmethod
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor, max_new_tokens: int, stop_ids: list[int]
    ) -> Tensor:
        """Continue left-padded prompts greedily.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``.
            image_embeds: ``[M, P, H]`` in the order of the image tokens.
            max_new_tokens: Longest continuation.
            stop_ids: Ids that end a continuation. The first one pads finished continuations.

        Returns:
            The new tokens ``[B, <= max_new_tokens]``.
        """

    @property
    @abstractmethod
    def head(self) -> Head:
        """The output head: hidden states ``[..., H]`` to logits ``[..., V]``, padding columns included."""

    # -- structure -----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def feature_space(self) -> FeatureSpace:
        """The space that :meth:`encode_image` writes and :meth:`project` reads."""

    @abstractmethod
    def parts(self) -> dict[Part, list[nn.Module]]:
        """Return the modules of each part. Together they hold every parameter that a training step can reach."""

    @abstractmethod
    def blocks(self, part: Part) -> list[nn.Module]:
        """Return the units of ``models/compile.py``: the repeated layers of a part, or its only module."""

    @property
    @abstractmethod
    def language_model(self) -> PreTrainedModel:
        """The decoder, without the output head."""

    @property
    @abstractmethod
    def head_size(self) -> int:
        """Columns V of the head. Tokenizers have fewer ids; the remaining columns are padding."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """The id that stands for one image feature in ``input_ids``."""

    @property
    def width(self) -> int:
        """Width H of the language model's hidden states."""
        return int(self.language_model.config.hidden_size)

    @property
    def attention_heads(self) -> int:
        """Number of query heads in a layer of the language model."""
        return int(self.language_model.config.num_attention_heads)

    @property
    def attention(self) -> str:
        """The attention kernel of the language model, by its name in transformers."""
        return str(self.language_model.config._attn_implementation)

    # -- parameters ----------------------------------------------------------------------------------------------------

    def part_parameters(self, part: Part) -> list[nn.Parameter]:
        """Return the parameters of one part, in a fixed order."""
        return [p for module in self.parts()[part] for p in module.parameters()]

    def freeze(self, parts: Iterable[Part]) -> None:
        """Exclude parts from training."""
        for part in parts:
            for parameter in self.part_parameters(part):
                parameter.requires_grad_(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Buffers keep their dtype, as in Hugging Face's loading. In bfloat16, rounded rotary frequencies would rotate a
        # token at position 4,000 by up to 3.9 radians too far.
        buffers = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in self.named_buffers():
            if moved.dtype != buffers[name].dtype:
                owner, _, own_name = name.rpartition(".")
                setattr(self.get_submodule(owner), own_name, buffers[name].to(moved.device))
        return self


def fingerprint(vlm: VLMAdapter, values_per_tensor: int = 256) -> str:
    """Hash the weights: the name, the shape and up to ``values_per_tensor`` evenly spaced values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in vlm.model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // values_per_tensor)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


class FrozenTeacher(nn.Module):
    """A teacher that never changes: always in eval mode, without gradients, in the dtype it was loaded in.

    The teacher moves between devices, but ignores changes of dtype. Lightning's ``bf16-true`` casts whole modules.
    """

    def __init__(self, vlm: VLMAdapter) -> None:
        super().__init__()
        self.vlm = vlm
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        return super().train(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        return super()._apply(keep_dtype(fn), recurse)


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a function for ``nn.Module._apply`` so that it moves tensors but does not cast them."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
