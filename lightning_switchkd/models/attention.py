"""Attention maps of decoder layers, computed from the queries and keys that any attention kernel receives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Batch

WATCHED = "_watched"
"""Suffix of an attention implementation that also records queries and keys."""


@dataclass(frozen=True)
class LayerAttention:
    """Queries and keys of one decoder layer, after the rotary embedding, as the kernel receives them.

    Attributes:
        query: ``[B, heads, T, d]``.
        key: ``[B, key heads, T, d]``. Each key head serves ``heads / key heads`` query heads.
        scale: Factor of the products of queries and keys.
        softcap: Cap of the scaled products, if the family has one.
        window: Number of tokens that a query sees backward, in a sliding-window layer.
    """

    query: Tensor
    key: Tensor
    scale: float
    softcap: float | None = None
    window: int | None = None

    def text_to_image(self, batch: Batch, image_token_id: int) -> list[Tensor]:
        """Compute the attention of each later text token to each token of an image, with gradient.

        Args:
            batch: The batch that the layer read.
            image_token_id: The id of image tokens.

        Returns:
            One map ``[heads, Q, P]`` per image in placeholder order, in at least float32. Q counts the real text tokens
            of the sample after the image, because earlier tokens cannot see it. P counts the image's tokens. A query's
            attention sums to 1 over all tokens it sees, so a row of the map sums to less.
        """
        num_images = int((batch.image_sample >= 0).sum())
        if not num_images:
            return []
        is_image = batch.input_ids.flatten() == image_token_id  # [B * T]
        sample_of, length = batch.sample_of, batch.input_ids.shape[1]  # [B * T]
        real = torch.ones_like(is_image) if batch.attention_mask is None else batch.attention_mask.flatten().bool()
        return [
            self._map(image, torch.nonzero((sample_of == sample_of[image[0]]) & real)[:, 0], is_image, length)
            for image in is_image.nonzero()[:, 0].view(num_images, -1)  # [P] positions of one image
        ]

    def _map(self, image: Tensor, tokens: Tensor, is_image: Tensor, length: int) -> Tensor:
        """Compute one image's map from the positions of its tokens and of all real tokens of its sample."""
        text = tokens[~is_image[tokens] & (tokens > image[-1])]  # [Q]
        row = int(tokens[0]) // length
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        query = self.query[row, :, text % length].to(dtype)
        key = self.key[row, :, tokens % length].to(dtype).repeat_interleave(len(query) // self.key.shape[1], 0)
        scores = query @ key.transpose(1, 2) * self.scale  # [heads, Q, tokens of the sample]
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        distance = text[:, None] - tokens  # [Q, tokens of the sample]
        masked = (distance < 0) if self.window is None else (distance < 0) | (distance >= self.window)
        return scores.masked_fill(masked, -torch.inf).softmax(-1)[..., torch.searchsorted(tokens, image)]


_recorded: list[LayerAttention] | None = None
_every_layer = False


@contextmanager
def recorded_attention(every_layer: bool = False) -> Iterator[list[LayerAttention]]:
    """Record queries and keys of the first decoder layer of a watched model, or of every layer: one entry per call."""
    global _recorded, _every_layer
    layers: list[LayerAttention] = []
    _recorded, _every_layer = layers, every_layer
    try:
        yield layers
    finally:
        _recorded, _every_layer = None, False


def watch_attention(language_model: PreTrainedModel, name: str) -> None:
    """Let :func:`recorded_attention` record a language model's layers. The model's output does not change.

    Args:
        language_model: A decoder of any family that takes its kernels from Hugging Face's registry.
        name: Name of the model in the settings, for the error message.

    Raises:
        UserError: The attention is ``eager``: it does not use a registered kernel.
    """
    kernel = language_model.config._attn_implementation
    if kernel.endswith(WATCHED):
        return
    if kernel not in ALL_ATTENTION_FUNCTIONS:
        raise UserError(
            f"The objective reads the {name}'s attention, which the implementation '{kernel}' does not expose. "
            f"Set model.{name}.attn_implementation to sdpa."
        )
    AttentionInterface.register(kernel + WATCHED, _recording(ALL_ATTENTION_FUNCTIONS[kernel]))
    AttentionMaskInterface.register(kernel + WATCHED, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    language_model.set_attn_implementation(kernel + WATCHED)


def _recording(attention: Callable[..., Any]) -> Callable[..., Any]:
    def recording(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        if module.layer_idx == 0 or _every_layer:
            _record(module, query, key, kwargs)
        return attention(module, query, key, value, mask, **kwargs)

    return recording


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _record(module: Any, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
    if _recorded is not None:
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        _recorded.append(LayerAttention(query, key, scale, kwargs.get("softcap"), kwargs.get("sliding_window")))
