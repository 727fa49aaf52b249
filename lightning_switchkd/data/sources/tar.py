"""Tar files as WebDataset writes them: ``key.json`` with a LLaVA record, and its images as ``key.jpg``, ``key.1.png``.

The members of a sample follow one another. A scan of the headers finds them; a record is then read by its place.
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
from lightning_switchkd.data.sources.index import OF_IMAGE, Index, bar, to_index
from lightning_switchkd.data.sources.indexed import IndexedFiles
from lightning_switchkd.data.sources.shards import Shard


class TarSource(IndexedFiles):
    """Samples of tar files.

    Args:
        path: file, folder or pattern, as messages name it.
        shards: its files.
        images: reads images that the records name by path and the tar does not hold.

    Raises:
        UserError: a file is no uncompressed tar file, or has a sample without a record.
    """

    def __init__(self, path: str, shards: Sequence[Shard], images: ImageFolder | None = None) -> None:
        super().__init__(path, shards, images, _build_index)
        self.blocks = self._files_together()

    def read(self, index: int) -> Any:
        """The record at `index`, the bytes of its images with it.

        Raises:
            RecordError: ``bad_json``, or ``image_count`` where the record names another number of images.
        """
        (offset, size, *_), *images = self.rows[self.first[index] : self.first[index + 1]].tolist()
        shard = self.shard_of(index)
        try:
            raw = orjson.loads(self.bytes_of(shard, offset, size))
        except orjson.JSONDecodeError as error:
            raise SampleError("bad_json", f"broken JSON: {error}", self.location(index)) from None
        if not images or not isinstance(raw, dict):
            return raw
        named = raw.pop("images", None) or raw.pop("image", None) or []
        names = [named] if isinstance(named, str) else named or [f"image {i}" for i in range(len(images))]
        if len(names) != len(images):
            problem = f"the record names {len(names)} images, but the tar holds {len(images)} with its key: make equal"
            raise SampleError("image_count", problem).at(self.location(index), raw.get("id"))
        data = [self.bytes_of(shard, offset, size) for offset, size, *_ in images]
        return {**raw, "image": [{"path": str(n), "bytes": d} for n, d in zip(names, data, strict=True)]}


def _build_index(shard: Shard) -> Index:
    rows = array("q")
    try:
        with (
            shard.open() as data,
            tarfile.open(fileobj=data, mode="r:") as tar,
            bar(shard.name, shard.size) as progress,
        ):
            for key, members in groupby(_members(tar), key=_key):
                sample = sorted(members, key=_by_number)
                samples = [member for member in sample if member.name.endswith(".json")]
                images = [member for member in sample if PurePosixPath(member.name).suffix.lower() in EXTENSIONS]
                if len(samples) != 1:
                    raise UserError(f"{shard.name}: sample {key!r} has {len(samples)} .json members, it must have one")
                found = pread(data.fileno(), samples[0].size, samples[0].offset_data)
                try:
                    text, _ = measure(orjson.loads(found))
                except orjson.JSONDecodeError:
                    text = 0  # reading it says what is wrong
                rows.extend((samples[0].offset_data, samples[0].size, zlib.crc32(found), text, len(images)))
                for image in images:
                    rows.extend((image.offset_data, image.size, 0, 0, OF_IMAGE))
                progress.update(sample[-1].offset_data - progress.n)
    except tarfile.TarError as error:
        raise UserError(
            f"{shard.name} cannot be read as a tar file: {error}. Compressed ones cannot be read by place: unpack them"
        ) from None
    if not rows:
        raise UserError(f"{shard.name} holds no records")
    return to_index(rows)


def _by_number(member: tarfile.TarInfo) -> list[tuple[int, str]]:
    """Sorts ``key.2.png`` before ``key.10.png``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", member.name)]


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
        if member.isreg():
            yield member


def _key(member: tarfile.TarInfo) -> str:
    """The name up to the first dot of its last part, as WebDataset has it."""
    path = PurePosixPath(member.name)
    return str(path.parent / path.name.split(".", 1)[0])
