"""The index of a file: the positions of its samples, as a small array that is stored next to the file."""

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

_VERSION = 3  # of the index format

Index: TypeAlias = NDArray[np.int64]
"""``[n, 5]``, one row per sample: its position (two numbers, specific to the format), CRC-32, bytes of text, number of
images."""

CRC, TEXT_BYTES, NUM_IMAGES = 2, 3, 4
"""Columns of an index."""

IMAGE_ROW = -1
"""Value of `NUM_IMAGES` in the row of an image file. It belongs to the sample above it."""


def to_index(rows: array[int]) -> Index:
    """Convert a flat array with five numbers per row to an index."""
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 5)


def fingerprint(*parts: object) -> str:
    """Hash arrays and plain values to 16 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()[:16]


def progress_bar(path: object, total: int, unit: str = "B") -> tqdm[None]:
    """Return a progress bar for indexing a file. It appears after one second."""
    return tqdm(total=total, desc=f"Indexing {Path(str(path)).name}", unit=unit, unit_scale=True, delay=1, leave=False)


def user_cache() -> Path:
    """Return the user's cache folder of this package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_switchkd"


def cached_index(shard: Shard, build: Callable[[], Index]) -> Index:
    """Return the memory-mapped index of a file. Build it if it is missing or the file has changed.

    The index is stored in ``.index`` next to the file. If this folder is not writable or the file is remote, the
    user's cache folder is used.

    Raises:
        UserError: Neither folder is writable.
    """
    name = PurePosixPath(shard.name).name
    file = f"{name}.{fingerprint(_VERSION, shard.key)}.npy"
    paths = [*([shard.folder / ".index" / file] if shard.folder else []), user_cache() / "index" / file]
    for path in paths:
        try:
            return _read(path)
        except (OSError, ValueError, EOFError):  # missing or damaged
            continue
    index = build()
    for path in paths:
        try:
            _write(path, index)
            return _read(path)
        except OSError:
            continue
    raise UserError(
        f"Cannot write the index of {name} to any of {[str(path.parent) for path in paths]}. Make one of them writable."
    )


def _read(file: Path) -> Index:
    index: Index = np.load(file, mmap_mode="r")
    if index.ndim != 2 or index.shape[1] != 5 or not len(index):
        raise ValueError(f"{file} is not an index")
    return index


def _write(file: Path, index: Index) -> None:
    with atomic_path(file, unique=True) as partial, partial.open("wb") as stream:  # others may index the same file
        np.save(stream, index)
