"""The interface of every data source."""

from __future__ import annotations

from typing import Any, Protocol

from lightning_switchkd.data.order import Blocks
from lightning_switchkd.data.samples import SampleLocation
from lightning_switchkd.data.sources.index import Index


class Source(Protocol):
    """Raw samples by index.

    Attributes:
        path: The path, pattern or URL that it was opened with, for messages.
        fingerprint: Equal for equal samples in equal order, wherever the files are.
        blocks: Blocks that are read as a whole, the largest first. Empty if random access is cheap.
    """

    path: str
    fingerprint: str
    blocks: tuple[Blocks, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, index: int) -> Any:
        """Return the raw sample, before validation. Images stored in the source itself are included as bytes."""
        ...

    def location(self, index: int) -> SampleLocation:
        """Return the location of the sample for messages, with the reader of its images."""
        ...

    def sizes(self) -> Index:
        """Return ``[n, 2]``: bytes of text and number of images of each sample, to estimate its length."""
        ...

    def files(self) -> dict[str, range]:
        """Return the sample indices of each file, by its absolute name."""
        ...
