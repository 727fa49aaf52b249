"""What decoder layers attend to, read beside whatever attention kernel runs: its queries and keys suffice."""

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
"""Ends the name of an attention implementation that also notes queries and keys."""


@dataclass(frozen=True)
class LayerAttention:
    """Queries and keys of a decoder layer, rotated, as its kernel was given them.

    Attributes:
        query: ``[B, heads, T, d]``.
        key: ``[B, key heads, T, d]``; each serves as many query heads as there are more of those.
        scale: of their products.
        softcap: of the scaled products, where the family has one.
        window: how far back a query sees, where the layer slides.
    """

    query: Tensor
    key: Tensor
    scale: float
    softcap: float | None = None
    window: int | None = None

    def text_to_image(self, batch: Batch, image_token_id: int) -> list[Tensor]:
        """How much of each later text token's attention goes to each token of an image, with gradient.

        Args:
            batch: what the layer has read.
            image_token_id: stands for an image's tokens in the ids.

        Returns:
            one ``[heads, Q, P]`` per image in placeholder order, at least float32: Q real text tokens of its record
            that come after the image (none before it can see it), P image tokens; a query's whole row sums to 1 over
            all that it sees, so a map's rows to less.
        """
        images = int((batch.image_sample >= 0).sum())
        if not images:
            return []
        is_image = batch.input_ids.flatten() == image_token_id
        sample_of, width = batch.sample_of, batch.input_ids.shape[1]
        real = torch.ones_like(is_image) if batch.attention_mask is None else batch.attention_mask.flatten().bool()
        return [
            self._map(image, torch.nonzero((sample_of == sample_of[image[0]]) & real)[:, 0], is_image, width)
            for image in is_image.nonzero()[:, 0].view(images, -1)
        ]

    def _map(self, image: Tensor, tokens: Tensor, is_image: Tensor, width: int) -> Tensor:
        asking = tokens[~is_image[tokens] & (tokens > image[-1])]
        row = int(tokens[0]) // width
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        query = self.query[row, :, asking % width].to(dtype)
        key = self.key[row, :, tokens % width].to(dtype).repeat_interleave(len(query) // self.key.shape[1], 0)
        scores = query @ key.transpose(1, 2) * self.scale  # [heads, Q, tokens of the record]
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        back = asking[:, None] - tokens
        hidden = (back < 0) if self.window is None else (back < 0) | (back >= self.window)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1)[..., torch.searchsorted(tokens, image)]


_seen: list[LayerAttention] | None = None
_every_layer = False


@contextmanager
def noted_attention(every_layer: bool = False) -> Iterator[list[LayerAttention]]:
    """Notes what the first decoder layer of a watched model is given meanwhile, or every layer: one entry a call."""
    global _seen, _every_layer
    found: list[LayerAttention] = []
    _seen, _every_layer = found, every_layer
    try:
        yield found
    finally:
        _seen, _every_layer = None, False


def watch_attention(language_model: PreTrainedModel, name: str) -> None:
    """Has a language model's layers be seen by :func:`noted_attention`; what it computes stays the same.

    Args:
        language_model: decoder of any family that takes its kernels from Hugging Face's registry.
        name: of the model in the settings, for the error.

    Raises:
        UserError: its attention is written out (eager), so that nothing stands between layer and kernel.
    """
    kernel = language_model.config._attn_implementation
    if kernel.endswith(WATCHED):
        return
    if kernel not in ALL_ATTENTION_FUNCTIONS:
        raise UserError(
            f"Its attention is to be read, which the {name}'s implementation ({kernel}) does not "
            f"give away. Set model.{name}.attn_implementation to sdpa."
        )
    AttentionInterface.register(kernel + WATCHED, _noting(ALL_ATTENTION_FUNCTIONS[kernel]))
    AttentionMaskInterface.register(kernel + WATCHED, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    language_model.set_attn_implementation(kernel + WATCHED)


def _noting(attention: Callable[..., Any]) -> Callable[..., Any]:
    def noting(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        if module.layer_idx == 0 or _every_layer:
            _note(module, query, key, kwargs)
        return attention(module, query, key, value, mask, **kwargs)

    return noting


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _note(module: Any, query: Tensor, key: Tensor, settings: dict[str, Any]) -> None:
    if _seen is not None:
        scale = settings.get("scaling") or query.shape[-1] ** -0.5
        _seen.append(LayerAttention(query, key, scale, settings.get("softcap"), settings.get("sliding_window")))
