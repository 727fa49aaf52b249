"""Where the records of a file lie: found once, kept as a small array beside the file, the same five columns for all."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import atomic_path
from lightning_switchkd.data.sources.shards import Shard

_VERSION = 3  # of what an index holds

Index: TypeAlias = NDArray[np.int64]
"""``[n, 5]``, a row a record: where it is (two numbers, the format's own), CRC-32, bytes of text, number of images."""

CRC, TEXT, IMAGES = 2, 3, 4

OF_IMAGE = -1
"""In the column of images: the row is no record, but an image file of the record above it."""


def to_index(rows: array[int]) -> Index:
    """An index from its numbers, five a record."""
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 5)


def fingerprint(*parts: object) -> str:
    """16 hex digits of arrays and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()[:16]


def bar(path: object, total: int, unit: str = "B") -> tqdm[None]:
    """A progress bar for what takes longer than a second."""
    return tqdm(total=total, desc=f"indexing {Path(str(path)).name}", unit=unit, unit_scale=True, delay=1, leave=False)


def user_cache() -> Path:
    """The user's own cache folder of this package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_switchkd"


def cached_index(shard: Shard, build: Callable[[], Index]) -> Index:
    """The index of a file, memory-mapped; built where there is none, or none of the file as it is now.

    It lies in ``.index`` beside the file; in the user's cache where that cannot be written, or the file is remote.

    Raises:
        UserError: it can be written nowhere.
    """
    name = PurePosixPath(shard.name).name
    file = f"{name}.{fingerprint(_VERSION, shard.key)}.npy"
    places = [*([shard.folder / ".index" / file] if shard.folder else []), user_cache() / "index" / file]
    for location in places:
        try:
            return _read(location)
        except (OSError, ValueError, EOFError):  # not there, or no index: build it anew
            continue
    index = build()
    for location in places:
        try:
            _write(location, index)
            return _read(location)
        except OSError:
            continue
    raise UserError(f"the index of {name} can be written to neither of {[str(p.parent) for p in places]}: free one")


def _read(file: Path) -> Index:
    index: Index = np.load(file, mmap_mode="r")
    if index.ndim != 2 or index.shape[1] != 5 or not len(index):
        raise ValueError(f"{file} is not the index it should be")
    return index


def _write(file: Path, index: Index) -> None:
    with atomic_path(file, unique=True) as partial, partial.open("wb") as stream:  # others may index the same file
        np.save(stream, index)
