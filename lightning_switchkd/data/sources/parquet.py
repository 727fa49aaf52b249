"""Parquet files in LLaVA's schema: images as bytes in the rows, as Hugging Face datasets store them, or as paths.

A row can only be read with its whole row group. So a few row groups are kept in memory, and an epoch shuffles within
a few row groups at a time (`blocks`).
"""

from __future__ import annotations

import zlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import retry
from lightning_switchkd.data.formats import measure
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.order import Blocks
from lightning_switchkd.data.sources.index import Index, fingerprint, progress_bar, to_index
from lightning_switchkd.data.sources.indexed import IndexedFiles
from lightning_switchkd.data.sources.shards import Shard

try:
    from pyarrow import ArrowException, parquet
except ImportError:  # reported when a Parquet file is opened
    parquet = None

TEXTS = ("conversations", "messages")
COLUMNS = ("id", "image", "images", *TEXTS, "source")

CACHED_BYTES = 64 * 2**20
"""Approximate bytes of row groups that each reading process keeps, and that are shuffled together."""


class ParquetSource(IndexedFiles):
    """Rows of Parquet files.

    Args:
        path: File, folder or pattern, for messages.
        shards: The files.
        images: Reads images that the rows name by path.

    Raises:
        UserError: A file is not a Parquet file, or lacks conversations.
    """

    def __init__(self, path: str, shards: Sequence[Shard], images: ImageFolder | None = None) -> None:
        if parquet is None:
            raise UserError(f"{path} needs pyarrow, which is not installed: pip install pyarrow")
        super().__init__(path, shards, images, _build_index)
        self.fingerprint = fingerprint(
            self.fingerprint, [shard.size for shard in shards]
        )  # the index does not cover images
        row_groups = self._row_groups()
        self.blocks = (*self._file_blocks(), row_groups)
        self._max_cached = 2 * row_groups.window + 1
        self._tables: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def _row_groups(self) -> Blocks:
        shard = np.repeat(np.arange(len(self.shards)), np.diff(self.starts))
        _, ids = np.unique(np.stack([shard, self.rows[:, 0]]), axis=1, return_inverse=True)
        mean = sum(shard.size for shard in self.shards) / (int(ids.max()) + 1)
        return Blocks(ids.reshape(-1).astype(np.int32), window=int(min(64, max(1, CACHED_BYTES // mean))))

    def read(self, index: int) -> dict[str, Any]:
        """Return the row without its empty columns."""
        row_group, row = self.rows[index, :2].tolist()
        raw: dict[str, Any] = self._table(self.shard_of(index), row_group).slice(row, 1).to_pylist()[0]
        return {name: value for name, value in raw.items() if value is not None}

    def _table(self, shard: int, row_group: int) -> Any:
        key = (shard, row_group)
        if key not in self._tables:
            self._tables[key] = retry(lambda: self._load(*key), self.shards[shard].name)
            while len(self._tables) > self._max_cached:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def _load(self, shard: int, row_group: int) -> Any:
        with self.shards[shard].open() as data, parquet.ParquetFile(data) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            return file.read_row_group(row_group, columns=columns, use_threads=False)  # threads do not survive a fork


def _build_index(shard: Shard) -> Index:
    rows = array("q")
    try:
        with shard.open() as data, parquet.ParquetFile(data) as file:
            texts = [name for name in file.schema_arrow.names if name in TEXTS]
            if not texts:
                raise UserError(
                    f"{shard.name} must have a column 'conversations' or 'messages', found {file.schema_arrow.names}. "
                    "LLaVA's schema is id, image(s), conversations."
                )
            with progress_bar(shard.name, file.metadata.num_rows, "row") as progress:
                for group in range(file.num_row_groups):
                    raws = file.read_row_group(group, columns=texts, use_threads=False).to_pylist()
                    for row, raw in enumerate(raws):
                        rows.extend((group, row, zlib.crc32(orjson.dumps(raw)), *measure(raw)))
                    progress.update(len(raws))
    except ArrowException as error:
        raise UserError(f"Cannot read {shard.name} as Parquet: {error}. Download or write the file again.") from None
    if not rows:
        raise UserError(f"{shard.name} contains no samples.")
    return to_index(rows)
