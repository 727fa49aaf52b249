"""Collate processed samples into a `Batch`: right padding or packing, the blank image, the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

from lightning_switchkd.core.labels import count_supervised
from lightning_switchkd.core.types import IGNORE_INDEX, Batch, Counts
from lightning_switchkd.data.order import PADDING_INDEX


@dataclass(frozen=True)
class ProcessedSample:
    """One sample as tensors, ready to be collated.

    Attributes:
        input_ids: ``[T]`` int64.
        labels: ``[T]`` int64, unshifted.
        pixels: For each image processor (the student's, then the teacher's if it has its own), ``[3, H, W]`` float32
            of each image.
        index: Position of the sample in its source.
        sample_id: The sample's own id.
    """

    input_ids: Tensor
    labels: Tensor
    pixels: tuple[tuple[Tensor, ...], ...]
    index: int
    sample_id: str


@dataclass(frozen=True)
class Collator:
    """Collates samples into a `Batch`.

    Attributes:
        pad_id: Fills `input_ids` on the right. Any token works, because the mask is made from lengths.
        image_id: The id of `<image>`.
        blanks: ``[3, H, W]`` for each image processor. Used in a batch without images.
        pad_to_multiple_of: Lengths are rounded up to a multiple, so that kernels and compilers see fewer shapes.
        packing: Put the samples into one row without padding.
    """

    pad_id: int
    image_id: int
    blanks: tuple[Tensor, ...]
    pad_to_multiple_of: int = 8
    packing: bool = False

    def padding_sample(self) -> ProcessedSample:
        """Return a padding sample: one token, no label, no image."""
        return ProcessedSample(
            input_ids=torch.tensor([self.pad_id]),
            labels=torch.tensor([IGNORE_INDEX]),
            pixels=((),) * len(self.blanks),
            index=PADDING_INDEX,
            sample_id="",
        )

    def __call__(self, samples: Sequence[ProcessedSample]) -> Batch:
        """Return the batch. It is its own accumulation window until the stream sets `window`."""
        images = torch.tensor([len(sample.pixels[0]) for sample in samples])  # [B]
        supervised = torch.cat([count_supervised(sample.labels[None]) for sample in samples])  # [B]
        counts = Counts(
            token=int(supervised.sum()),
            visual_token=int(supervised[images > 0].sum()),
            image_token=sum(int((sample.input_ids == self.image_id).sum()) for sample in samples),
            image=int(images.sum()),
        )
        image_sample = torch.arange(len(samples)).repeat_interleave(images)  # [M]
        pixels = [list(chain(*per_sample)) for per_sample in zip(*(sample.pixels for sample in samples), strict=True)]
        pixel_values = [_stack(tensors or [blank]) for tensors, blank in zip(pixels, self.blanks, strict=True)]
        return Batch(
            **(self._packed(samples) if self.packing else self._padded(samples)),
            pixel_values=pixel_values[0],  # [M, 3, H, W]
            image_sample=image_sample if len(image_sample) else torch.tensor([PADDING_INDEX]),
            sample_index=torch.tensor([sample.index for sample in samples]),  # [B]
            counts=counts,
            window=counts,
            pixel_values_teacher=pixel_values[1] if len(pixel_values) > 1 else None,
            sample_ids=tuple(sample.sample_id for sample in samples),
        )

    def _padded(self, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        """Return the text fields, ``[B, T]`` each."""
        return {
            "input_ids": self._pad([sample.input_ids for sample in samples], self.pad_id),
            "attention_mask": self._pad([torch.ones_like(sample.input_ids) for sample in samples], 0),
            "labels": self._pad([sample.labels for sample in samples], IGNORE_INDEX),
        }

    def _packed(self, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        """Return the text fields, ``[1, T]`` each. The first token of a sample is never a target."""
        position_ids = torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])
        labels = torch.cat([sample.labels for sample in samples]).masked_fill(position_ids == 0, IGNORE_INDEX)
        return {
            "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
            "attention_mask": None,
            "labels": labels[None],
            "position_ids": position_ids[None],
        }

    def _pad(self, rows: Sequence[Tensor], value: int) -> Tensor:
        padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
        return torch.nn.functional.pad(padded, (0, -padded.shape[1] % self.pad_to_multiple_of), value=value)


def _stack(images: list[Tensor]) -> Tensor:
    """Stack to ``[M, 3, H, W]``. A worker writes straight to shared memory, which saves a copy to the main process."""
    if get_worker_info() is None:
        return torch.stack(images)
    size = len(images) * images[0].numel()
    out = torch.empty(0).set_(torch.UntypedStorage._new_shared(size * images[0].element_size()), 0, (size,), (1,))
    return torch.stack(images, out=out.view(len(images), *images[0].shape))
