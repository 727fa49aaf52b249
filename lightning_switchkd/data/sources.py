"""Where raw records come from: any file as a sequence of JSON objects, read one by one, with flat memory.

A JSON array and JSONL are the same to a reader: objects at known places. One pass finds (offset, length, checksum) of
each and keeps them in a small index file; records are then read straight from the original.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from lightning_switchkd.data.records import RecordError, describe
from lightning_switchkd.errors import UserError

_VERSION = 1  # of the index file

_Index: TypeAlias = NDArray[np.int64]  # [n, 3]: offset, length, CRC-32 of each record

_DEPTH = 16
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb")*+\}"
for _ in range(_DEPTH - 1):  # objects in objects; brackets need no pairing to find where an object ends
    _OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb"|" + _OBJECT + rb")*+\}"
_RECORD = re.compile(_OBJECT, re.DOTALL)
_START = re.compile(rb"(?:\xef\xbb\xbf)?+\s*+(?P<list>\[\s*+)?+")  # a byte order mark, and what opens a list
_AFTER_ELEMENT = re.compile(rb"\s*+(?:,\s*+(?!\])|(?=\]))")
_AFTER_OBJECT = re.compile(rb"\s*+")
_END_OF_LIST = re.compile(rb"\]\s*+")


class Source(Protocol):
    """Raw records by index.

    Attributes:
        path: the file, as messages name it.
        fingerprint: equal for equal records in equal order, wherever the file lies.
    """

    path: Path
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> dict[str, Any]: ...


def open_source(path: str | Path) -> Source:
    """The records of a JSON array or JSONL file. The first call on a file indexes it.

    Raises:
        UserError: the file is missing, empty, no list of objects, or broken; the message names line and byte.
    """
    return JsonSource(path)


class JsonSource:
    """Records of a JSON array or JSONL file. Sent to a worker, it reopens the file there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"there is no file {self.path}: check the path of the annotations")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.path} is empty: it must hold a list of records")
        self._index = _cached_index(self.path)
        self._data = _map(self.path)
        self.fingerprint = hashlib.sha256(self._index[:, 1:].tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
            RecordError: ``bad_json`` where the file was changed after it was opened.
        """
        offset, length, _ = self._index[index].tolist()
        try:
            record: dict[str, Any] = orjson.loads(self._data[offset : offset + length])
        except orjson.JSONDecodeError as error:
            problem = f"broken JSON, though it was whole when indexed: do not edit a file in use. {error}"
            raise RecordError("bad_json", problem, describe(None, index, self.path)) from None
        return record

    def __reduce__(self) -> tuple[Callable[[Path], JsonSource], tuple[Path]]:
        return JsonSource, (self.path,)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _cached_index(path: Path) -> _Index:
    """The index of a file, memory-mapped: beside the file, or in the user's cache where that cannot be written."""
    stat = path.stat()
    key = hashlib.sha256(f"{_VERSION} {path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_switchkd"
    files = [folder / f"{path.name}.{key}.npy" for folder in (path.parent / ".index", cache)]
    for file in files:
        try:
            return _read_index(file, stat.st_size)
        except (OSError, ValueError, EOFError):  # not there, or no index: build it anew
            continue
    index = _build_index(path)
    for file in files:
        try:
            _write_index(file, index)
            return _read_index(file, stat.st_size)
        except OSError:
            continue
    raise UserError(
        f"the index of {path} can be written to neither of {[str(f.parent) for f in files]}: free one of them"
    )


def _read_index(file: Path, size: int) -> _Index:
    index: _Index = np.load(file, mmap_mode="r")
    if index.ndim != 2 or index.shape[1] != 3 or not len(index) or index[-1, :2].sum() > size:
        raise ValueError(f"{file} is not the index it should be")
    return index


def _write_index(file: Path, index: _Index) -> None:
    """Whole or not at all: two processes may index the same file at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.save(stream, index)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _build_index(path: Path) -> _Index:
    entries = array("q")
    with _map(path) as data:
        for start, end in _spans(data, path):
            record = data[start:end]
            try:
                orjson.loads(record)
            except orjson.JSONDecodeError as error:
                raise _broken(path, data, start + len(error.doc[: error.pos].encode()), error.msg) from None
            entries.extend((start, end - start, zlib.crc32(record)))
    if not entries:
        raise UserError(f"{path} holds no records")
    return np.array(entries, dtype=np.int64).reshape(-1, 3)


def _spans(data: mmap.mmap, path: Path) -> Iterator[tuple[int, int]]:
    """Start and end of every object of a JSON array, or of objects one after the other (JSONL)."""
    position, is_list = _open(data, path)
    after = _AFTER_ELEMENT if is_list else _AFTER_OBJECT
    closing = b"]" if is_list else b""  # at the end of the file a slice is empty
    while data[position : position + 1] != closing:
        record = _RECORD.match(data, position)
        if record is None:
            raise _broken(path, data, position, f"no whole JSON object begins here (of depth {_DEPTH} or less)")
        following = after.match(data, record.end())
        if following is None:
            raise _broken(path, data, record.end(), "after a record comes ',' and the next record, or ']'")
        yield record.span()
        position = following.end()
    if is_list and not _END_OF_LIST.fullmatch(data, position):
        raise _broken(path, data, position, "nothing may follow the end of the list")


def _open(data: mmap.mmap, path: Path) -> tuple[int, bool]:
    """Where the first record begins, and whether the records are a list."""
    start = _START.match(data)
    assert start is not None  # it matches the empty string
    is_list = start["list"] is not None
    first = _RECORD.match(data, start.end())
    if not is_list and data[start.end() : start.end() + 1] != b"{":
        begins = data[start.end() : start.end() + 20]
        raise UserError(f"{path} is neither a JSON list of records nor JSONL: it begins with {begins!r}")
    if not is_list and path.suffix == ".json" and first and _AFTER_OBJECT.fullmatch(data, first.end()):
        raise UserError(f"{path} holds one JSON object, not a list: put the records between [ and ], or name it .jsonl")
    return start.end(), is_list


def _broken(path: Path, data: mmap.mmap, position: int, reason: str) -> UserError:
    line = 1 + data[:position].count(b"\n")
    near = data[position : position + 40]
    return UserError(f"{path}, line {line} (byte {position}): broken JSON: {reason}. It reads {near!r}")
