"""Several sources combined into one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_switchkd.data.order import Blocks
from lightning_switchkd.data.samples import SampleLocation
from lightning_switchkd.data.sources.base import Source
from lightning_switchkd.data.sources.index import Index, fingerprint


class Mixture:
    """The samples of several sources in sequence.

    Args:
        sources: The sources.
        weights: For each source, the mean number of times that an epoch uses a sample (`order.Share`).
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        self.sources, self.weights = tuple(sources), tuple(weights)
        self.blocks: tuple[Blocks, ...] = ()  # the sources have their own
        self.path = " + ".join(source.path for source in sources)
        self.fingerprint = fingerprint([source.fingerprint for source in sources], self.weights)
        self.starts: list[int] = np.cumsum([0, *map(len, sources)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def _locate(self, index: int) -> tuple[Source, int]:
        part = bisect_right(self.starts, index) - 1
        return self.sources[part], index - self.starts[part]

    def read(self, index: int) -> Any:
        """Return the raw sample."""
        source, local = self._locate(index)
        return source.read(local)

    def location(self, index: int) -> SampleLocation:
        """Return the location of the sample."""
        source, local = self._locate(index)
        return source.location(local)

    def sizes(self) -> Index:
        """Return ``[n, 2]``: bytes of text and number of images of each sample."""
        return np.concatenate([source.sizes() for source in self.sources])

    def files(self) -> dict[str, range]:
        """Return the sample indices of each file, by its absolute name."""
        return {
            name: range(start + span.start, start + span.stop)
            for start, source in zip(self.starts, self.sources, strict=False)
            for name, span in source.files().items()
        }
