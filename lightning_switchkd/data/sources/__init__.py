"""Where raw records come from: any file as a sequence of records, read one by one, with flat memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.order import Blocks
from lightning_switchkd.data.samples import Place, Record, parse_record
from lightning_switchkd.data.sources.index import Index
from lightning_switchkd.data.sources.json_file import JsonSource
from lightning_switchkd.data.sources.mixture import Mixture
from lightning_switchkd.data.sources.parquet import ParquetSource
from lightning_switchkd.data.sources.remote import ShardCache, find_remote
from lightning_switchkd.data.sources.shards import find_shards
from lightning_switchkd.data.sources.tar import TarSource
from lightning_switchkd.core.errors import UserError

__all__ = ["Mixture", "ShardCache", "Source", "open_source", "read_record"]


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

    def place(self, index: int) -> Place:
        """Where the record lies, for messages, and what reads its images."""
        ...

    def sizes(self) -> Index:
        """``[n, 2]``: bytes of text and number of images of each record, to estimate its length."""
        ...

    def files(self) -> dict[str, range]:
        """The record numbers of each file, by its full name."""
        ...


def open_source(path: str | Path, images: ImageFolder | None = None, cache: ShardCache | None = None) -> Source:
    """The records of a JSON array, JSONL, Parquet or tar file, or of a folder or pattern of Parquet or tar files.

    The first call on a file indexes it.

    Args:
        path: ``train.json``, ``train.jsonl``, ``shards/*.parquet``, ``shards/{000..012}.tar``, ``shards/``, or a
            URL: ``https://host/{000..012}.tar``, ``hf://datasets/owner/name/data/*.parquet``, ``s3://bucket/*.tar``.
        images: reads the images that records name by path.
        cache: where files behind URLs are kept; None is the one in the user's cache folder.

    Raises:
        UserError: files are missing, empty, broken or no such files; the message says which and where.
        ReadError: the network fails, time after time.
    """
    name = str(path)
    suffix, remote = Path(name).suffix, "://" in name
    if not remote and Path(name).is_dir():
        inside = {file.suffix for file in Path(name).rglob("*") if file.suffix in (".parquet", ".tar")}
        if len(inside) != 1:
            raise UserError(f"the folder {name} must hold either .parquet or .tar files, it holds {sorted(inside)}")
        (suffix,) = inside
    kind = {".parquet": ParquetSource, ".tar": TarSource}.get(suffix, JsonSource)
    shards = find_remote(name, suffix, cache or ShardCache()) if remote else find_shards(name, suffix)
    return kind(name, shards, images)


def read_record(source: Source, index: int) -> Record:
    """The validated record.

    Raises:
        RecordError: it is not valid.
    """
    return parse_record(source.read(index), source.place(index))
