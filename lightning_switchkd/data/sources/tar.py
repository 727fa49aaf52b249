"""Tar files in WebDataset format: ``key.json`` with a LLaVA sample, and its images as ``key.jpg``, ``key.1.png``.

The members of a sample are adjacent. A scan of the headers finds their positions, and samples are read by position.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import orjson

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import pread
from lightning_switchkd.data.formats import measure
from lightning_switchkd.data.images import EXTENSIONS, ImageFolder
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.sources.index import IMAGE_ROW, Index, progress_bar, to_index
from lightning_switchkd.data.sources.indexed import IndexedFiles
from lightning_switchkd.data.sources.shards import Shard


class TarSource(IndexedFiles):
    """Samples of tar files.

    Args:
        path: File, folder or pattern, for messages.
        shards: The files.
        images: Reads images that samples name by path and the tar file does not contain.

    Raises:
        UserError: A file is not an uncompressed tar file, or a sample lacks its .json member.
    """

    def __init__(self, path: str, shards: Sequence[Shard], images: ImageFolder | None = None) -> None:
        super().__init__(path, shards, images, _build_index)
        self.blocks = self._file_blocks()

    def read(self, index: int) -> Any:
        """Return the raw sample with the bytes of its images.

        Raises:
            SampleError: ``bad_json``, or ``image_count`` if the sample names another number of images.
        """
        (offset, size, *_), *images = self.rows[self.first[index] : self.first[index + 1]].tolist()
        shard = self.shard_of(index)
        try:
            raw = orjson.loads(self.bytes_of(shard, offset, size))
        except orjson.JSONDecodeError as error:
            raise SampleError("bad_json", f"Invalid JSON: {error}.", self.location(index)) from None
        if not images or not isinstance(raw, dict):
            return raw
        value = raw.pop("images", None) or raw.pop("image", None) or []
        names = [value] if isinstance(value, str) else value or [f"image {i}" for i in range(len(images))]
        if len(names) != len(images):
            problem = f"The sample names {len(names)} images, but the tar file has {len(images)}. Add or remove images."
            raise SampleError("image_count", problem).at(self.location(index), raw.get("id"))
        data = [self.bytes_of(shard, offset, size) for offset, size, *_ in images]
        return {**raw, "image": [{"path": str(n), "bytes": d} for n, d in zip(names, data, strict=True)]}


def _build_index(shard: Shard) -> Index:
    rows = array("q")
    try:
        with (
            shard.open() as data,
            tarfile.open(fileobj=data, mode="r:") as tar,
            progress_bar(shard.name, shard.size) as progress,
        ):
            for key, members in groupby(_members(tar), key=_key):
                sample = sorted(members, key=_by_number)
                samples = [member for member in sample if member.name.endswith(".json")]
                images = [member for member in sample if PurePosixPath(member.name).suffix.lower() in EXTENSIONS]
                if len(samples) != 1:
                    raise UserError(f"{shard.name}: sample {key!r} must have one .json member, found {len(samples)}.")
                text = pread(data.fileno(), samples[0].size, samples[0].offset_data)
                try:
                    text_bytes, _ = measure(orjson.loads(text))
                except orjson.JSONDecodeError:
                    text_bytes = 0  # `read` reports the problem
                rows.extend((samples[0].offset_data, samples[0].size, zlib.crc32(text), text_bytes, len(images)))
                for image in images:
                    rows.extend((image.offset_data, image.size, 0, 0, IMAGE_ROW))
                progress.update(sample[-1].offset_data - progress.n)
    except tarfile.TarError as error:
        raise UserError(
            f"Cannot read {shard.name} as a tar file: {error}. Decompress it if it is compressed."
        ) from None
    if not rows:
        raise UserError(f"{shard.name} contains no samples.")
    return to_index(rows)


def _by_number(member: tarfile.TarInfo) -> list[tuple[int, str]]:
    """Sort ``key.2.png`` before ``key.10.png``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", member.name)]


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all members
        if member.isreg():
            yield member


def _key(member: tarfile.TarInfo) -> str:
    """Return the name up to the first dot of its last part, the key of WebDataset."""
    path = PurePosixPath(member.name)
    return str(path.parent / path.name.split(".", 1)[0])
