"""What all file formats share: an index of each file, records counted through them, a few files kept open."""

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
from lightning_switchkd.data.sources.index import CRC, IMAGES, OF_IMAGE, TEXT, Index, cached_index, fingerprint
from lightning_switchkd.data.sources.shards import Shard, data_set_name

_OPEN = 32  # files that a process keeps open


class IndexedFiles(ABC):
    """Records of one or more files, by the files' indices. Sent to another process, it opens them there.

    Attributes:
        path: file, folder or pattern, as messages name it.
        shards: the files.
        rows: ``[r, 5]`` their indices, one after the other; a record may have rows for its images after its own.
        first: ``[n + 1]`` the row of each record, and the end.
        starts: number of the first record of each file, and the end.
        blocks: what has to be read together, the largest first; none where any order costs the same.
    """

    def __init__(
        self, path: str, shards: Sequence[Shard], images: ImageFolder | None, build: Callable[[Shard], Index]
    ) -> None:
        self.path, self.shards, self._images = path, shards, images
        indices = [cached_index(shard, lambda shard=shard: build(shard)) for shard in shards]  # type: ignore[misc]
        self.rows: Index = np.concatenate(indices) if len(indices) > 1 else indices[0]
        self.first = np.append(np.flatnonzero(self.rows[:, IMAGES] != OF_IMAGE), len(self.rows))
        self.starts: list[int] = np.searchsorted(self.first, np.cumsum([0, *map(len, indices)])).tolist()
        self.blocks: tuple[Blocks, ...] = ()
        self.fingerprint = fingerprint(self.rows[:, 1 : CRC + 1])
        self._group = data_set_name(path) if shards[1:] else ""
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.first) - 1

    @abstractmethod
    def read(self, index: int) -> Any:
        """The record at `index`, as `Source.read` has it."""

    def location(self, index: int) -> SampleLocation:
        shard = self.shard_of(index)
        return SampleLocation(self.shards[shard].name, index - self.starts[shard], self._images, self._group)

    def sizes(self) -> Index:
        return self.rows[self.first[:-1], TEXT : IMAGES + 1]

    def files(self) -> dict[str, range]:
        """The record numbers of each file, by its full name."""
        spans = zip(self.starts, self.starts[1:], strict=False)
        return {shard.full_name: range(*span) for shard, span in zip(self.shards, spans, strict=True)}

    def shard_of(self, index: int) -> int:
        """The number of the record's file."""
        return bisect_right(self.starts, index) - 1

    def _files_together(self) -> tuple[Blocks, ...]:
        """Whole files as blocks, where not all of them can be at hand."""
        if (together := self.shards[0].together) is None:
            return ()
        return (Blocks(np.repeat(np.arange(len(self.shards), dtype=np.int32), np.diff(self.starts)), together),)

    def bytes_of(self, shard: int, offset: int, length: int) -> bytes:
        """A part of a file. Read by place, not mapped, so that no page of it is charged to this process."""
        if self.shards[shard].folder is None:  # kept open, a file that had to make way would still fill the disk
            with self.shards[shard].open() as file:
                return pread(file.fileno(), length, offset)
        if shard not in self._open:
            self._open[shard] = self.shards[shard].open()
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return pread(self._open[shard].fileno(), length, offset)

    def __reduce__(self) -> tuple[type[IndexedFiles], tuple[Any, ...]]:
        return type(self), (self.path, self.shards, self._images)

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            file.close()
