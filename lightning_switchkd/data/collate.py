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
        pixel_values: ``[m, 3, H, W]`` float32; m is 0 for a text-only record.
        pixel_values_teacher: ``[m, 3, H', W']``, where the teacher has its own image processor.
        index: position of the record in its source.
        record_id: the record's own id.
    """

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor
    pixel_values_teacher: Tensor | None
    index: int
    record_id: str


@dataclass(frozen=True)
class Collator:
    """Makes a `Batch` of samples.

    Attributes:
        pad_id: what fills `input_ids` on the right; any token will do, the mask is made from lengths.
        image_id: the id of `<image>`.
        blank: ``[3, H, W]``, stands in where a batch has no image.
        blank_teacher: ``[3, H', W']``, the same for the teacher's own image processor.
        pad_to_multiple_of: lengths are rounded up to it: fewer shapes for kernels and compilers.
    """

    pad_id: int
    image_id: int
    blank: Tensor
    blank_teacher: Tensor | None = None
    pad_to_multiple_of: int = 8

    def null(self) -> Sample:
        """A padding record: one token, no label, no image."""
        return Sample(
            input_ids=torch.tensor([self.pad_id]),
            labels=torch.tensor([IGNORE]),
            pixel_values=self.blank.new_empty(0, *self.blank.shape),
            pixel_values_teacher=(
                None if self.blank_teacher is None else self.blank_teacher.new_empty(0, *self.blank_teacher.shape)
            ),
            index=NULL,
            record_id="",
        )

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch, its own window: whoever accumulates sets `window` (stream)."""
        input_ids = self._pad([sample.input_ids for sample in samples], self.pad_id)  # [B, T]
        labels = self._pad([sample.labels for sample in samples], IGNORE)  # [B, T]
        mask = self._pad([torch.ones_like(sample.input_ids) for sample in samples], 0)  # [B, T]
        images = torch.tensor([len(sample.pixel_values) for sample in samples])  # [B]
        supervised = count_supervised(labels)  # [B]
        counts = Counts(
            token=int(supervised.sum()),
            visual_token=int(supervised[images > 0].sum()),
            image_token=int(((input_ids == self.image_id) & (mask == 1)).sum()),
            image=int(images.sum()),
        )
        rows = torch.arange(len(samples)).repeat_interleave(images)  # [M]
        return Batch(
            input_ids=input_ids,
            attention_mask=mask,
            labels=labels,
            pixel_values=_images([sample.pixel_values for sample in samples], self.blank),
            image_row=rows if len(rows) else torch.tensor([NULL]),
            sample_index=torch.tensor([sample.index for sample in samples]),
            counts=counts,
            window=counts,
            pixel_values_teacher=(
                None
                if self.blank_teacher is None
                else _images([s.pixel_values_teacher for s in samples if s.pixel_values_teacher is not None], self.blank_teacher)
            ),
            record_ids=tuple(sample.record_id for sample in samples),
        )

    def _pad(self, rows: Sequence[Tensor], value: int) -> Tensor:
        padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
        return torch.nn.functional.pad(padded, (0, -padded.shape[1] % self.pad_to_multiple_of), value=value)


def _images(pixels: Sequence[Tensor], blank: Tensor) -> Tensor:
    stacked = torch.cat(list(pixels))
    return stacked if len(stacked) else blank[None]
