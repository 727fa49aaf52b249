"""The interface of every data source."""

from __future__ import annotations

from typing import Any, Protocol

from lightning_switchkd.data.order import Blocks
from lightning_switchkd.data.samples import SampleLocation
from lightning_switchkd.data.sources.index import Index


class Source(Protocol):
    """Raw records by index.

    Attributes:
        path: what it was opened by, as messages name it.
        fingerprint: equal for equal records in equal order, wherever the files lie.
        blocks: what has to be read together, the largest first; none where any order costs the same.
    """

    path: str
    fingerprint: str
    blocks: tuple[Blocks, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> Any:
        """The record, not yet validated; images that lie in the source itself come with it, as bytes."""
        ...

    def location(self, index: int) -> SampleLocation:
        """Where the record lies, for messages, and what reads its images."""
        ...

    def sizes(self) -> Index:
        """``[n, 2]``: bytes of text and number of images of each record, to estimate its length."""
        ...

    def files(self) -> dict[str, range]:
        """The record numbers of each file, by its full name."""
        ...
