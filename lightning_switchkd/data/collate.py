"""Samples -> Batch: right padding or packing, the blank image, the counts."""

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
    """One record, ready to be collated.

    Attributes:
        input_ids: ``[T]`` int64.
        labels: ``[T]`` int64, unshifted.
        pixels: for each image processor (the student's; the teacher's where it has its own), ``[3, H, W]`` float32 of
            each image.
        index: position of the record in its source.
        record_id: the record's own id.
    """

    input_ids: Tensor
    labels: Tensor
    pixels: tuple[tuple[Tensor, ...], ...]
    index: int
    sample_id: str


@dataclass(frozen=True)
class Collator:
    """Makes a `Batch` of samples.

    Attributes:
        pad_id: what fills `input_ids` on the right; any token will do, the mask is made from lengths.
        image_id: the id of `<image>`.
        blanks: ``[3, H, W]`` for each image processor: stands in where a batch has no image.
        pad_to_multiple_of: lengths are rounded up to it: fewer shapes for kernels and compilers.
        packing: records share one row, without padding.
    """

    pad_id: int
    image_id: int
    blanks: tuple[Tensor, ...]
    pad_to_multiple_of: int = 8
    packing: bool = False

    def padding_sample(self) -> ProcessedSample:
        """A padding record: one token, no label, no image."""
        return ProcessedSample(
            input_ids=torch.tensor([self.pad_id]),
            labels=torch.tensor([IGNORE_INDEX]),
            pixels=((),) * len(self.blanks),
            index=PADDING_INDEX,
            sample_id="",
        )

    def __call__(self, samples: Sequence[ProcessedSample]) -> Batch:
        """The batch, its own window: whoever accumulates sets `window` (stream)."""
        images = torch.tensor([len(sample.pixels[0]) for sample in samples])  # [B]
        supervised = torch.cat([count_supervised(sample.labels[None]) for sample in samples])  # [B]
        counts = Counts(
            token=int(supervised.sum()),
            visual_token=int(supervised[images > 0].sum()),
            image_token=sum(int((sample.input_ids == self.image_id).sum()) for sample in samples),
            image=int(images.sum()),
        )
        rows = torch.arange(len(samples)).repeat_interleave(images)  # [M]
        pixels = [list(chain(*view)) for view in zip(*(sample.pixels for sample in samples), strict=True)]
        views = [_stack(view or [blank]) for view, blank in zip(pixels, self.blanks, strict=True)]
        return Batch(
            **(self._packed(samples) if self.packing else self._padded(samples)),
            pixel_values=views[0],
            image_sample=rows if len(rows) else torch.tensor([PADDING_INDEX]),
            sample_index=torch.tensor([sample.index for sample in samples]),
            counts=counts,
            window=counts,
            pixel_values_teacher=views[1] if len(views) > 1 else None,
            sample_ids=tuple(sample.sample_id for sample in samples),
        )

    def _padded(self, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        """``[B, T]``."""
        return {
            "input_ids": self._pad([sample.input_ids for sample in samples], self.pad_id),
            "attention_mask": self._pad([torch.ones_like(sample.input_ids) for sample in samples], 0),
            "labels": self._pad([sample.labels for sample in samples], IGNORE_INDEX),
        }

    def _packed(self, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        """``[1, T]``; the first token of a record is nobody's next."""
        position_ids = torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])
        return {
            "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
            "attention_mask": None,
            "labels": torch.cat([sample.labels for sample in samples]).masked_fill(position_ids == 0, IGNORE_INDEX)[
                None
            ],
            "position_ids": position_ids[None],
        }

    def _pad(self, rows: Sequence[Tensor], value: int) -> Tensor:
        padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
        return torch.nn.functional.pad(padded, (0, -padded.shape[1] % self.pad_to_multiple_of), value=value)


def _stack(images: list[Tensor]) -> Tensor:
    """``[M, 3, H, W]``; in a worker, where the run will read it: it is not copied on its way there."""
    if get_worker_info() is None:
        return torch.stack(images)
    size = len(images) * images[0].numel()
    out = torch.empty(0).set_(torch.UntypedStorage._new_shared(size * images[0].element_size()), 0, (size,), (1,))
    return torch.stack(images, out=out.view(len(images), *images[0].shape))
