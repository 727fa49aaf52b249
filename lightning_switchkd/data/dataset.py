"""A source with its images as samples by index: what training reads, and what evaluation asks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch.utils.data import Dataset

from lightning_switchkd.core.labels import count_supervised
from lightning_switchkd.data.collate import ProcessedSample
from lightning_switchkd.data.images import Pixels
from lightning_switchkd.data.order import Blocks, Indices, Share
from lightning_switchkd.data.prompts import Encoded, Prompter
from lightning_switchkd.data.samples import Sample, SampleError
from lightning_switchkd.data.sources import Mixture, Source, read_sample

BYTES_PER_TOKEN = 4
"""Of ordinary text, to estimate the length of a record that nobody has tokenised yet."""


def mean_supervised_tokens(dataset: VisionTextDataset, image_tokens: bool, look_at: int = 256) -> float:
    """About how many supervised tokens a record has, and image tokens if asked: the mean of some of them."""
    found, samples = [], dataset.samples
    for index in np.random.default_rng(0).permutation(samples)[:look_at].tolist():
        try:
            encoded = dataset.prompter.encode(dataset.sample(index))
            rows = int(count_supervised(torch.tensor([encoded.labels])))
            found.append(rows + image_tokens * encoded.images * dataset.prompter.image_tokens)
        except SampleError:  # it will be left out, and said so, when its turn comes
            continue
    return sum(found) / max(1, len(found))


class VisionTextDataset(Dataset[ProcessedSample]):
    """Samples by index. Stateless: a sample depends on its index alone, whichever worker makes it.

    Args:
        source: raw records.
        prompter: writes them as ids.
        pixels: one per image processor, the student's first.
        excluded: sorted indices of records that are never taken.
    """

    def __init__(
        self, source: Source, prompter: Prompter, pixels: tuple[Pixels, ...], excluded: Sequence[int] = ()
    ) -> None:
        self.source, self.prompter, self.pixels = source, prompter, pixels
        self.excluded: Indices = np.array(excluded, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def samples(self) -> Indices:
        """``[n]`` the records that are taken."""
        return np.delete(np.arange(len(self.source)), self.excluded)

    def shares(self) -> list[Share]:
        """What an epoch takes of each source."""
        parts = self.source.sources if isinstance(self.source, Mixture) else (self.source,)
        weights = self.source.weights if isinstance(self.source, Mixture) else (1.0,)
        samples, ends, shares = self.samples, np.cumsum([len(part) for part in parts]), []
        for part, weight, end in zip(parts, weights, ends, strict=True):
            begin = end - len(part)
            mine = samples[slice(*np.searchsorted(samples, [begin, end]))]
            blocks = tuple(Blocks(of[mine - begin], window) for of, window in part.blocks)
            shares.append(Share(mine, weight, blocks))
        return shares

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """``[len(self)]`` about how many tokens each record makes; records without images come far below all others."""
        text, images = self.source.sizes().T
        limit = self.prompter.max_length
        tokens = np.minimum(text // BYTES_PER_TOKEN + images * self.prompter.image_tokens, limit)
        return np.asarray(tokens + (images > 0) * limit)

    def sample(self, index: int) -> Sample:
        """The validated record.

        Raises:
            RecordError: it is not valid.
        """
        return read_sample(self.source, index)

    def read(self, index: int) -> tuple[Sample, Encoded, tuple[Image, ...]]:
        """The record, tokenised, and those of its images that are left then.

        Raises:
            RecordError: it cannot be used; the message names the record, its file and how to mend it.
        """
        sample = self.sample(index)
        try:
            encoded = self.prompter.encode(sample)
            return sample, encoded, sample.load_images(encoded.images)
        except SampleError as error:
            raise error.at(sample.location, sample.id, sample.source) from None

    def __getitem__(self, index: int) -> ProcessedSample:
        """The record, tokenised and with pixels.

        Raises:
            RecordError: as `read` does.
        """
        sample, encoded, images = self.read(index)
        pixels = tuple(tuple(view(image) for image in images) for view in self.pixels)
        input_ids, labels = (torch.from_numpy(np.array(ids)) for ids in (encoded.input_ids, encoded.labels))
        return ProcessedSample(input_ids, labels, pixels, index, sample.id)
