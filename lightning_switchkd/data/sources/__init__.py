"""Where raw records come from: any file as a sequence of records, read one by one, with flat memory."""

from __future__ import annotations

from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.formats import parse_sample
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import Sample
from lightning_switchkd.data.sources.base import Source
from lightning_switchkd.data.sources.json_file import JsonSource
from lightning_switchkd.data.sources.mixture import Mixture
from lightning_switchkd.data.sources.parquet import ParquetSource
from lightning_switchkd.data.sources.remote import ShardCache, find_remote
from lightning_switchkd.data.sources.shards import find_shards
from lightning_switchkd.data.sources.tar import TarSource

__all__ = ["Mixture", "ShardCache", "Source", "open_source", "read_sample"]


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


def read_sample(source: Source, index: int) -> Sample:
    """The validated record.

    Raises:
        RecordError: it is not valid.
    """
    return parse_sample(source.read(index), source.location(index))
