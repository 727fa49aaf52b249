"""What `validate-data` learns about each sample and each split."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_switchkd.core.types import Defect, DefectCode
from lightning_switchkd.data.datamodule import Split
from lightning_switchkd.data.order import Indices

EXAMPLES = 3
"""Samples shown for each defect code."""


@dataclass(frozen=True)
class SampleCheck:
    """One record.

    Attributes:
        index: its number in the source.
        source: its data set.
        id: 64 bits of its own id.
        tokens: of its text and images, as training would have them.
        supervised: those of them that are learnt.
        images: 64 bits each, of the bytes or the path.
        whole: `max_length` cut nothing off.
        defect: why it cannot be used; then the numbers say nothing.
    """

    index: int
    source: str
    id: int = 0
    tokens: int = 0
    supervised: int = 0
    images: tuple[int, ...] = ()
    whole: bool = True
    defect: Defect | None = None


@dataclass
class Findings:
    """What one split is like, in a few numbers a record.

    Attributes:
        split: its name.
        path: its files.
        tokens: ``[n]`` int32 by record; 0 where it is bad or excluded.
        images: ``[n]`` int32 by record.
        ids: ``[n]`` uint64 by record.
        supervised: tokens of all records that are learnt.
        cut: records of which `max_length` leaves only a part.
        excluded: records that were not looked at.
        pictures: 64 bits of every image.
        read: records of each data set.
        bad: the bad ones among them.
        codes: bad records by code.
        examples: some of them.
    """

    split: Split
    path: str
    tokens: NDArray[np.int32]
    images: NDArray[np.int32]
    ids: NDArray[np.uint64]
    supervised: int = 0
    cut: int = 0
    excluded: int = 0
    pictures: array[int] = field(default_factory=lambda: array("Q"))
    read: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    codes: Counter[DefectCode] = field(default_factory=Counter)
    examples: dict[DefectCode, list[Defect]] = field(default_factory=dict)

    @property
    def good(self) -> Indices:
        """``[g]`` the records that can be used."""
        return np.flatnonzero(self.tokens)

    def add(self, check: SampleCheck) -> None:
        """Takes note of a record."""
        self.read[check.source] += 1
        if (defect := check.defect) is not None:
            self.bad[check.source] += 1
            self.codes[defect.code] += 1
            if len(shown := self.examples.setdefault(defect.code, [])) < EXAMPLES:
                shown.append(defect)
            return
        self.tokens[check.index], self.images[check.index] = check.tokens, len(check.images)
        self.ids[check.index] = check.id
        self.pictures.extend(check.images)
        self.supervised += check.supervised
        self.cut += not check.whole
