"""The base of all file formats: an index of each file, samples numbered across files, a few open files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from lightning_switchkd.core.files import pread
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.order import Blocks
from lightning_switchkd.data.samples import SampleLocation
from lightning_switchkd.data.sources.index import (
    CRC,
    IMAGE_ROW,
    NUM_IMAGES,
    TEXT_BYTES,
    Index,
    cached_index,
    fingerprint,
)
from lightning_switchkd.data.sources.shards import Shard, dataset_name

_MAX_OPEN = 32  # files that a process keeps open


class IndexedFiles(ABC):
    """Samples of one or more files, found by the indices of the files. Unpickling opens the files again.

    Attributes:
        path: File, folder or pattern, for messages.
        shards: The files.
        rows: ``[r, 5]`` the indices of all files in sequence. Rows for the images of a sample may follow its own row.
        first: ``[n + 1]`` the row of each sample, and the end.
        starts: Index of the first sample of each file, and the end.
        blocks: Blocks that are read as a whole, the largest first. Empty if random access is cheap.
    """

    def __init__(
        self, path: str, shards: Sequence[Shard], images: ImageFolder | None, build: Callable[[Shard], Index]
    ) -> None:
        self.path, self.shards, self._images = path, shards, images
        indices = [cached_index(shard, lambda shard=shard: build(shard)) for shard in shards]  # type: ignore[misc]
        self.rows: Index = np.concatenate(indices) if len(indices) > 1 else indices[0]
        self.first = np.append(np.flatnonzero(self.rows[:, NUM_IMAGES] != IMAGE_ROW), len(self.rows))
        self.starts: list[int] = np.searchsorted(self.first, np.cumsum([0, *map(len, indices)])).tolist()
        self.blocks: tuple[Blocks, ...] = ()
        self.fingerprint = fingerprint(self.rows[:, 1 : CRC + 1])
        self._group = dataset_name(path) if shards[1:] else ""
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.first) - 1

    @abstractmethod
    def read(self, index: int) -> Any:
        """Return the raw sample (see `Source.read`)."""

    def location(self, index: int) -> SampleLocation:
        """Return the location of the sample."""
        shard = self.shard_of(index)
        return SampleLocation(self.shards[shard].name, index - self.starts[shard], self._images, self._group)

    def sizes(self) -> Index:
        """Return ``[n, 2]``: bytes of text and number of images of each sample."""
        return self.rows[self.first[:-1], TEXT_BYTES : NUM_IMAGES + 1]

    def files(self) -> dict[str, range]:
        """Return the sample indices of each file, by its absolute name."""
        spans = zip(self.starts, self.starts[1:], strict=False)
        return {shard.absolute_name: range(*span) for shard, span in zip(self.shards, spans, strict=True)}

    def shard_of(self, index: int) -> int:
        """Return the number of the file of a sample."""
        return bisect_right(self.starts, index) - 1

    def _file_blocks(self) -> tuple[Blocks, ...]:
        """Return whole files as blocks, if the cache cannot hold all of them."""
        if (window := self.shards[0].window) is None:
            return ()
        return (Blocks(np.repeat(np.arange(len(self.shards), dtype=np.int32), np.diff(self.starts)), window),)

    def bytes_of(self, shard: int, offset: int, length: int) -> bytes:
        """Read part of a file. The file is not memory-mapped, so its pages do not count as memory of this process."""
        if self.shards[shard].folder is None:  # an open file would use disk space even after its removal
            with self.shards[shard].open() as file:
                return pread(file.fileno(), length, offset)
        if shard not in self._open:
            self._open[shard] = self.shards[shard].open()
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return pread(self._open[shard].fileno(), length, offset)

    def __reduce__(self) -> tuple[type[IndexedFiles], tuple[Any, ...]]:
        return type(self), (self.path, self.shards, self._images)

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            file.close()
