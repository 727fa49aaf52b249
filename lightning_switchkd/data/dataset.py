"""One annotations file with its images as samples by index: what training reads, and what evaluation asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_switchkd.data.collate import Sample
from lightning_switchkd.data.images import ImageFolder, Pixels
from lightning_switchkd.data.prompts import Prompter
from lightning_switchkd.data.records import Record, RecordError, describe, parse_record
from lightning_switchkd.data.sources import Source


class VisionTextDataset(Dataset[Sample]):
    """Samples by index. Stateless: a sample depends on its index alone, whichever worker makes it.

    Args:
        source: raw records.
        images: where their images are.
        prompter: writes them as ids.
        pixels: one per image processor, the student's first.
    """

    def __init__(self, source: Source, images: ImageFolder, prompter: Prompter, pixels: tuple[Pixels, ...]) -> None:
        self.source, self.images, self.prompter, self.pixels = source, images, prompter, pixels

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """The validated record.

        Raises:
            RecordError: it is not valid.
        """
        return parse_record(self.source.read(index), index, self.source.path)

    def __getitem__(self, index: int) -> Sample:
        """The record, tokenised and with pixels.

        Raises:
            RecordError: it cannot be used; the message names the record, its file and how to mend it.
        """
        record = self.record(index)
        with self._naming(record):
            encoded = self.prompter.encode(record)
            pixels = self._pixels(record, encoded.images)
        input_ids, labels = torch.tensor(encoded.input_ids), torch.tensor(encoded.labels)
        return Sample(input_ids, labels, pixels, index, record.id)

    def _pixels(self, record: Record, count: int) -> tuple[Tensor, ...]:
        images = [self.images.read(ref) for ref in record.images[:count]]
        return tuple(
            torch.stack([view(image) for image in images]) if images else torch.empty(0, 3, *view.size)
            for view in self.pixels
        )

    @contextmanager
    def _naming(self, record: Record) -> Iterator[None]:
        try:
            yield
        except RecordError as error:
            where = describe(record.id, record.index, self.source.path)
            raise RecordError(error.code, error.problem, where) from None
