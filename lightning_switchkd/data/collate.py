"""Samples -> Batch: right padding, the blank image, the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_switchkd.batch import IGNORE, Batch, Counts
from lightning_switchkd.data.order import NULL
from lightning_switchkd.losses.rows import count_supervised


@dataclass(frozen=True)
class Sample:
    """One record, ready to be collated.

    Attributes:
        input_ids: ``[T]`` int64.
        labels: ``[T]`` int64, unshifted.
        pixels: ``[m, 3, H, W]`` float32 for each image processor (the student's; the teacher's where it has its own);
            m is 0 for a text-only record.
        index: position of the record in its source.
        record_id: the record's own id.
    """

    input_ids: Tensor
    labels: Tensor
    pixels: tuple[Tensor, ...]
    index: int
    record_id: str


@dataclass(frozen=True)
class Collator:
    """Makes a `Batch` of samples.

    Attributes:
        pad_id: what fills `input_ids` on the right; any token will do, the mask is made from lengths.
        image_id: the id of `<image>`.
        blanks: ``[3, H, W]`` for each image processor: stands in where a batch has no image.
        pad_to_multiple_of: lengths are rounded up to it: fewer shapes for kernels and compilers.
    """

    pad_id: int
    image_id: int
    blanks: tuple[Tensor, ...]
    pad_to_multiple_of: int = 8

    def null(self) -> Sample:
        """A padding record: one token, no label, no image."""
        return Sample(
            input_ids=torch.tensor([self.pad_id]),
            labels=torch.tensor([IGNORE]),
            pixels=tuple(blank.new_empty(0, *blank.shape) for blank in self.blanks),
            index=NULL,
            record_id="",
        )

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch, its own window: whoever accumulates sets `window` (stream)."""
        input_ids = self._pad([sample.input_ids for sample in samples], self.pad_id)  # [B, T]
        labels = self._pad([sample.labels for sample in samples], IGNORE)  # [B, T]
        mask = self._pad([torch.ones_like(sample.input_ids) for sample in samples], 0)  # [B, T]
        images = torch.tensor([len(sample.pixels[0]) for sample in samples])  # [B]
        supervised = count_supervised(labels)  # [B]
        counts = Counts(
            token=int(supervised.sum()),
            visual_token=int(supervised[images > 0].sum()),
            image_token=int(((input_ids == self.image_id) & (mask == 1)).sum()),
            image=int(images.sum()),
        )
        rows = torch.arange(len(samples)).repeat_interleave(images)  # [M]
        pixels = [torch.cat(view) for view in zip(*(sample.pixels for sample in samples), strict=True)]
        views = [view if len(view) else blank[None] for view, blank in zip(pixels, self.blanks, strict=True)]
        return Batch(
            input_ids=input_ids,
            attention_mask=mask,
            labels=labels,
            pixel_values=views[0],
            image_row=rows if len(rows) else torch.tensor([NULL]),
            sample_index=torch.tensor([sample.index for sample in samples]),
            counts=counts,
            window=counts,
            pixel_values_teacher=views[1] if len(views) > 1 else None,
            record_ids=tuple(sample.record_id for sample in samples),
        )

    def _pad(self, rows: Sequence[Tensor], value: int) -> Tensor:
        padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
        return torch.nn.functional.pad(padded, (0, -padded.shape[1] % self.pad_to_multiple_of), value=value)
