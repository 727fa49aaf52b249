"""A JSON array or JSONL file, record by record, in place and with flat memory.

Both are the same to a reader: objects at known places. One pass finds (offset, length) of each; records are then read
straight from the original. Where records can be told apart, one that does not parse is a bad record among good ones;
where they cannot, the file is broken.
"""

from __future__ import annotations

import mmap
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.formats import measure
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.sources.index import Index, bar, to_index
from lightning_switchkd.data.sources.indexed import IndexedFiles
from lightning_switchkd.data.sources.shards import Shard

_DEPTH = 16
_STRING = rb'"(?:[^"\\\n]++|\\.)*+"'
_OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb")*+\}"
for _ in range(_DEPTH - 1):  # objects in objects; brackets need no pairing to find where an object ends
    _OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb"|" + _OBJECT + rb")*+\}"
_RECORD = re.compile(_OBJECT, re.DOTALL)
_START = re.compile(rb"(?:\xef\xbb\xbf)?+\s*+(?P<list>\[\s*+)?+")  # a byte order mark, and what opens a list
_AFTER_ELEMENT = re.compile(rb"\s*+(?:,\s*+(?!\])|(?=\]))")
_SPACE = re.compile(rb"\s*+")
_LONGEST = 4 * 2**20  # bytes of an object written over several lines
_END_OF_LIST = re.compile(rb"\]\s*+")


class JsonSource(IndexedFiles):
    """Records of JSON arrays or JSONL files.

    Args:
        path: the file or pattern, as messages name it.
        shards: its files.
        images: where its images are.

    Raises:
        UserError: a file is empty, no list of objects, or broken; the message names line and byte.
    """

    def __init__(self, path: str, shards: Sequence[Shard], images: ImageFolder | None = None) -> None:
        super().__init__(path, shards, images, _build_index)

    def read(self, index: int) -> Any:
        """The record at `index`.

        Raises:
            RecordError: ``bad_json``: it does not parse, or the file was changed after it was opened.
        """
        offset, length, crc, *_ = self.rows[index].tolist()
        data = self.bytes_of(self.shard_of(index), offset, length)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            changed = "; the file was changed after it was indexed" if zlib.crc32(data) != crc else ""
            raise SampleError("bad_json", f"broken JSON: {error}{changed}", self.location(index)) from None


def _build_index(shard: Shard) -> Index:
    rows, path = array("q"), Path(shard.name)
    if shard.size == 0:
        raise UserError(f"{path} is empty: it must hold a list of records")
    with (
        shard.open() as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        bar(path, len(data)) as progress,
    ):
        for start, end in _spans(data, path):
            sample = data[start:end]
            try:
                size = measure(orjson.loads(sample))
            except orjson.JSONDecodeError:
                size = (0, 0)  # reading it says what is wrong
            rows.extend((start, end - start, zlib.crc32(sample), *size))
            if len(rows) % 50_000 == 0:
                progress.update(end - progress.n)
    if not rows:
        raise UserError(f"{path} holds no records")
    return to_index(rows)


def _spans(data: mmap.mmap, path: Path) -> Iterator[tuple[int, int]]:
    """Start and end of every record."""
    start = _START.match(data)
    assert start is not None  # it matches the empty string
    begin = start.end()
    if start["list"] is not None:
        return _elements(data, path, begin)
    if data[begin : begin + 1] != b"{":
        begins = data[begin : begin + 20]
        raise UserError(f"{path} is neither a JSON list of records nor JSONL: it begins with {begins!r}")
    whole = _RECORD.match(data, begin) if path.suffix == ".json" else None
    if whole and _SPACE.fullmatch(data, whole.end()):
        raise UserError(f"{path} holds one JSON object, not a list: put the records between [ and ], or name it .jsonl")
    return _lines(data, begin)


def _elements(data: mmap.mmap, path: Path, position: int) -> Iterator[tuple[int, int]]:
    """The objects of a JSON array."""
    while data[position : position + 1] != b"]":
        sample = _RECORD.match(data, position)
        if sample is None:
            raise _broken(path, data, position, f"no whole JSON object begins here (of depth {_DEPTH} or less)")
        following = _AFTER_ELEMENT.match(data, sample.end())
        if following is None:
            raise _broken(path, data, sample.end(), "after a record comes ',' and the next record, or ']'")
        yield sample.span()
        position = following.end()
    if not _END_OF_LIST.fullmatch(data, position):
        raise _broken(path, data, position, "nothing may follow the end of the list")


def _lines(data: mmap.mmap, start: int) -> Iterator[tuple[int, int]]:
    """JSONL: a record a line, whatever the line holds; but an object may be written over several lines."""
    while start < len(data):
        end = _line_end(data, start)
        if (
            (line := data[start:end].strip())
            and not _parses(line)
            and not _parses(data[end : _line_end(data, end + 1)])
        ):
            begin = data.find(line[:1], start)
            sample = _RECORD.match(data, begin, min(len(data), begin + _LONGEST))
            if sample is not None and _parses(sample[0]):
                end = sample.end()
        if line := data[start:end].rstrip():
            yield start, start + len(line)
        start = end if data[end : end + 1] not in (b"\n", b"") else end + 1


def _line_end(data: mmap.mmap, start: int) -> int:
    end = data.find(b"\n", start)
    return len(data) if end < 0 else end


def _parses(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _broken(path: Path, data: mmap.mmap, position: int, reason: str) -> UserError:
    line = 1 + data[:position].count(b"\n")
    near = data[position : position + 40]
    return UserError(f"{path}, line {line} (byte {position}): broken JSON: {reason}. It reads {near!r}")
