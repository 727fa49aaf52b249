"""JSON array and JSONL files, read in place, sample by sample, in constant memory.

Both formats hold objects at known positions. One pass finds offset and length of each object. Samples are then read
from the original file. An object that does not parse is one invalid sample, as long as its end can be found.
Otherwise the whole file is invalid.
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
from lightning_switchkd.data.sources.index import Index, progress_bar, to_index
from lightning_switchkd.data.sources.indexed import IndexedFiles
from lightning_switchkd.data.sources.shards import Shard

_DEPTH = 16
_STRING = rb'"(?:[^"\\\n]++|\\.)*+"'
_OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb")*+\}"
for _ in range(_DEPTH - 1):  # nested objects. Brackets of lists do not affect where an object ends
    _OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb"|" + _OBJECT + rb")*+\}"
_SAMPLE = re.compile(_OBJECT, re.DOTALL)
_START = re.compile(rb"(?:\xef\xbb\xbf)?+\s*+(?P<list>\[\s*+)?+")  # a byte order mark, and the start of a list
_AFTER_ELEMENT = re.compile(rb"\s*+(?:,\s*+(?!\])|(?=\]))")
_SPACE = re.compile(rb"\s*+")
_MAX_MULTILINE = 4 * 2**20  # bytes of an object that spans several lines
_END_OF_LIST = re.compile(rb"\]\s*+")


class JsonSource(IndexedFiles):
    """Samples of JSON arrays or JSONL files.

    Args:
        path: File or pattern, for messages.
        shards: The files.
        images: Reads their images.

    Raises:
        UserError: A file is empty, damaged, or not a list of objects. The message names line and byte.
    """

    def __init__(self, path: str, shards: Sequence[Shard], images: ImageFolder | None = None) -> None:
        super().__init__(path, shards, images, _build_index)

    def read(self, index: int) -> Any:
        """Return the raw sample.

        Raises:
            SampleError: ``bad_json`` if it does not parse, or the file has changed since it was opened.
        """
        offset, length, crc, *_ = self.rows[index].tolist()
        data = self.bytes_of(self.shard_of(index), offset, length)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            changed = " The file has changed since it was indexed." if zlib.crc32(data) != crc else ""
            raise SampleError("bad_json", f"Invalid JSON: {error}.{changed}", self.location(index)) from None


def _build_index(shard: Shard) -> Index:
    rows, path = array("q"), Path(shard.name)
    if shard.size == 0:
        raise UserError(f"{path} is empty. It must contain a list of samples.")
    with (
        shard.open() as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        progress_bar(path, len(data)) as progress,
    ):
        for start, end in _spans(data, path):
            sample = data[start:end]
            try:
                size = measure(orjson.loads(sample))
            except orjson.JSONDecodeError:
                size = (0, 0)  # `read` reports the problem
            rows.extend((start, end - start, zlib.crc32(sample), *size))
            if len(rows) % 50_000 == 0:
                progress.update(end - progress.n)
    if not rows:
        raise UserError(f"{path} contains no samples. Add samples, or choose another file.")
    return to_index(rows)


def _spans(data: mmap.mmap, path: Path) -> Iterator[tuple[int, int]]:
    """Yield start and end of every sample."""
    start = _START.match(data)
    assert start is not None  # it matches the empty string
    begin = start.end()
    if start["list"] is not None:
        return _elements(data, path, begin)
    if data[begin : begin + 1] != b"{":
        start_bytes = data[begin : begin + 20]
        raise UserError(f"{path} is neither a JSON list of samples nor JSONL. It starts with {start_bytes!r}.")
    single = _SAMPLE.match(data, begin) if path.suffix == ".json" else None
    if single and _SPACE.fullmatch(data, single.end()):
        raise UserError(
            f"{path} contains one JSON object instead of a list. Put the samples into [ ], or rename it to .jsonl."
        )
    return _lines(data, begin)


def _elements(data: mmap.mmap, path: Path, position: int) -> Iterator[tuple[int, int]]:
    """Yield the objects of a JSON array."""
    while data[position : position + 1] != b"]":
        sample = _SAMPLE.match(data, position)
        if sample is None:
            raise _broken(path, data, position, f"expected a complete JSON object (at most {_DEPTH} levels deep)")
        following = _AFTER_ELEMENT.match(data, sample.end())
        if following is None:
            raise _broken(path, data, sample.end(), "expected ',' and the next sample, or ']'")
        yield sample.span()
        position = following.end()
    if not _END_OF_LIST.fullmatch(data, position):
        raise _broken(path, data, position, "found text after the end of the list")


def _lines(data: mmap.mmap, start: int) -> Iterator[tuple[int, int]]:
    """Yield the samples of JSONL: one per line, valid or not. An object may also span several lines."""
    while start < len(data):
        end = _line_end(data, start)
        if (
            (line := data[start:end].strip())
            and not _parses(line)
            and not _parses(data[end : _line_end(data, end + 1)])
        ):
            begin = data.find(line[:1], start)
            sample = _SAMPLE.match(data, begin, min(len(data), begin + _MAX_MULTILINE))
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
    return UserError(f"{path}, line {line} (byte {position}): invalid JSON: {reason}, found {near!r}.")
