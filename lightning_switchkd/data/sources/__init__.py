"""Sources of raw samples: any file as a sequence of samples, read one by one in constant memory."""

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
    """Open a JSON array, JSONL, Parquet or tar file, or a folder or pattern of Parquet or tar files.

    The first call for a file indexes it.

    Args:
        path: ``train.json``, ``train.jsonl``, ``shards/*.parquet``, ``shards/{000..012}.tar``, ``shards/``, or a
            URL: ``https://host/{000..012}.tar``, ``hf://datasets/owner/name/data/*.parquet``, ``s3://bucket/*.tar``.
        images: Reads images that samples name by path.
        cache: Stores files behind URLs. None: the user's cache folder.

    Raises:
        UserError: A file is missing, empty, damaged or of another format. The message names the file and the place.
        ReadError: The network failed on every attempt.
    """
    name = str(path)
    suffix, remote = Path(name).suffix, "://" in name
    if not remote and Path(name).is_dir():
        suffixes = {file.suffix for file in Path(name).rglob("*") if file.suffix in (".parquet", ".tar")}
        if len(suffixes) != 1:
            raise UserError(
                f"The folder {name} must contain either .parquet or .tar files, found {sorted(suffixes)}. "
                "Use a pattern such as 'shards/*.parquet'."
            )
        (suffix,) = suffixes
    kind = {".parquet": ParquetSource, ".tar": TarSource}.get(suffix, JsonSource)
    shards = find_remote(name, suffix, cache or ShardCache()) if remote else find_shards(name, suffix)
    return kind(name, shards, images)


def read_sample(source: Source, index: int) -> Sample:
    """Read and validate a sample.

    Raises:
        SampleError: The sample is invalid.
    """
    return parse_sample(source.read(index), source.location(index))
