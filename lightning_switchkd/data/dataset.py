"""A source with its images as samples by index, for training and evaluation."""

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
"""Of ordinary text. Estimates the length of a sample that is not tokenized yet."""


def mean_supervised_tokens(dataset: VisionTextDataset, image_tokens: bool, num_samples: int = 256) -> float:
    """Estimate the mean number of supervised tokens of a sample, plus its image tokens if `image_tokens`.

    Args:
        dataset: The samples.
        image_tokens: Count image tokens as well.
        num_samples: Size of the random subset that is read.
    """
    counts = []
    for index in np.random.default_rng(0).permutation(dataset.samples)[:num_samples].tolist():
        try:
            encoded = dataset.prompter.encode(dataset.sample(index))
        except SampleError:  # the stream skips and reports it later
            continue
        supervised = int(count_supervised(torch.tensor([encoded.labels])))
        counts.append(supervised + image_tokens * encoded.images * dataset.prompter.image_tokens)
    return sum(counts) / max(1, len(counts))


class VisionTextDataset(Dataset[ProcessedSample]):
    """Samples by index. Stateless: a sample depends on its index only, in every worker.

    Args:
        source: Raw samples.
        prompter: Encodes conversations as token ids.
        pixels: One per image processor, the student's first.
        excluded: Sorted indices of samples that are never used.
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
        """``[n]`` indices of the samples that are used."""
        return np.delete(np.arange(len(self.source)), self.excluded)

    def shares(self) -> list[Share]:
        """Return the share of each source in an epoch."""
        parts = self.source.sources if isinstance(self.source, Mixture) else (self.source,)
        weights = self.source.weights if isinstance(self.source, Mixture) else (1.0,)
        samples, ends, shares = self.samples, np.cumsum([len(part) for part in parts]), []
        for part, weight, end in zip(parts, weights, ends, strict=True):
            begin = end - len(part)
            own = samples[slice(*np.searchsorted(samples, [begin, end]))]
            blocks = tuple(Blocks(ids[own - begin], window) for ids, window in part.blocks)
            shares.append(Share(own, weight, blocks))
        return shares

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """``[len(self)]`` estimated tokens of each sample. Samples without images are far below all others."""
        text_bytes, num_images = self.source.sizes().T
        limit = self.prompter.max_length
        tokens = np.minimum(text_bytes // BYTES_PER_TOKEN + num_images * self.prompter.image_tokens, limit)
        return np.asarray(tokens + (num_images > 0) * limit)

    def sample(self, index: int) -> Sample:
        """Read and validate a sample.

        Raises:
            SampleError: The sample is invalid.
        """
        return read_sample(self.source, index)

    def read(self, index: int) -> tuple[Sample, Encoded, tuple[Image, ...]]:
        """Read a sample, tokenize it, and decode the images that remain after truncation.

        Raises:
            SampleError: The sample is invalid. The message names the sample, its file and the fix.
        """
        sample = self.sample(index)
        try:
            encoded = self.prompter.encode(sample)
            return sample, encoded, sample.load_images(encoded.images)
        except SampleError as error:
            raise error.at(sample.location, sample.id, sample.source) from None

    def question(self, index: int) -> Sample:
        """Read a sample whose last question can be asked: the prompt fits, and all images can be decoded.

        Raises:
            SampleError: The sample cannot be asked.
        """
        sample = self.sample(index)
        try:
            self.prompter.encode_question(sample)
            sample.load_images()
        except SampleError as error:
            raise error.at(sample.location, sample.id, sample.source) from None
        return sample

    def __getitem__(self, index: int) -> ProcessedSample:
        """Return a sample as token ids, labels and pixels.

        Raises:
            SampleError: The sample is invalid.
        """
        sample, encoded, images = self.read(index)
        pixels = tuple(tuple(to_pixels(image) for image in images) for to_pixels in self.pixels)
        input_ids, labels = (torch.from_numpy(np.array(ids)) for ids in (encoded.input_ids, encoded.labels))
        return ProcessedSample(input_ids, labels, pixels, index, sample.id)
