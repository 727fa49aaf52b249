"""The results of `validate-data` for each sample and each split."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_switchkd.core.types import Defect, DefectCode
from lightning_switchkd.data.datamodule import Split
from lightning_switchkd.data.order import Indices

MAX_EXAMPLES = 3
"""Samples shown for each defect code."""


@dataclass(frozen=True)
class SampleCheck:
    """The result for one sample.

    Attributes:
        index: Its index in the source.
        source: Its data set.
        id_hash: 64-bit hash of its own id.
        num_tokens: Tokens of its text and images, as in training.
        num_supervised: Supervised tokens.
        image_hashes: 64-bit hash of each image, of its bytes or path.
        truncated: Whether `max_length` cut it.
        defect: The defect of an invalid sample, whose other fields are empty.
    """

    index: int
    source: str
    id_hash: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    image_hashes: tuple[int, ...] = ()
    truncated: bool = False
    defect: Defect | None = None


@dataclass
class Findings:
    """The results for one split, a few numbers per sample.

    Attributes:
        split: Its name.
        path: Its files.
        tokens: ``[n]`` int32, tokens of each sample. 0 if it is invalid or excluded.
        images: ``[n]`` int32, images of each sample.
        id_hashes: ``[n]`` uint64, hashes of the samples' ids.
        num_supervised: Supervised tokens of all samples.
        num_truncated: Samples cut by `max_length`.
        num_excluded: Samples that were not checked.
        image_hashes: 64-bit hashes of all images.
        num_read: Samples by data set.
        num_invalid: Invalid samples by data set.
        codes: Invalid samples by code.
        examples: Some invalid samples by code.
    """

    split: Split
    path: str
    tokens: NDArray[np.int32]
    images: NDArray[np.int32]
    id_hashes: NDArray[np.uint64]
    num_supervised: int = 0
    num_truncated: int = 0
    num_excluded: int = 0
    image_hashes: array[int] = field(default_factory=lambda: array("Q"))
    num_read: Counter[str] = field(default_factory=Counter)
    num_invalid: Counter[str] = field(default_factory=Counter)
    codes: Counter[DefectCode] = field(default_factory=Counter)
    examples: dict[DefectCode, list[Defect]] = field(default_factory=dict)

    @property
    def valid(self) -> Indices:
        """``[g]`` indices of the valid samples."""
        return np.flatnonzero(self.tokens)

    def add(self, check: SampleCheck) -> None:
        """Add the result for one sample."""
        self.num_read[check.source] += 1
        if (defect := check.defect) is not None:
            self.num_invalid[check.source] += 1
            self.codes[defect.code] += 1
            if len(examples := self.examples.setdefault(defect.code, [])) < MAX_EXAMPLES:
                examples.append(defect)
            return
        self.tokens[check.index], self.images[check.index] = check.num_tokens, len(check.image_hashes)
        self.id_hashes[check.index] = check.id_hash
        self.image_hashes.extend(check.image_hashes)
        self.num_supervised += check.num_supervised
        self.num_truncated += check.truncated
